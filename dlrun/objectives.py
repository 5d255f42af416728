"""Objectives: a batch to (loss, logits), so that there is one training loop whatever is learned from.

Reached by `objective=supervised` and `objective=distill objective.teacher=ENSEMBLE` (E6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

__all__ = ["Distill", "Supervised"]


class Supervised:
    """The loss of the model's logits against the labels of the batch."""

    def __call__(
        self, model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K).

        `index` (B,) numbers the samples of the training split; checks that make up samples have none.
        """
        logits: Tensor = model(x)
        return loss(logits, y), logits


class Distill:
    """Learn from the probabilities of a teacher, softened, and a little from the labels.

    alpha T² KL(teacher || student), both at temperature T, + (1 - alpha) loss: Hinton et al. 2015, Distilling the
    Knowledge in a Neural Network; T² keeps the soft gradients at the size of the hard ones. The teacher's word is
    asked once, on the images as they are, and cached on disk; the student may see them augmented. Samples without an
    index have no such word, and labels alone count. `packages` may be named by the teacher's config.
    Raises UserError when the teacher was trained on other data.
    """

    def __init__(
        self,
        teacher: str,
        data: Any,
        packages: list[str],
        device: torch.device,
        temperature: float = 4.0,
        alpha: float = 0.9,
    ) -> None:
        from dlrun.inference.teacher import log_probabilities

        self.temperature, self.alpha = temperature, alpha
        self.targets = log_probabilities(teacher, data, packages, device).to(device)  # where `index` is

    def __call__(
        self, model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        logits: Tensor = model(x)
        hard: Tensor = loss(logits, y)
        if index is None:
            return hard, logits
        heat = self.temperature
        theirs = log_softmax(self.targets[index] / heat, 1)
        mine = log_softmax(logits.float() / heat, 1)
        soft = kl_div(mine, theirs, reduction="batchmean", log_target=True)
        return self.alpha * heat**2 * soft + (1 - self.alpha) * hard, logits
