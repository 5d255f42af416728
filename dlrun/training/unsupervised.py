"""Training on images alone: `dlrun train objective=simclr`, autoencode, denoise, rotation (M10).

What needs labels is refused or has no value: the monitor is val_loss, the loss of the objective on validation images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dlrun.data import Batch, Split
from dlrun.training.experiment import Experiment

__all__ = ["losses", "mean_loss"]


@torch.no_grad()
def mean_loss(exp: Experiment, split: Split, model: nn.Module) -> float:
    """Return the mean loss of the objective over images, in evaluation mode and with the same draws each time.

    Batches have the size of those of training: images of a batch may be compared with each other.
    """
    model.eval()
    total = 0.0
    for step, (x, y, index) in enumerate(exp.batches(split, batch_size=exp.cfg.trainer.batch_size).epoch(0)):
        with exp.autocast():
            value, _ = exp.objective(model, exp.loss, Batch(x, y, index, step=step))
        total += float(value) * len(x)
    return total / max(len(split), 1)


def losses(exp: Experiment, split: Split, name: str) -> dict[str, Any]:
    """Return the columns of a split; those of the averaged weights too."""
    row: dict[str, Any] = {f"{name}_loss": mean_loss(exp, split, exp.model)}
    if exp.average is not None:
        row |= {f"ema_{name}_loss": mean_loss(exp, split, exp.average)}
    return row
