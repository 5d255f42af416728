"""Sweep folders like those of finished sweeps, without training: for the tests of tables, plots and reports."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

from support.stored import config, result, write, write_run


def trial(folder: Path, acc: float | None, status: str = "completed", reason: str = "", **changes: Any) -> Path:
    """Add a run to a sweep, with three epochs of metrics if it has an accuracy; the runs end a minute apart."""
    number = len(list(folder.glob("*"))) if folder.is_dir() else 0
    clock = [time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(1.7e9 + 60 * (number + k))) for k in (0, 1)]
    more = {"started": clock[0], "ended": clock[1], "reason": reason, "data": {"val": 100}, "seconds": 60.0}
    path = write_run(folder / f"{number:04d}", **result(config(**changes), acc, status=status, **more))
    if acc is not None:
        rows = [f"{epoch},{1 - acc * epoch / 3},{acc * epoch / 3}" for epoch in (1, 2, 3)]
        write(path / "metrics.csv", "\n".join(["epoch,val_loss,val_acc", *rows]) + "\n")
    return path


def rate(folder: Path, count: int, **changes: Any) -> None:
    """A sweep whose score depends on the learning rate, not on the penalty; rates above 0.3 diverge."""
    rng = random.Random(0)
    for _ in range(count):
        lr, l2 = 10 ** rng.uniform(-5, 0), 10 ** rng.uniform(-6, -2)
        cfg = {"optimizer__lr": lr, "regularizer__l2": l2, **changes}
        if lr > 0.3:
            nan = f"the loss is nan at epoch {rng.randint(1, 3)}, with lr {lr:.3g}: try optimizer.lr={lr / 10:.2g}"
            trial(folder, 0.1, "diverged", nan, **cfg)
        else:
            trial(folder, 0.9 - 0.1 * abs(math.log10(lr) + 2), **cfg)
