"""The running average of the weights over the steps of a run (`trainer.ema=0.999`, E3, E4, O10)."""

from __future__ import annotations

import torch
from torch import nn

from dlrun.training.copies import copied

__all__ = ["follow", "started"]


def started(model: nn.Module) -> nn.Module:
    """Return the running average as it starts: a copy of the model, which no optimizer changes."""
    return copied(model).requires_grad_(False).eval()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Update an average in place, after `step` optimizer steps.

    average ← d average + (1 - d) model with d = min(decay, (1 + step) / (10 + step)): the warm-up, as in
    TensorFlow's ExponentialMovingAverage, makes the random initial weights count little. Running statistics of batch
    norm are averaged like weights, so that they fit them; counters are copied.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    mine, theirs = average.state_dict(), model.state_dict()
    floating = [name for name, tensor in theirs.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([mine[name] for name in floating], [theirs[name] for name in floating], share)
    for name in theirs.keys() - set(floating):
        mine[name].copy_(theirs[name])
