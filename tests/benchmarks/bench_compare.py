"""Time to compare 10,000 runs: `python tests/benchmarks/bench_compare.py [RUNS]` (S10).

Writes 1,000 sweeps of ten runs with the result.json of a real run, a tenth of them pruned or diverged, into a
temporary folder, and prints the wall time of complete processes, the median of three. Target: at most 6 s.
"""

from __future__ import annotations

import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS = 3
COMMANDS = {
    "on screen (a pipe) and as CSV": [],
    "--group-seeds": ["--group-seeds"],
    "--json": ["--json"],
    "--latex": ["--latex"],
    "--sort=test_acc": ["--sort=test_acc"],
}
WORDS = ["trainer.epochs=1", "dataset.limit=100", "check=none", "model.width=4", "trainer.threads=1"]


def template(folder: Path) -> tuple[dict[str, Any], bytes]:
    """result.json and config.yaml of a real run, which is trained for it."""
    command = [sys.executable, "-m", "dlrun", "train", *WORDS, f"run.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "result.json").read_bytes()), (folder / "config.yaml").read_bytes()


def write(root: Path, result: dict[str, Any], config: bytes, count: int) -> None:
    """Write the runs: rates and widths at random, five seeds each."""
    rng = random.Random(0)
    for number in range(count):
        if number % 5 == 0:
            lr, width = 10 ** rng.uniform(-5, 0), rng.choice((8, 16, 32, 64))
        made = copy.deepcopy(result)
        made["config"]["optimizer"]["lr"], made["config"]["model"]["width"] = lr, width
        made["config"]["seed"] = made["seed"] = number % 5
        made.update(val_acc=rng.random(), val_loss=rng.random(), test_acc=rng.random(), test_loss=rng.random())
        if number % 10 == 7:
            made["status"] = rng.choice(("pruned", "diverged", "failed"))
            del made["test_acc"], made["test_loss"]
        path = root / "sweeps" / f"20260101-000000-sweep-{number // 10:04d}" / f"{number % 10:04d}"
        path.mkdir(parents=True)
        (path / "config.yaml").write_bytes(config)
        (path / "result.json").write_text(json.dumps(made, indent=1))


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "outputs", *template(root / "run"), count)
        print(f"{count:,} runs")
        for what, words in COMMANDS.items():
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "dlrun", "compare", *words], cwd=root, capture_output=True, check=True
                )
                times.append(time.perf_counter() - started)
            print(f"{what:<34}{statistics.median(times):6.2f} s  ({', '.join(f'{t:.2f}' for t in times)})", flush=True)


if __name__ == "__main__":
    main()
