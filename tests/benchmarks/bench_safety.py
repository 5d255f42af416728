"""What guards cost, two checkouts in turn: `python tests/benchmarks/bench_safety.py OLD_CHECKOUT [TURNS [RUNS]]`.

Measured are the first training step from the shell, `dlrun compare` of RUNS (10,000) runs, and checkpoints: writing
and restoring one of 55 tensors (1 MB) and one of 94 MB, each by itself and both once. Printed is the best of TURNS (9)
of each, of processor time (user and system, children included) and of wall time, and new / old; what took more than 3 %
longer in processor time is marked. Exits with 1 if that is anything.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from bench_before_after import COMMANDS, HERE, process
from bench_compare import template, write

TURNS, RUNS, SLOWER = 9, 10_000, 1.03
# one process writes and restores a checkpoint many times; the best of each counts
CHECKPOINTS = """
import json, sys, time
from pathlib import Path
from dlrun.config.compose import compose
from dlrun.folders.run import claim
from dlrun.training import checkpoint
from dlrun.training.experiment import build

folder, times, words = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
exp = build(compose("check=none", "dataset.limit=100", "trainer.threads=1", "trainer.device=cpu", *words))
run = claim(str(folder / "run"), "bench")
for parameter in exp.model.parameters():
    parameter.grad = parameter.detach().clone()
exp.optimizer.step()
state = checkpoint.State()
best = {}
def timed(what, call):
    processor, wall = time.process_time(), time.perf_counter()
    call()
    took = (time.process_time() - processor, time.perf_counter() - wall)
    best[what] = [min(pair) for pair in zip(best.get(what, took), took)]
for _ in range(times):
    content = checkpoint.snapshot(exp, state)
    timed("write", lambda: checkpoint.write(run, content, is_best=True))
    timed("restore", lambda: checkpoint.restore(run, exp))
run.release()
print(json.dumps(best), file=open(folder / "best.json", "w"))
"""
SIZES = {
    "1 MB": (60, ["model=resnet20", "model.width=8"]),
    "94 MB": (6, ["model=mlp", "model.width=2300", "model.depth=3", "optimizer=sgd"]),
}


def checkpoints(checkout: Path, folder: Path, times: int, words: list[str]) -> dict[str, tuple[float, float]]:
    """Processor and wall time of writing and of restoring a checkpoint, the best of several."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        process(checkout, ["-c", CHECKPOINTS, name, str(times), *words], folder)
        found = json.loads(Path(name, "best.json").read_text())
    return {what: (processor, wall) for what, (processor, wall) in found.items()}


def _both(found: list[dict[str, tuple[float, float]]]) -> tuple[float, float]:
    """The best of writing and the best of restoring, added: processor time and wall time."""
    processor, wall = (sum(min(one[what][kind] for one in found) for what in ("write", "restore")) for kind in (0, 1))
    return processor, wall


def row(what: str, old: list[tuple[float, float]], new: list[tuple[float, float]]) -> bool:
    """Print the best of both; return whether the new checkout takes longer in processor time."""
    parts, ratios = [f"{what:<32}"], []
    for kind in (0, 1):
        a, b = (min(times[kind] for times in found) for found in (old, new))
        ratios.append(b / a)
        parts.append(f"{1000 * a:9.2f} {1000 * b:9.2f} {b / a:6.3f}")
    print("  ".join(parts), "" if ratios[0] <= SLOWER else "  slower", flush=True)
    return ratios[0] > SLOWER


def main() -> None:
    """Print the table."""
    checkouts = [Path(sys.argv[1]).resolve(), HERE]
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else TURNS
    count = int(sys.argv[3]) if len(sys.argv) > 3 else RUNS
    slower = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "compare" / "outputs", *template(root / "run"), count)
        (root / "train").mkdir()
        print(f"{'milliseconds, best of several':<32}  {'processor: old, new, new/old':<26}  wall: old, new, new/old")
        for what in ("dlrun train, first step", "dlrun compare"):
            folder = root / ("compare" if "compare" in what else "train")
            found: tuple[list[tuple[float, float]], ...] = ([], [])
            for turn in range(-1, turns):
                for which in (0, 1) if turn % 2 else (1, 0):
                    times = process(checkouts[which], COMMANDS[what], folder)
                    if turn >= 0:  # the turn before compiles the modules and fills the caches
                        found[which].append(times)
            slower.append(row(what, *found))
        for size, (times, words) in SIZES.items():
            of: tuple[list[dict[str, tuple[float, float]]], ...] = ([], [])
            for turn in range(max(2, turns // 3)):
                for which in (0, 1) if turn % 2 else (1, 0):
                    of[which].append(checkpoints(checkouts[which], root / "train", times, words))
            for what in ("write", "restore"):
                slower.append(row(f"{what} a checkpoint of {size}", *([one[what] for one in both] for both in of)))
            slower.append(row(f"write and restore {size}", *([_both(found)] for found in of)))
    sys.exit(any(slower))


if __name__ == "__main__":
    main()
