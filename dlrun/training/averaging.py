"""The average of the weights over the steps of a run, or over its last epochs (E3, E4, O10).

`trainer.ema=0.999` and `trainer.swa=0.25`; Izmailov et al. 2018, "Averaging weights leads to wider optima".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.config.settings import Trainer
from dlrun.errors import UserError
from dlrun.training.copies import copied
from dlrun.training.norms import running
from dlrun.training.sharded import local

__all__ = ["follow", "join", "measure", "started", "wanted"]


def wanted(trainer: Trainer) -> bool:
    """Whether weights are averaged. Raises UserError for two averages."""
    if trainer.ema and trainer.swa:
        raise UserError(f"trainer.ema={trainer.ema:g} and trainer.swa={trainer.swa:g}: give one of them")
    return bool(trainer.ema or trainer.swa)


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
    mine, theirs = ({name: local(t) for name, t in one.state_dict().items()} for one in (average, model))
    floating = [name for name, tensor in theirs.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([mine[name] for name in floating], [theirs[name] for name in floating], share)
    for name in theirs.keys() - set(floating):
        mine[name].copy_(theirs[name])


def join(average: nn.Module, model: nn.Module, count: int) -> None:
    """Make an average of count - 1 models that of count models with equal weights, in place; 1 copies the model."""
    mine, theirs = average.state_dict(), model.state_dict()
    for name, tensor in theirs.items():
        if tensor.is_floating_point() and count > 1:
            mine[name].lerp_(tensor, 1 / count)
        else:
            mine[name].copy_(tensor)


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Tensor],
    held: Collection[str] = (),
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Set the running statistics of batch norms to the mean over batches of images (B, C, H, W), in place.

    Those of `held` norms, by name, stay (model.freeze, model.hold_norms). Statistics cannot be averaged like weights.
    All other layers stay in evaluation mode, so that nothing is drawn. Forward passes, and not the making of batches,
    are in a `context`, such as autocast.
    """
    norms = [norm for name, norm in running(model).items() if name not in held]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for x in batches:
        with context():
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
