"""Train briefly with a Watch, as the loop does, and return the input of verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dlrun.analysis import verdicts
from dlrun.analysis.finding import Finding
from dlrun.data.batches import Batch
from dlrun.training import loop
from dlrun.training.diagnostics import Watch
from dlrun.training.experiment import Experiment, build
from support.composed import composed


@dataclass
class Watched:
    """The rows of metrics.csv and layers.csv that a run would have written."""

    exp: Experiment
    metrics: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    histograms: list[Any] = field(default_factory=list)
    status: str = "completed"

    @property
    def config(self) -> Any:
        return self.exp.cfg.plain

    def findings(self) -> list[Finding]:
        return verdicts.judge(self.metrics, self.layers, self.config, self.exp.data.record(), self.status)


def watched(*overrides: str, change: Callable[[Experiment], None] = lambda exp: None, watch: bool = True) -> Watched:
    """Train to the end or to a loss that is not finite; `change` may alter the experiment first."""
    exp = build(composed("check=none", "trainer.threads=1", *overrides))
    change(exp)
    found, eye = Watched(exp), Watch(exp) if watch else None
    for epoch in range(1, exp.cfg.trainer.epochs + 1):
        exp.model.train()
        sums, seen, steps = torch.zeros(4, dtype=torch.float64), 0, len(exp.train)
        for i, (x, y, _) in enumerate(exp.train.epoch(epoch)):
            exp.scheduler.set(epoch - 1 + i / steps)
            if eye is None:
                sums += torch.stack(loop.step(exp, Batch(x, y)))
            else:
                with eye.step(i, steps):
                    sums += torch.stack(loop.step(exp, Batch(x, y)))
            seen += len(y)
            if not math.isfinite(float(sums[0])):
                found.status = "diverged"
                return found
        row = {
            "epoch": epoch,
            "lr": exp.scheduler.lr,
            "train_loss": float(sums[0]) / seen,
            "train_acc": float(sums[1]) / seen,
        }
        row.update(loop.scores(exp, loop.predict(exp, exp.val), "val"))
        exp.scheduler.end_epoch(row[exp.cfg.trainer.monitor])
        if eye is not None:
            look = eye.look(epoch)
            row.update(update_ratio=look.update_ratio, dead_fraction=look.dead_fraction)
            found.layers += look.rows
            found.histograms.append(look.histograms)
        found.metrics.append(row)
    return found
