"""Batch norm whose running statistics fit the planned training (`dlrun train model=torchvision`, M3, M5).

A running statistic is m new + (1 - m) old at every step, so (1 - m)^steps of its start, 0 and 1, is left. Networks made
for 100,000 steps have a small momentum m: 0.01 in MobileNetV3, 0.0003 in MnasNet. In a training of a few hundred steps
their statistics stay near the start, and evaluation is at chance while training is not.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dlrun.config.settings import Trainer

__all__ = ["fit_momentum", "held", "left", "parts", "planned", "running", "was"]

USUAL = 0.1  # torch's default: it is never exceeded, and norms that have it or more are left as they are
# of the start, after this part of the training: the epochs after it are evaluated with statistics of the data alone
FORGOTTEN, EARLY = 0.01, 0.2


def running(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms that keep running statistics, by name."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name: m for name, m in norms.items() if m.track_running_stats and m.running_mean is not None}


def held(model: nn.Module) -> set[str]:
    """Return the names of those that keep their statistics while the model trains; it is in training mode afterwards.

    See model.freeze and model.hold_norms.
    """
    return {name for name, norm in running(model.train()).items() if not norm.training}


def parts(batch: int, accumulate: int) -> int:
    """Return in how many parts a batch is computed; each has two samples or more, which batch norm needs."""
    return max(1, min(accumulate, batch // 2))


def planned(trainer: Trainer, samples: int) -> int:
    """Return how often the whole training updates running statistics: once per part of a batch."""
    return trainer.epochs * -(-samples // trainer.batch_size) * parts(trainer.batch_size, trainer.accumulate)


def fit_momentum(model: nn.Module, steps: int) -> None:
    """Raise a momentum that is too small for so many training steps in all, to 0.1 at most."""
    needed = 1 - FORGOTTEN ** (1 / max(1.0, EARLY * steps))
    for norm in running(model).values():
        if norm.momentum and norm.momentum < min(needed, USUAL):
            norm.raised_from = norm.momentum  # type: ignore[assignment]
            norm.momentum = min(needed, USUAL)


def was(norm: _BatchNorm) -> float | None:
    """Return the momentum that the network was built with; None stands for the mean over all batches."""
    return getattr(norm, "raised_from", norm.momentum)


def left(momentum: float | None, steps: int) -> float:
    """Return the share of its start that is left in a running statistic after so many steps."""
    return 0.0 if momentum is None else float((1 - momentum) ** steps)
