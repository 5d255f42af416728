"""Many run folders as sweeps and single runs leave them, quickly and without training: for the board."""

from __future__ import annotations

import csv
import io
import math
import random
from pathlib import Path
from typing import Any

from support.stored import config, result, write, write_run

__all__ = ["curves", "many", "one"]

# sweep.yaml of each
SWEEPS = {
    "a-rates": """search: {metric: val_acc, direction: auto}
axes:
- {key: optimizer.lr, words: [], low: 0.0001, high: 1.0, log: true}
- {key: model.width, words: ['16', '32', '64', '128'], low: 0.0, high: 0.0, log: false}
rounds: []
""",
    "b-models": """search: {metric: val_acc, direction: auto}
axes:
- {key: model, words: [cnn, resnet20, resnet56, mlp], low: 0.0, high: 0.0, log: false, group: true}
- {key: regularizer.l2, words: [], low: 0.000001, high: 0.01, log: true}
rounds: []
""",
}


def curves(path: Path, epochs: int, final: float, rng: random.Random) -> Path:
    """Write metrics.csv with accuracies that rise to `final` and losses that fall."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "epoch",
            "lr",
            "train_loss",
            "train_acc",
            "val_loss",
            "val_acc",
            "train_seconds",
            "eval_seconds",
            "samples_per_second",
        )
    )
    for epoch in range(1, epochs + 1):
        acc = final * (1 - math.exp(-5 * epoch / epochs)) + rng.gauss(0, 0.01)
        train = min(acc + 0.05 * epoch / epochs, 1.0)
        loss = 2.5 * math.exp(-3 * epoch / epochs) + 1 - final + abs(rng.gauss(0, 0.02))
        writer.writerow(
            (epoch, 0.1 * (1 - epoch / epochs), 0.8 * loss, train, loss, acc, 2.0 + rng.random(), 0.4, 3000.0)
        )
    return write(path / "metrics.csv", text.getvalue())


def one(path: Path, acc: float | None, epochs: int, rng: random.Random, status: str = "completed", **more: Any) -> Path:
    """Write a run with `epochs` rows of metrics.csv; `more` are keys of its config, with __ for dots."""
    cfg = config(**{"trainer__epochs": 30, "trainer__batch_size": 64, **more})
    said = {"epochs": epochs, "best_epoch": epochs, "seconds": 2.9 * epochs, "data": {"train": 6400, "val": 1000}}
    write_run(path, **result(cfg, acc, status=status, **said))
    if epochs:
        curves(path, epochs, acc if acc is not None else 0.1, rng)
    return path


def many(root: Path, count: int, *, epochs: int = 60, seed: int = 0) -> Path:
    """Write `count` runs: two sweeps of a tenth each (a learning rate and a width; a model and a penalty), single runs.

    One in ten diverges, one in twenty has a report.
    """
    rng, sweeps = random.Random(seed), root / "sweeps"
    for name, text in SWEEPS.items():
        write(sweeps / f"20260101-000000-{name}/sweep.yaml", text)
    for number in range(count):
        lr, width = 10 ** rng.uniform(-4, 0), rng.choice((16, 32, 64, 128))
        model, l2 = rng.choice(("cnn", "resnet20", "resnet56", "mlp")), 10 ** rng.uniform(-6, -2)
        acc = max(0.1, 0.93 - 0.08 * abs(math.log10(lr) + 1.6) + 0.0002 * width + rng.gauss(0, 0.01))
        more: dict[str, Any] = {"seed": rng.randrange(5)}
        if number < count // 10:
            path = sweeps / f"20260101-000000-a-rates/{number:04d}"
            more |= {"optimizer__lr": lr, "model__width": width}
        elif number < count // 5:
            path = sweeps / f"20260101-000000-b-models/{number - count // 10:04d}"
            more |= {"choices__model": model, "regularizer__l2": l2}
        else:
            path = root / f"runs/20260102-{number:06d}-cifar10-{model}-{number:04x}"
            more |= {"optimizer__lr": lr, "choices__model": model}
        if number % 10 == 3:
            one(path, None, max(epochs // 4, 1), rng, "diverged", **more)
        else:
            one(path, acc, epochs, rng, **more)
        if number % 20 == 0:
            write(path / "report.html", "<!doctype html><title>report</title>")
    return root
