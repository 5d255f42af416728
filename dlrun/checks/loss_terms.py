"""C1: the loss is a mean over samples, counts every class, and is finite for large logits; `dlrun check`.

Evaluates the loss alone, on random logits: a batch of one class against its samples one by one, each class by itself,
logits of ±10,000, and the gradient of each class against the frequencies. Detects: a loss without a gradient, a batch
averaged before a nonlinear function (focal loss of the mean), samples that are given the labels of others, classes that
are never counted (ignore_index), a logarithm of a softmax that underflows, a temperature, a mean over classes as well
as samples, too much label smoothing, weights that favour the frequent classes or balance them twice. Cannot detect: a
loss that is all this and does not fit the task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss, fitted, named
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["loss_terms"]

COUNT, CLASSES = 8, 50  # samples of a class; classes at most
OFF = 1e-3  # relative: rounding of float32 is 1e-6
CERTAIN = 1e4
UNEQUAL = 1.2  # largest : smallest class, above which weights by class should say something
OWN = 0.9  # cosine of a sample's gradient in a batch with that alone: a weight changes its length, not its direction
HEATED = 0.3, 5.0  # times the gradient of cross-entropy at uniform logits
SMOOTHED = 0.5  # of the label's weight given to others


@check(order=72, needs_outputs=True)
def loss_terms(exp: Experiment) -> Verdict:
    """Compare the loss of batches with that of their samples, and of every class with that of the others."""
    function, classes = data_loss(exp), exp.num_classes
    expected = "a mean over samples that counts every class"
    generator = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(COUNT, classes, generator=generator)).to(exp.device)
    y = torch.arange(min(classes, CLASSES), device=exp.device)
    try:
        whole, each = _batch(function, fitted(exp, scores), y[:1].expand(COUNT))
        alone, slopes = _classes(function, fitted(exp, scores[:1].expand(len(y), -1) - 2), y)
        sure = [_extreme(exp, function, y, sign) for sign in (1.0, -1.0)]
        gradients = _Gradients(exp, function, scores, y)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: see `loss`")
    shown = f"{len(y)} classes, batch {whole:.4g}, samples {each:.4g}"
    if not gradients.any:
        message = (
            "the loss has no gradient, so nothing is learned: look for detach(), .data, .item(), argmax, no_grad() or "
            "numpy in it"
        )
        return Verdict(Outcome.FAIL, "no gradient", expected, message)
    silent = [exp.data.classes[c] for c in y.tolist() if not (alone[c].isfinite() and slopes[c] > 0)]
    if 0 < len(silent) < len(y):
        message = (
            f"the loss never counts {named(silent)}: its samples have no gradient, so the class is never learned; "
            "look for ignore_index, a weight of 0 or a mask"
        )
        return Verdict(Outcome.FAIL, f"{len(silent)} of {len(y)} classes not counted", expected, message)
    if abs(whole - each) > OFF * max(abs(each), 1e-3):
        message = (
            f"the loss of {COUNT} samples of one class is {whole:.4g}, the mean of their losses {each:.4g}: it "
            "averages before a nonlinear function; compute the cost of each sample (reduction='none'), and average last"
        )
        return Verdict(Outcome.WARN, shown, expected, message)
    if (stray := gradients.stray()) is not None:
        return Verdict(Outcome.FAIL, shown, expected, stray)
    if not all(sure):
        message = (
            "the loss or its gradient is not finite for logits of ±10,000, which confident networks reach in few "
            "steps: use log_softmax or cross_entropy, not the logarithm of a softmax"
        )
        return Verdict(Outcome.WARN, "not finite when certain", expected, message)
    for doubt in (gradients.heat(), _smoothing(exp), _weights(exp, gradients.sizes)):
        if doubt is not None:
            return Verdict(Outcome.WARN, shown, expected, doubt)
    return Verdict(Outcome.PASS, shown, expected, "a mean over samples; every class counts")


def _batch(function: nn.Module, scores: Tensor, y: Tensor) -> tuple[float, float]:
    """The loss of a batch, and the mean of the losses of its samples."""
    with torch.no_grad():
        each = [float(function(scores[i : i + 1], y[i : i + 1])) for i in range(len(y))]
        return float(function(scores, y)), sum(each) / len(each)


def _classes(function: nn.Module, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of one sample of each class, and the size of its gradient by the logits."""
    losses, slopes = [], []
    for i in range(len(y)):
        row = scores[i : i + 1].detach().clone().requires_grad_()
        value = function(row, y[i : i + 1])
        (slope,) = torch.autograd.grad(value, row) if value.requires_grad else (torch.ones_like(row),)
        losses.append(value.detach())
        slopes.append(slope.abs().max())
    return torch.stack(losses), torch.stack(slopes)


def _extreme(exp: Experiment, function: nn.Module, y: Tensor, sign: float) -> bool:
    """Whether loss and gradient are finite for very large logits, right or wrong ones."""
    scores = sign * CERTAIN * nn.functional.one_hot(y, exp.num_classes).float()
    scores.requires_grad_()
    value = function(fitted(exp, scores), y)
    if not bool(value.isfinite()):
        return False
    return not value.requires_grad or bool(torch.autograd.grad(value, scores)[0].isfinite().all())


class _Gradients:
    """The gradients of the loss by the logits, in a batch of several classes, alone, and at uniform logits."""

    def __init__(self, exp: Experiment, function: nn.Module, scores: Tensor, y: Tensor) -> None:
        self.classes, self.known = exp.num_classes, hasattr(function, "chance")
        labels = y[torch.arange(len(scores), device=y.device) % len(y)]
        rows = fitted(exp, scores)
        self.whole = _slope(function, rows, labels)
        self.any = self.whole is not None
        self.alone = [_slope(function, rows[i : i + 1], labels[i : i + 1]) for i in range(len(rows))]
        even = fitted(exp, torch.zeros(len(y), exp.num_classes, device=exp.device))
        level = _slope(function, even, y)
        self.sizes = torch.zeros(len(y)) if level is None else level.norm(dim=1).cpu() * len(y)
        self.level = 0.0 if level is None else float(level.gather(1, y[:, None]).abs().mean()) * len(y)
        with torch.no_grad():
            self.even, heat = float(function(even, y)), self.level / (1 - 1 / exp.num_classes)
            softened = nn.functional.cross_entropy(5 * heat * scores, labels)
            self.softens = abs(float(function(fitted(exp, 5 * scores), labels)) - float(softened)) < 0.01 * float(
                softened
            )

    def stray(self) -> str | None:
        """A sentence if samples in a batch are pulled to other classes than alone, else None."""
        off = 0
        for i, one in enumerate(self.alone):
            if one is not None and self.whole is not None and bool(one.any()) and bool(self.whole[i].any()):
                off += float(torch.cosine_similarity(self.whole[i], one[0], dim=0)) < OWN
        if 2 * off < len(self.alone):
            return None
        return (
            f"{off} of {len(self.alone)} samples are pulled to the labels of others in their batch: pick the logit of "
            "each label with gather(1, labels[:, None]), not with [:, labels], and compute softmax over dim=1"
        )

    def heat(self) -> str | None:
        """A sentence if the loss is cross-entropy of logits that it scales, or its mean over classes, else None."""
        chance = math.log(self.classes)
        if self.known or not self.level:
            return None
        if abs(self.even * self.classes - chance) < OFF * chance:
            return (
                f"the loss of uniform logits is ln {self.classes} / {self.classes}: a mean over the classes as well as "
                "the samples makes every gradient so much smaller; use reduction='batchmean', or sum(1).mean()"
            )
        ratio = self.level / (1 - 1 / self.classes)
        if self.softens and not HEATED[0] < ratio < HEATED[1]:
            return (
                f"the gradient at uniform logits is {ratio:.2g} times that of cross-entropy: the loss divides the "
                f"logits by about {1 / ratio:.2g}; leave out this temperature, which belongs to distillation"
            )
        return None


def _slope(function: nn.Module, scores: Tensor, y: Tensor) -> Tensor | None:
    """The gradient of the loss by the logits (B, K), None if it has none."""
    scores = scores.detach().clone().requires_grad_()
    value = function(scores, y)
    if not value.requires_grad:
        return None
    found: Tensor | None = torch.autograd.grad(value, scores, allow_unused=True)[0]
    return found


def _smoothing(exp: Experiment) -> str | None:
    share = getattr(exp.loss, "label_smoothing", 0.0)
    if not isinstance(share, float) or share <= SMOOTHED:
        return None
    return (
        f"label smoothing gives {share:.0%} of each label's weight to all classes alike: was the share that the label "
        f"keeps meant? Type label_smoothing={1 - share:.2g}, usual values are near 0.1"
    )


def _weights(exp: Experiment, sizes: Tensor) -> str | None:
    """A sentence if weights by class, seen in the gradients (K,), and frequencies do not fit, else None."""
    counts = torch.bincount(exp.data.train.labels, minlength=exp.num_classes).float()
    if len(sizes) != len(counts) or counts.max() < UNEQUAL * counts.min() or not float(sizes.min()) > 0:
        return None
    most, least = int(counts.argmax()), int(counts.argmin())
    names, ratio, uneven = exp.data.classes, float(sizes[most] / sizes[least]), float(counts[most] / counts[least])
    if ratio > UNEQUAL:
        return (
            f"the loss weighs {names[most]}, the most frequent class, {ratio:.2g} times as much "
            f"as {names[least]}, the rarest: were the counts taken for their inverse? loss.weight=balanced does it"
        )
    if exp.data.balance and 1 / ratio > max(UNEQUAL, math.sqrt(uneven)):
        return (
            f"the classes are balanced twice, by dataset.balance and by the loss, which weighs {names[least]}, the "
            f"rarest, {1 / ratio:.2g} times as much as {names[most]}: type loss.weight=none or dataset.balance=false"
        )
    return None
