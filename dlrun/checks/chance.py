"""C1: the loss is a loss, and before training it is the loss of guessing.

`initial_loss` sees logits of a wrong scale: inputs that are not normalised, an initialisation that is too
large, a sum where a mean belongs. It cannot see anything that leaves the logits near zero, such as a trunk
that never receives a gradient. `loss` asks the loss function alone, on logits whose answer is known: it
sees a sum instead of a mean, a wrong sign, swapped arguments, a second softmax inside, labels that are off
by one. It cannot see a loss that is right about logits and wrong for the task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss, named, replica, samples
from dlrun.errors import first_line
from dlrun.training.experiment import Experiment

__all__ = ["expected_loss", "initial_loss", "loss"]

# relative to chance. Of 320 networks of conf on digits (8 models, every activation and norm) 308 start at 0.99 to 1.53
# times chance, and residual ones of maxout, which learn all the same, at up to 4.7 without zero_init_residual: twice
# chance is told, ten times, which none comes near, fails; and no guess is better than chance by a quarter
LOW, NEAR, FAR = -0.25, 1.0, 9.0
# share of chance that confident, right logits must fall under; a softmax inside leaves 0.63 for 10 classes
CONFIDENT = 0.4
SAMPLES = 64
SCALES = (1.0, 3.0, 10.0, 30.0)
CLASSES = 50  # asked one by one


@check(order=80, needs_outputs=True)
def initial_loss(exp: Experiment) -> Verdict:
    """Compare the data loss of untrained weights with its exact value at chance: ln C, C−1, label entropy."""
    x, y = samples(exp, SAMPLES, index=_as_frequent(exp) if exp.cfg.model.get("output_bias") == "frequency" else None)
    with torch.no_grad():
        logits = replica(exp)(x).float()
        value = float(data_loss(exp)(logits, y))
        size = float(logits.abs().mean())
    expected, name = expected_loss(exp, y)
    off = (value - expected) / expected
    shown = f"{value:.3f}", f"{expected:.3f} ({name})"
    if math.isnan(value):
        bad = int((~logits.isfinite()).any(1).sum())
        what = f"the logits of {bad} of {len(y)} samples are" if bad else "logits are finite, their loss is"
        message = f"{what} not finite: look for the root or logarithm of 0, a division by it, or an overflow"
        return Verdict("fail", *shown, message)
    if off > FAR:
        message = (
            f"an untrained network must guess, this one is {value / expected:.3g} times as bad: the scale of "
            "the inputs, of the initial weights or of the loss is off" + _calmer(exp)
        )
        return Verdict("fail", *shown, message)
    if value < 0:
        return Verdict("fail", *shown, "a loss under zero before training: look for a wrong sign in the loss")
    if off > NEAR:
        message = f"sure of itself before it learned anything: logits of a mean size of {size:.2g}{_calmer(exp)}"
        return Verdict("warn", *shown, message)
    if off < LOW:
        message = (
            "better than guessing before training: right for pretrained weights; else look for labels in the inputs"
        )
        return Verdict("warn", *shown, message)
    return Verdict("pass", *shown, "the untrained network guesses")


def _calmer(exp: Experiment) -> str:
    """What makes the first logits small: each residual block adds its own, unless it starts as its shortcut."""
    starts = ("model.zero_init_residual=true",) if exp.cfg.model.get("skip") else ()
    return advice(exp, "model.init=default", "model.norm=batch", *starts)


def _as_frequent(exp: Experiment) -> Tensor:
    """Up to SAMPLES training samples whose classes are as frequent as in the whole split."""
    by_class = exp.data.train.labels.argsort(stable=True)
    count = min(SAMPLES, len(by_class))
    return by_class[((torch.arange(count) + 0.5) * (len(by_class) / count)).long()]


def expected_loss(exp: Experiment, y: Tensor) -> tuple[float, str]:
    """Return the loss at chance of samples with labels y (B,) and its name; of C−1 and ln C whatever these are.

    With model.output_bias=frequency chance is a guess by frequency (M7), whatever the loss: at its best, the entropy
    of the labels, where y are as frequent as in the split.
    """
    function, classes = data_loss(exp), exp.num_classes
    if exp.cfg.model.get("output_bias") == "frequency":
        frequency = torch.bincount(exp.data.train.labels, minlength=classes).double()
        prior = (frequency / frequency.sum()).log().float().to(y.device)
        name = "entropy of the labels" if type(function).__name__ == "CrossEntropy" else "guesses by frequency"
        return float(function(prior.expand(len(y), -1), y)), name
    if hasattr(function, "chance"):
        margin = getattr(function, "margin", 1.0)
        hinge = f"{classes} - 1" if margin == 1.0 else f"({classes} - 1) × {margin:g}"
        names = {"CrossEntropy": f"ln {classes}", "Hinge": hinge}
        return float(function.chance(classes)), names.get(type(function).__name__, "chance")  # type: ignore[operator]
    return float(function(torch.zeros(len(y), classes, device=y.device), y)), "uniform logits"


@check(order=70, needs_outputs=True)
def loss(exp: Experiment) -> Verdict:
    """Ask the loss function about logits whose loss is known: uniform, right, wrong, the same batch twice."""
    function, classes = data_loss(exp), exp.num_classes
    y = torch.arange(min(classes, CLASSES), device=exp.device)
    right = torch.nn.functional.one_hot(y, classes).float()
    uniform = torch.zeros_like(right)
    try:
        chance = float(function(uniform, y))
        twice = float(function(uniform.repeat(2, 1), y.repeat(2)))
        best = min(_each(function, s * right, y).max().item() for s in SCALES)
        each_right, each_wrong = _each(function, right, y), _each(function, right.roll(1, 1), y)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        message = f"the loss cannot take logits (B, {classes}) and labels (B,): {first_line(error)}; "
        message += "write forward(self, logits, labels)"
        return Verdict("fail", type(error).__name__, "a number", message)
    known = hasattr(function, "chance")
    expected = float(function.chance(classes)) if known else chance  # type: ignore[operator]
    shown = f"uniform {chance:.3f}, right {best:.3f}", f"uniform {expected:.3f}, right less, wrong more"
    if not math.isfinite(chance) or not math.isfinite(best):
        return Verdict("fail", *shown, "the loss of plain logits is not finite; look for a log of zero in it")
    if abs(twice - chance) > 1e-3 * abs(chance):
        message = f"the same batch twice costs {twice / chance:.3g} times as much: "
        summed = min(abs(twice / chance - factor) for factor in (2, 0.5)) < 0.01
        message += (
            "end the loss with .mean(), reduction='mean'"
            if summed
            else "a sample's loss depends on others in its batch; take softmax and sums over the classes, dim=1"
        )
        return Verdict("fail", *shown, message)
    if chance < 0:
        return Verdict("fail", *shown, "the loss of a guess is negative: look for a wrong sign in the loss")
    if abs(chance - expected) > 1e-3 * expected:
        message = (
            f"uniform logits cost {chance:.4g} where the loss's own chance() says {expected:.4g}; mend one of them"
        )
        return Verdict("fail", *shown, message)
    bad = [exp.data.classes[c] for c in y.tolist() if not each_right[c] < chance * 1.0001 < each_wrong[c] * 1.0002]
    if bad:
        message = (
            f"a right answer must cost less than a wrong one, and does not for {named(bad)}: "
            "look for a wrong sign or index"
        )
        return Verdict("fail", *shown, message)
    if best > CONFIDENT * chance:
        message = "even sure and right logits cost much: is softmax applied twice? pass it plain logits"
        return Verdict("warn", *shown, message)
    return Verdict("pass", *shown, "a mean over samples, and right costs less than wrong")


def _each(function: nn.Module, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of every sample for itself (B,)."""
    return torch.stack([function(logits[i : i + 1], y[i : i + 1]).reshape(()) for i in range(len(y))])
