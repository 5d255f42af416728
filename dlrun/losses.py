"""Loss functions: from logits (B, K) and labels (B,), or shares of classes (B, K), to the mean over samples.

Reached by `loss=cross_entropy`, `loss=bce`, `loss=hinge` and `loss=focal`, with `loss.weight=balanced` (D6). `chance`
is the exact value that check C1 expects.

With class weights the mean is Σ w(y) loss / Σ w(y) over the batch, as torch.nn.CrossEntropyLoss normalises it: only the
ratios of weights matter, and uniform logits still cost `chance`. The validation loss is weighted in the same way. With
label smoothing a sample keeps the weight of its label, while torch weights each class's share: uniform logits would
then cost more or less than ln K.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.errors import UserError

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Focal", "Hinge", "Weighted", "class_weights"]

Weight = str | Sequence[float]


class Weighted(nn.Module):
    """A loss per sample (B,), `each`, and its weighted mean; weights follow from the number of samples of each class.

    `weight`: none, balanced, effective or one number per class, see `class_weights`.
    """

    class_weight: Tensor | None

    def __init__(self, weight: Weight = "none", beta: float = 0.999, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weights(weight, class_counts, beta), persistent=False)

    @abstractmethod
    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample (B,), without weights; `labels` (B,), or shares of classes (B, K)."""

    def weights(self, labels: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """Return the weight of each sample (B,): that of its class times its own; None if all count the same."""
        if self.class_weight is None:
            return weight
        found = labels @ self.class_weight if labels.is_floating_point() else self.class_weight[labels]
        return found if weight is None else found * weight

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean over samples (scalar); `weight` (B,) are weights of the samples."""
        weights = self.weights(labels, weight)
        if labels.is_floating_point() and self.class_weight is not None:
            # a sample of several classes counts as several samples, each with the weight of its class
            labels = labels * self.class_weight
            labels = labels / labels.sum(1, keepdim=True).clamp_min(torch.finfo(labels.dtype).tiny)
        losses = self.each(logits, labels)
        if weights is None:
            return losses.mean()
        weights = weights.to(losses.dtype)
        # of samples that do not count the mean is 0
        return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)


class Smoothed(Weighted):
    """A loss with the share label_smoothing of a label spread over all classes. Raises UserError outside [0, 1)."""

    def __init__(
        self,
        label_smoothing: float = 0.0,
        weight: Weight = "none",
        beta: float = 0.999,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weight, beta, class_counts)
        self.label_smoothing = _smoothing(label_smoothing)


class CrossEntropy(Smoothed):
    """Softmax cross-entropy in nats; the share label_smoothing of a label is spread over all classes.

    Label smoothing: Szegedy et al. 2016 (R3). Raises UserError when it is outside [0, 1).
    """

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_full(logits), labels, label_smoothing=self.label_smoothing, reduction="none")

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.class_weight is None and weight is None:  # one kernel
            return F.cross_entropy(_full(logits), labels, label_smoothing=self.label_smoothing)
        return super().forward(logits, labels, weight)

    def chance(self, num_classes: int) -> float:
        """ln K: the loss of uniform logits, whatever smoothing and weights."""
        return math.log(num_classes)


class BinaryCrossEntropy(Smoothed):
    """Sum over classes of the sigmoid cross-entropy in nats, each class against the others.

    The targets are 1 for the label and 0 for the others, label_smoothing of them spread evenly; linear in the targets,
    so that a mixture of the losses of two labels is the loss of the mixed labels. Raises UserError when label_smoothing
    is outside [0, 1).
    """

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        scores = _full(logits)
        shares = labels if labels.is_floating_point() else F.one_hot(labels, scores.shape[1])
        targets = shares.to(scores.dtype) * (1 - self.label_smoothing) + self.label_smoothing / scores.shape[1]
        return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(1)

    def chance(self, num_classes: int) -> float:
        """K ln 2: the loss of logits of 0, whatever smoothing and weights."""
        return num_classes * math.log(2)


class Focal(Weighted):
    """Focal loss, −(1 − p)^gamma ln p with p the probability of the label, in nats: easy samples count little.

    Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4; with `weight` equation 5. Raises UserError when
    gamma is below 0; 0 is cross-entropy.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Weight = "none",
        beta: float = 0.999,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weight, beta, class_counts)
        if not gamma >= 0.0:
            raise UserError(f"loss.gamma={gamma:g} must be 0 or more, such as 2.0")
        self.gamma = gamma

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = F.log_softmax(_full(logits), 1)
        if not labels.is_floating_point():
            log_p = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
        # the power of 1 - p has no finite slope at 0 for a gamma below 1
        easy = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) if self.gamma else torch.ones_like(log_p)
        losses = -(easy**self.gamma) * log_p
        return (losses * labels).sum(1) if labels.is_floating_point() else losses

    def chance(self, num_classes: int) -> float:
        """(1 − 1/K)^gamma ln K: the loss of uniform logits."""
        return float((1 - 1 / num_classes) ** self.gamma * math.log(num_classes))


class Hinge(Weighted):
    """Multiclass hinge: sum over j ≠ y of max(0, s_j − s_y + margin), in units of the logits.

    Sum form of Weston & Watkins 1999. Raises UserError when the margin is not above 0.
    """

    def __init__(
        self,
        margin: float = 1.0,
        weight: Weight = "none",
        beta: float = 0.999,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weight, beta, class_counts)
        if not margin > 0.0:
            raise UserError(f"loss.margin={margin:g} must be above 0, such as 1.0")
        self.margin = margin

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            raise TypeError("the hinge loss compares the scores of one class with those of all others")
        scores, index = _full(logits), labels.unsqueeze(1)
        violations = (scores - scores.gather(1, index) + self.margin).clamp_min(0.0)
        return violations.scatter(1, index, 0.0).sum(1)

    def chance(self, num_classes: int) -> float:
        """(K − 1)·margin: the loss of uniform logits."""
        return (num_classes - 1) * self.margin


def class_weights(weight: Weight, counts: Sequence[int] | None, beta: float = 0.999) -> Tensor | None:
    """Return one weight per class (K,), with mean 1, from the training images of each class; None for `none`.

    `balanced`: 1 / n, as scikit-learn's. `effective`: (1 − beta) / (1 − beta^n), the inverse of the effective number of
    n samples that overlap (Cui et al. 2019, Class-Balanced Loss, equation 2): less extreme than 1 / n for large
    classes. A list is taken as it is, scaled. Raises UserError for a wrong word or number of weights.
    """
    if weight == "none":
        return None
    if not isinstance(weight, str):
        found = torch.tensor([float(value) for value in weight], dtype=torch.float64)
        if counts is not None and len(found) != len(counts):
            raise UserError(f"loss.weight has {len(found)} values; expected {len(counts)}, one per class")
        if not bool((found > 0).all()) or not bool(found.isfinite().all()):
            raise UserError(f"loss.weight={list(weight)}: must be above 0, one per class, such as [1,5]")
    elif weight not in ("balanced", "effective"):
        raise UserError(f"loss.weight={weight}: must be none, balanced, effective or a list, one number per class")
    elif counts is None or min(counts, default=0) < 1:
        raise UserError(f"loss.weight={weight}: needs training samples of every class; type loss.weight=none")
    elif weight == "balanced":
        found = torch.as_tensor(counts, dtype=torch.float64).reciprocal()
    elif not 0 <= beta < 1:
        raise UserError(f"loss.beta={beta:g} must be at least 0 and below 1, such as 0.999")
    else:
        found = torch.tensor([(1 - beta) / (1 - beta**count) for count in counts], dtype=torch.float64)
    return (found / found.mean()).float()


def _smoothing(value: float) -> float:
    if not 0.0 <= value < 1.0:
        raise UserError(f"label_smoothing={value:g} must be at least 0 and below 1, such as 0.1")
    return value


def _full(logits: Tensor) -> Tensor:
    """At least float32: a sum of bfloat16 losses keeps two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
