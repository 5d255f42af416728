"""What saving costs an epoch (issue: at most 1 %, and training is not blocked).

    python tests/benchmarks/bench_saving.py                 the default network on digits
    python tests/benchmarks/bench_saving.py data/cifar10    and the cnn and resnet20 on images of this folder

Printed per setup: seconds of an epoch, of one checkpoint written on the spot (copied, serialised, flushed to the
disk), and of the training loop's own part in saving, which is to copy the state and to wait for the write before,
where that is not done yet; the last as a share of the epoch. Medians over the epochs of one run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from composed import composed

from dlrun import checkpoint, disk, engine, rundir
from dlrun.checkpoint import State
from dlrun.experiment import build


class Quiet:
    """A screen that shows nothing."""

    def steps(self, items: object, *_: object) -> object:
        return items

    def epoch(self, *_: object) -> None: ...

    def warn(self, *_: object) -> None: ...


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    def call(*words: Any, **more: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*words, **more)
        finally:
            into.append(time.perf_counter() - started)

    return call


def measure(name: str, *overrides: str) -> None:
    exp = build(composed("check=none", *overrides))
    copies: list[float] = []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        run, state = rundir.claim(str(Path(folder) / "run"), "bench", Path(folder)), State()
        patch.setattr(checkpoint, "content", timed(checkpoint.content, copies))
        patch.setattr(disk.Behind, "wait", timed(disk.Behind.wait, waits))
        engine.fit(exp, run, state, Quiet())  # type: ignore[arg-type]
        patch.undo()
        rows = rundir.metrics(run.path)
        epoch = median(float(row["train_seconds"]) + float(row["eval_seconds"]) for row in rows)
        whole: list[float] = []
        for _ in range(10):
            timed(lambda: checkpoint.write(run, checkpoint.content(exp, state), is_best=True), whole)()
        run.release()
    blocked = median(copies) + sum(waits) / len(rows)
    print(
        f"{name}: epoch {epoch:.3f} s; a checkpoint on the spot {1000 * median(whole):.1f} ms "
        f"({median(whole) / epoch:.1%}); the loop's part {1000 * blocked:.1f} ms ({blocked / epoch:.2%})",
        flush=True,
    )


if __name__ == "__main__":
    measure("cnn on digits", "trainer.epochs=30")
    for folder in sys.argv[1:]:
        data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.limit=10000", "dataset.image_size=32")
        for model in ("cnn", "resnet20"):
            measure(f"{model} on 10,000 images", f"model={model}", *data, "trainer.epochs=4")
