"""Two checkouts in turn: `python tests/benchmarks/bench_before_after.py OLD_CHECKOUT [TURNS [RUNS]]`.

Compares `dlrun --help`, `dlrun compare` of RUNS (10,000) runs, `dlrun train` up to the first training step and of one
epoch, and the training steps of an epoch. Prints medians of both: the processor time (user and system, children
included), which other work on the machine changes less than the clock, and the wall time. Then new / old: the ratio of
the medians, and the median of the ratios of each turn.
"""

from __future__ import annotations

import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_compare import template, write

TURNS, RUNS = 9, 10_000
HERE = Path(__file__).resolve().parents[2]
WORDS = ["check=none", "trainer.epochs=1", "dataset.limit=100", "trainer.report=false", "trainer.threads=1"]
EPOCHS = ["check=none", "trainer.epochs=15", "trainer.report=false", "trainer.threads=1", "trainer.device=cpu"]

# ends the process when the loop asks for the second batch
FIRST_STEP = """
import os, sys
import dlrun.cli
try:
    from dlrun.console import Screen
except ImportError:
    from dlrun.progress import Screen

def steps(self, items, *_):
    for k, item in enumerate(items):
        if k:
            os._exit(0)
        yield item

Screen.steps = steps
sys.argv = ["dlrun", "train", *sys.argv[1:]]
dlrun.cli.main()
"""
# metrics.csv gets the processor time of the loop's thread instead of the wall time
STEPS = """
import sys, time
time.perf_counter = time.thread_time
import dlrun.cli
sys.argv = ["dlrun", "train", *sys.argv[1:]]
dlrun.cli.main()
"""
COMMANDS = {
    "dlrun --help": ["-m", "dlrun", "--help"],
    "dlrun compare": ["-m", "dlrun", "compare"],
    "dlrun compare --group-seeds": ["-m", "dlrun", "compare", "--group-seeds"],
    "dlrun train, first step": ["-c", FIRST_STEP, "check=none", "trainer.threads=1"],
    "dlrun train, one epoch": ["-m", "dlrun", "train", *WORDS],
}


def process(checkout: Path, words: list[str], folder: Path) -> tuple[float, float]:
    """Processor and wall time of a fresh process, in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def steps(checkout: Path, folder: Path) -> tuple[float, float]:
    """Processor time of the training steps of one epoch, digits and its default network: median, the first omitted."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        process(checkout, ["-c", STEPS, *EPOCHS, f"run.dir={name}/run"], folder)
        with open(f"{name}/run/metrics.csv", encoding="utf-8") as file:
            seconds = [float(row["train_seconds"]) for row in csv.DictReader(file)][1:]
    found = statistics.median(seconds)
    return found, found


def line(what: str, old: list[tuple[float, float]], new: list[tuple[float, float]]) -> str:
    """A row of the table: medians in milliseconds."""
    parts = [f"{what:<30}"]
    for kind in (0, 1):
        a, b = [[times[kind] for times in found] for found in (old, new)]
        ratio = statistics.median(b) / statistics.median(a)
        turn = statistics.median(y / x for x, y in zip(a, b, strict=True))
        parts.append(f"{1000 * statistics.median(a):9.1f} {1000 * statistics.median(b):9.1f} {ratio:6.3f} {turn:6.3f}")
    return "  ".join(parts)


def main() -> None:
    """Print the table."""
    checkouts = [Path(sys.argv[1]).resolve(), HERE]
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else TURNS
    count = int(sys.argv[3]) if len(sys.argv) > 3 else RUNS
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "compare" / "outputs", *template(root / "run"), count)
        (root / "train").mkdir()
        print(f"{'milliseconds, medians':<30}  {'processor: old, new, new/old':<34}  wall: old, new, new/old")
        for what, words in [*COMMANDS.items(), ("training steps of one epoch", [])]:
            folder = root / ("compare" if "compare" in what else "train")
            found: tuple[list[tuple[float, float]], ...] = ([], [])
            # compare takes seconds, and its time differs little from turn to turn
            for turn in range(-1, turns if "compare" not in what else max(3, turns // 3)):
                for which in (0, 1) if turn % 2 else (1, 0):
                    times = process(checkouts[which], words, folder) if words else steps(checkouts[which], folder)
                    if turn >= 0:  # the turn before compiles the modules and fills the caches
                        found[which].append(times)
            print(line(what, *found), flush=True)


if __name__ == "__main__":
    main()
