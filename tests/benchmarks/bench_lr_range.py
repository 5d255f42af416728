"""Quality of the learning rate that `dlrun lr_range` suggests (O5: within 1 % accuracy of the best of a grid).

    python tests/benchmarks/bench_lr_range.py                 the default network on digits, adam and sgd
    python tests/benchmarks/bench_lr_range.py data/cifar10    and on 4,000 images of this folder
    RESNET=1 python tests/benchmarks/bench_lr_range.py …      and resnet20 on those, which takes twice as long again

The grid is ten rates from 1e-4 to 1, geometric; every rate and the suggestion are trained with three seeds, and the
means of the best validation accuracy are compared. 2,000 more images of the folder are the validation split: with the
usual tenth, 400, one of ten rates looks 2 % better by chance. EPOCHS sets the length of a training (default 10 on
digits, 5 on images). One training per core runs at a time, with one thread each.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

from dlrun.folders.run import claim
from dlrun.probes import lr_range
from dlrun.training import loop
from dlrun.training.checkpoint import State
from dlrun.training.experiment import build
from support.composed import composed


class Quiet:
    """A screen that shows nothing."""

    def steps(self, items: object, *_: object) -> object:
        return items

    def epoch(self, *_: object) -> None: ...

    def warn(self, *_: object) -> None: ...


def accuracy(*overrides: str) -> float:
    """The best validation accuracy of a run; 0 if it diverges."""
    with tempfile.TemporaryDirectory() as folder:
        run, state = claim(str(Path(folder) / "run"), "bench", Path(folder)), State()
        try:
            loop.fit(build(composed(*overrides)), run, state, Quiet())  # type: ignore[arg-type]
        except loop.Diverged:
            return 0.0
        finally:
            run.release()
    return float((state.best or {})["value"])


def suggestion(*overrides: str) -> float | None:
    low, high, exp = 1e-7, 1.0, build(composed(*overrides))
    points = lr_range.measure(exp, low, high, 100)
    kinds = {"normalised": lr_range.normalised(exp.model), "adaptive": lr_range.adaptive(exp.optimizer)}
    return lr_range.judge(points, low, high, **kinds).lr


def compare(pool: ProcessPoolExecutor, name: str, epochs: int, *overrides: str) -> None:
    common = ("check=none", "trainer.diagnostics=false", "trainer.threads=1", *overrides)
    common += (f"trainer.epochs={os.environ.get('EPOCHS', epochs)}",)
    seeds, rates = (1, 2, 3), [10 ** (-4 + 4 * i / 9) for i in range(10)]
    asked = [pool.submit(suggestion, *common, f"seed={s}") for s in seeds]
    grid = {lr: [pool.submit(accuracy, *common, f"seed={s}", f"optimizer.lr={lr:.3g}") for s in seeds] for lr in rates}
    suggested = [one.result() for one in asked]
    trained = [
        pool.submit(accuracy, *common, f"seed={s}", f"optimizer.lr={lr}") if lr is not None else None
        for s, lr in zip(seeds, suggested, strict=True)
    ]
    means = {}
    for lr, runs in grid.items():
        means[lr] = mean(run.result() for run in runs)
        print(f"  {name}: lr {lr:.2g} {means[lr]:.4f}", flush=True)
    ours, best = mean(run.result() if run else 0.0 for run in trained), max(means, key=lambda lr: means[lr])
    verdict = "within 1 %" if ours >= means[best] - 0.01 else "NOT within 1 %"
    print(
        f"{name}: suggested {', '.join(map(str, suggested))}: {ours:.4f}; "
        f"best of the grid {best:.2g}: {means[best]:.4f}; {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for optimizer in ("adam", "sgd"):
            compare(pool, f"cnn on digits, {optimizer}", 10, f"optimizer={optimizer}")
            for model in ("cnn", "mlp"):
                words = (f"model={model}", "model.norm=none", f"optimizer={optimizer}")
                compare(pool, f"{model} without norms on digits, {optimizer}", 10, *words)
        for folder in sys.argv[1:]:
            data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.limit=6000")
            data += ("dataset.val_fraction=0.33333",)
            for optimizer in ("adam", "sgd"):
                compare(pool, f"cnn on 4,000 images, {optimizer}", 5, *data, f"optimizer={optimizer}")
            if os.environ.get("RESNET"):
                compare(pool, "resnet20 on 4,000 images, sgd", 4, *data, "model=resnet20", "optimizer=sgd")
