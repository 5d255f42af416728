"""What the checks work on: copies, so that a run is as if they had never run.

A check sees a copy of the model without dropout, the data loss without smoothing, and plain samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dlrun.checkpoint import rng_state, set_rng_state
from dlrun.experiment import Experiment

__all__ = ["data_loss", "no_trace", "replica", "samples"]


@contextmanager
def no_trace() -> Iterator[None]:
    """Put the random state back, whatever happens inside."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


def replica(exp: Experiment) -> nn.Module:
    """Return a copy of the model in training mode with dropout off (regularisation off, C1, C3)."""
    model = copy.deepcopy(exp.model)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return model.train()


def data_loss(exp: Experiment) -> nn.Module:
    """Return a copy of the loss with label smoothing off."""
    loss = copy.deepcopy(exp.loss)
    if hasattr(loss, "label_smoothing"):
        loss.label_smoothing = 0.0  # type: ignore[assignment]
    return loss


def samples(exp: Experiment, count: int) -> tuple[Tensor, Tensor]:
    """Return up to `count` normalised training samples, classes in turn, without augmentation.

    In turn, since a folder's samples are sorted by class and twenty of one class prove nothing.
    """
    labels = exp.data.train.labels
    rank = torch.zeros_like(labels)
    for c in range(exp.num_classes):
        mine = (labels == c).nonzero().squeeze(1)
        rank[mine] = torch.arange(len(mine))
    index = torch.argsort(rank * exp.num_classes + labels, stable=True)[:count]
    x, y, _ = next(exp.batches(exp.data.train.subset(index), batch_size=count).epoch(0))
    return x, y
