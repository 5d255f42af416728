"""Objectives: a batch to (loss, logits), so that there is one training loop whatever is learned from.

Reached by `objective=supervised`.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Supervised"]


class Supervised:
    """The loss of the model's logits against the labels of the batch."""

    def __call__(self, model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        logits: Tensor = model(x)
        return loss(logits, y), logits
