"""Objectives of others that take images and labels instead of a batch (`objective._target_=mine.Mixup`)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from dlrun.data.batches import Batch

__all__ = ["Unpacked", "with_batch"]

WORDS = ("x", "images", "inputs")  # names of the third argument, after the model and the loss


class Unpacked:
    """Calls an objective of (model, loss, x, y) or (model, loss, x, y, index) with the parts of a batch."""

    def __init__(self, inner: Any, indexed: bool) -> None:
        self.inner, self.indexed = inner, indexed
        self.train_acc_valid = bool(getattr(inner, "train_acc_valid", True))

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        more = (batch.index,) if self.indexed else ()
        found: tuple[Tensor, Tensor] = self.inner(model, loss, batch.x, batch.y, *more)
        return found


def with_batch(objective: Any) -> Any:
    """Return an objective that takes a batch: this one, or one that passes its parts on."""
    try:
        names = [*inspect.signature(objective).parameters]
    except (TypeError, ValueError):
        return objective
    if len(names) < 4 or names[2] not in WORDS:
        return objective
    return Unpacked(objective, indexed=len(names) > 4 and names[4] == "index")
