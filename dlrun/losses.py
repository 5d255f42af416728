"""Loss functions: from logits (B, K) and labels (B,) to the mean over samples.

Reached by `loss=cross_entropy` and `loss=hinge`. `chance` is the exact value that check C1 expects.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.errors import UserError

__all__ = ["CrossEntropy", "Hinge"]


class CrossEntropy(nn.Module):
    """Softmax cross-entropy in nats; the share label_smoothing of a label is spread over all classes.

    Label smoothing: Szegedy et al. 2016 (R3). Raises UserError when it is outside [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"label_smoothing={label_smoothing:g} must be at least 0 and below 1, such as 0.1")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_full(logits), labels, label_smoothing=self.label_smoothing)

    def chance(self, num_classes: int) -> float:
        """ln K: the loss of uniform logits, whatever the smoothing."""
        return math.log(num_classes)


class Hinge(nn.Module):
    """Multiclass hinge: sum over j ≠ y of max(0, s_j − s_y + margin), in units of the logits.

    Sum form of Weston & Watkins 1999. Raises UserError when the margin is not above 0.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        if not margin > 0.0:
            raise UserError(f"loss.margin={margin:g} must be above 0, such as 1.0")
        self.margin = margin

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        scores, index = _full(logits), labels.unsqueeze(1)
        violations = (scores - scores.gather(1, index) + self.margin).clamp_min(0.0)
        return violations.scatter(1, index, 0.0).sum(1).mean()

    def chance(self, num_classes: int) -> float:
        """(K − 1)·margin: the loss of uniform logits."""
        return (num_classes - 1) * self.margin


def _full(logits: Tensor) -> Tensor:
    """At least float32: a sum of bfloat16 losses keeps two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
