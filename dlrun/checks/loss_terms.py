"""C1: the loss is a mean over samples, counts every class, and is finite for large logits; `dlrun check`.

Evaluates the loss alone, on random logits: a batch of one class against its samples one by one, each class by itself,
logits of ±10,000, and the weights by class against the frequencies. Detects: a batch averaged before a nonlinear
function (focal loss of the mean), classes that are never counted (ignore_index), a logarithm of a softmax that
underflows, weights that favour the frequent classes. Cannot detect: a loss that is all this and does not fit the task.
"""

from __future__ import annotations

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
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: see `loss`")
    shown = f"{len(y)} classes, batch {whole:.4g}, samples {each:.4g}"
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
    if not all(sure):
        message = (
            "the loss or its gradient is not finite for logits of ±10,000, which confident networks reach in few "
            "steps: use log_softmax or cross_entropy, not the logarithm of a softmax"
        )
        return Verdict(Outcome.WARN, "not finite when certain", expected, message)
    if (unlike := _weights(exp, function)) is not None:
        return Verdict(Outcome.WARN, shown, expected, unlike)
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
        (slope,) = torch.autograd.grad(value, row) if value.requires_grad else (torch.ones(1),)
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


def _weights(exp: Experiment, function: nn.Module) -> str | None:
    """A sentence if frequent classes have larger weights than rare ones, else None."""
    weight = getattr(function, "weight", None)
    counts = torch.bincount(exp.data.train.labels, minlength=exp.num_classes).float()
    if not isinstance(weight, Tensor) or weight.shape != counts.shape or counts.max() < UNEQUAL * counts.min():
        return None
    most, least = int(counts.argmax()), int(counts.argmin())
    if not weight[most] > UNEQUAL * weight[least]:
        return None
    names, ratio = exp.data.classes, float(weight[most] / weight[least])
    return (
        f"the loss weighs {names[most]}, the most frequent class, {ratio:.2g} times as much "
        f"as {names[least]}, the rarest: were the counts taken for their inverse? loss.weight=balanced does it"
    )
