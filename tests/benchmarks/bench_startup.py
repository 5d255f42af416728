"""Startup time of dlrun: `python tests/benchmarks/bench_startup.py` on an idle machine.

Prints medians in milliseconds, and the time beyond the start of the interpreter itself. Targets: --help under 60 ms
beyond it, a config error under 500 ms in total. Then the time of `dlrun train` on digits to the end of its first
training step, with and without checks, against importing torch and torchvision alone: at most 1.5 times.
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

FIRST_STEP = """
import os, sys
from dlrun import cli
from dlrun.run import execute

begun = execute._train

def train(*words):
    from dlrun.training import loop
    from dlrun.console import Screen

    def steps(self, items, *_):
        for k, item in enumerate(items):
            if k:
                os._exit(0)  # asked for the second batch: the first step is done
            yield item

    Screen.steps = steps
    return begun(*words)

execute._train = train
sys.argv = ["dlrun", "train", *sys.argv[1:]]
cli.main()
"""
STARTS = {
    "import torch, torchvision": ["-c", "import torch, torchvision"],
    "first step, check=none": ["-c", FIRST_STEP, "check=none"],
    "first step, checks remembered": ["-c", FIRST_STEP],
    "first step, every check": ["-c", FIRST_STEP, "check.fresh=true"],
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
        for commands in (COMMANDS, STARTS):
            found = {name: milliseconds(words, folder) for name, words in commands.items()}
            start = next(iter(found.values()))
            for name, value in found.items():
                print(f"{name:<36}{value:8.1f} ms {value - start:+9.1f} ms {value / start:6.2f} x", flush=True)


if __name__ == "__main__":
    main()
