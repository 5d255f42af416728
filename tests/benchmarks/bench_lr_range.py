"""Whether the rate that `dlrun lr_range` suggests is a good one (issue 4: within 1 % accuracy of the best of a grid).

    python tests/benchmarks/bench_lr_range.py                 the default network on digits, adam and sgd
    python tests/benchmarks/bench_lr_range.py data/cifar10    and resnet20 on 4,000 images of this folder

The grid is ten rates from 1e-4 to 1, geometric; every rate and the suggestion are trained with three seeds, and
means of the best validation accuracy are compared. EPOCHS=10 sets the length of a training.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

from composed import composed

from dlrun import engine, lr_range, rundir
from dlrun.checkpoint import State
from dlrun.experiment import build


class Quiet:
    """A screen that shows nothing."""

    def steps(self, items: object, *_: object) -> object:
        return items

    def epoch(self, *_: object) -> None: ...

    def warn(self, *_: object) -> None: ...


def accuracy(*overrides: str) -> float:
    """The best validation accuracy of a run; 0 where it diverges."""
    with tempfile.TemporaryDirectory() as folder:
        run, state = rundir.claim(str(Path(folder) / "run"), "bench", Path(folder)), State()
        try:
            engine.fit(build(composed(*overrides)), run, state, Quiet())  # type: ignore[arg-type]
        except engine.Diverged:
            return 0.0
        finally:
            run.release()
    return float((state.best or {})["value"])


def compare(name: str, *overrides: str) -> None:
    common = ("check=none", "trainer.diagnostics=false", "trainer.threads=1", *overrides)
    common += (f"trainer.epochs={os.environ.get('EPOCHS', '10')}",)
    low, high, seeds = 1e-7, 1.0, (1, 2, 3)
    suggested = [
        lr_range.judge(lr_range.measure(build(composed(*common, f"seed={s}")), low, high, 100), low, high).lr
        for s in seeds
    ]
    ours = mean(accuracy(*common, f"seed={s}", f"optimizer.lr={lr}") for s, lr in zip(seeds, suggested, strict=True))
    grid = {}
    for i in range(10):
        lr = 10 ** (-4 + 4 * i / 9)
        grid[lr] = mean(accuracy(*common, f"seed={s}", f"optimizer.lr={lr:.3g}") for s in seeds)
        print(f"  {name}: lr {lr:.2g} {grid[lr]:.4f}", flush=True)
    best = max(grid, key=lambda lr: grid[lr])
    verdict = "within 1 %" if ours >= grid[best] - 0.01 else "NOT within 1 %"
    print(
        f"{name}: suggested {', '.join(map(str, suggested))}: {ours:.4f}; "
        f"best of the grid {best:.2g}: {grid[best]:.4f}; {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for optimizer in ("adam", "sgd"):
        compare(f"cnn on digits, {optimizer}", f"optimizer={optimizer}")
    for folder in sys.argv[1:]:
        data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.limit=4000")
        compare("resnet20 on 4,000 images, sgd", *data, "model=resnet20", "optimizer=sgd")
