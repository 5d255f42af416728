"""How long dlrun takes to answer: `python tests/benchmarks/bench_startup.py` on an idle machine.

Prints medians in milliseconds, and what comes on top of the start of the interpreter itself. Wanted: --help
under 60 ms on top, a config error under 500 ms in all.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

REPEATS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "dlrun --help": ["-m", "dlrun", "--help"],
    "dlrun compare (no runs)": ["-m", "dlrun", "compare"],
    "dlrun train --help": ["-m", "dlrun", "train", "--help"],
    "dlrun train optimizer.lrr=1": ["-m", "dlrun", "train", "optimizer.lrr=1"],
    "dlrun train optimizer.lr=abc": ["-m", "dlrun", "train", "optimizer.lr=abc"],
    "dlrun train model=resnt18": ["-m", "dlrun", "train", "model=resnt18"],
    "dlrun train trainer.monitor=x": ["-m", "dlrun", "train", "trainer.monitor=x"],
    "dlrun train dataset.root=nowhere": [
        "-m",
        "dlrun",
        "train",
        "dataset=image_folder",
        "dataset.root=nowhere",
    ],
    "dlrun train -m lr=0.1,0.2,abc": ["-m", "dlrun", "train", "-m", "optimizer.lr=0.1,0.2,abc"],
}


def milliseconds(words: list[str], folder: str) -> float:
    """Median wall time of a fresh process."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: milliseconds(words, folder) for name, words in COMMANDS.items()}
    start = found["python -c pass"]
    for name, value in found.items():
        print(f"{name:<36}{value:8.1f} ms {value - start:+9.1f} ms {value / start:6.1f} x")


if __name__ == "__main__":
    main()
