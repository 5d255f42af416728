"""Cost of diagnostics: the same training with and without them, in turns (issue 4: at most 3 %).

    python tests/benchmarks/bench_diagnostics.py                 the default network on digits
    python tests/benchmarks/bench_diagnostics.py data/cifar10    and resnet20 on 4,000 images of this folder

One experiment trains every epoch twice, with and without diagnostics, in an alternating order: two experiments would
differ in their memory layout. An epoch includes its validation. Two costs are printed: the processor time of the
diagnostics divided by that of the surrounding epochs, which is valid on a busy machine too, and the wall-time ratio
of epochs with and without them, which needs an idle one. The first epoch is omitted.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from dlrun.data.batches import Batch
from dlrun.training import loop
from dlrun.training.diagnostics import Watch
from dlrun.training.experiment import Experiment, build
from support.composed import composed


class Stopwatch:
    """Adds up processor time."""

    seconds = 0.0

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self.started


def epoch(exp: Experiment, number: int, watch: Watch | None, inside: Stopwatch) -> None:
    """Train one epoch and validate."""
    exp.model.train()
    total, steps = torch.zeros(4, dtype=torch.float64, device=exp.device), len(exp.train)
    for i, (x, y, _) in enumerate(exp.train.epoch(number)):
        exp.scheduler.set(number - 1 + i / steps)
        if watch is not None:
            measured = watch.step(i, steps)
            with inside:
                measured.__enter__()
        total += torch.stack(loop.step(exp, Batch(x, y)))
        if watch is not None:
            with inside:
                measured.__exit__(None, None, None)
    loop.scores(exp, loop.predict(exp, exp.val), "val")
    if watch is not None:
        with inside:
            watch.look(number)


def measure(name: str, turns: int, *overrides: str) -> None:
    threads = os.environ.get("OMP_NUM_THREADS", "0")
    exp = build(composed("check=none", f"trainer.epochs={turns}", f"trainer.threads={threads}", *overrides))
    watch = Watch(exp)
    epoch(exp, 1, watch, Stopwatch())
    clock, used, inside = {True: 0.0, False: 0.0}, {True: Stopwatch(), False: Stopwatch()}, Stopwatch()
    for number in range(2, turns + 1):
        for watched in (True, False) if number % 2 else (False, True):
            started = time.perf_counter()
            with used[watched]:
                epoch(exp, number, watch if watched else None, inside)
            clock[watched] += time.perf_counter() - started
    share = inside.seconds / (used[True].seconds - inside.seconds)
    print(
        f"{name}: {clock[False] / (turns - 1):.3f} s an epoch; inside the watch {share:.1%} of the processor time; "
        f"watched epochs {clock[True] / clock[False] - 1:+.1%} on the clock ({turns} epochs each)",
        flush=True,
    )


if __name__ == "__main__":
    for _ in range(5):
        measure("cnn on digits", 30)
    for folder in sys.argv[1:]:
        data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.limit=4000")
        measure("resnet20 on 4,000 images", 6, *data, "model=resnet20")
