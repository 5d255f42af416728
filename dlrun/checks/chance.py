"""C1: the loss function is sound, and before training the loss is that of guessing.

`initial_loss` detects logits of the wrong scale: inputs that are not normalised, initial weights that are too
large, a sum instead of a mean. It cannot detect anything that leaves the logits near zero, such as layers that
never receive a gradient. `loss` evaluates the loss function alone, on logits with a known answer: it detects a
sum instead of a mean, a wrong sign, swapped arguments, a second softmax inside, labels that are off by one. It
cannot detect a loss that treats logits correctly and does not fit the task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss, fitted, named, replica, uniform
from dlrun.checks.smaller import small_samples
from dlrun.errors import first_line
from dlrun.models.loading import loaded
from dlrun.models.outputs import logits_of
from dlrun.training.experiment import Experiment
from dlrun.training.loss import prior
from dlrun.vocabulary import Outcome

__all__ = ["expected_loss", "initial_loss", "loss"]

# relative to chance. Of 320 networks of conf on digits (8 models, every activation and norm) 308 start at 0.99 to 1.53
# times chance, and residual networks with maxout, which still learn, at up to 4.7 without zero_init_residual: twice
# chance is a warning, ten times, which none comes near, a failure; and no guess beats chance by a quarter
LOW, NEAR, FAR = -0.25, 1.0, 9.0
# share of chance that the loss of confident, correct logits must fall below; a softmax inside leaves 0.63 of 10 classes
CONFIDENT = 0.4
SAMPLES = 64
SCALES = (1.0, 3.0, 10.0, 30.0)
CLASSES = 50  # at most, since each is evaluated alone


@check(order=80, needs_outputs=True)
def initial_loss(exp: Experiment) -> Verdict:
    """Compare the data loss of untrained weights with its exact value at chance: ln C, C−1, label entropy."""
    frequent = exp.cfg.model.get("output_bias") == "frequency" and not exp.data.balance
    x, y = small_samples(exp, SAMPLES, index=_as_frequent(exp) if frequent else None)
    with torch.no_grad():
        logits = logits_of(replica(exp)(x)).float()
        value = float(data_loss(exp)(logits, y))
        size = float(logits.abs().mean())
    expected, name = expected_loss(exp, y)
    off = (value - expected) / (abs(expected) or 1.0)
    shown = f"{value:.3f}", f"{expected:.3f} ({name})"
    if math.isnan(value):
        bad = int((~logits.isfinite()).any(1).sum())
        what = f"the logits of {bad} of {len(y)} samples are" if bad else "logits are finite, their loss is"
        message = f"{what} not finite: look for a root or logarithm of 0, a division by 0, or an overflow"
        return Verdict(Outcome.FAIL, *shown, message)
    if (made := loaded(exp.model)) is not None and made.head != "new":
        return Verdict(Outcome.PASS, *shown, f"the classifier is {made.head}, so its loss need not be that of guessing")
    if off > NEAR and float(logits.max()) <= 0 and float(logits.logsumexp(1).abs().max()) > 1e-3:  # no logarithms
        message = (
            f"undecided: all logits are negative (mean {float(logits.mean()):.2g}), as negative distances to points "
            "are, whose loss at the start depends on where these lie; if they are no distances, make them smaller"
        )
        return Verdict(Outcome.SKIP, *shown, message)
    if off > FAR:
        message = (
            f"the initial loss is {off + 1:.3g} times that of guessing: check the scale of the inputs, "
            "of the initial weights and of the loss" + _calmer(exp)
        )
        return Verdict(Outcome.FAIL, *shown, message)
    if value < 0:
        return Verdict(Outcome.FAIL, *shown, "the loss is negative before training: look for a wrong sign in it")
    if off > NEAR:
        message = f"overconfident before training: the logits have a mean size of {size:.2g}{_calmer(exp)}"
        return Verdict(Outcome.WARN, *shown, message)
    if off < LOW:
        message = (
            "better than guessing before training: expected of pretrained weights, else look for labels in the inputs"
        )
        return Verdict(Outcome.WARN, *shown, message)
    return Verdict(Outcome.PASS, *shown, "the loss of the untrained network is that of guessing")


def _calmer(exp: Experiment) -> str:
    """Overrides that make the initial logits smaller; a block that starts as its shortcut adds nothing to them."""
    starts = ("model.zero_init_residual=true",) if exp.cfg.model.get("skip") else ()
    return advice(exp, "model.init=default", "model.norm=batch", *starts)


def _as_frequent(exp: Experiment) -> Tensor:
    """Up to SAMPLES training samples whose classes are as frequent as in the whole split."""
    by_class = exp.data.train.labels.argsort(stable=True)
    count = min(SAMPLES, len(by_class))
    return by_class[((torch.arange(count) + 0.5) * (len(by_class) / count)).long()]


def expected_loss(exp: Experiment, y: Tensor) -> tuple[float, str]:
    """Return the loss at chance of samples with labels y (B,) and its name; C−1 and ln C do not depend on y.

    With model.output_bias=frequency chance is a guess by frequency (M7) with any loss: that of training batches, which
    dataset.balance changes, times the weights of the classes. For cross-entropy this is the entropy of the labels, if
    y are as frequent as in the batches.
    """
    function, classes = data_loss(exp), exp.num_classes
    if exp.cfg.model.get("output_bias") == "frequency":
        guess = prior(exp.data, function).log().float().to(y.device)
        name = "label entropy" if type(function).__name__ == "CrossEntropy" else "guessing by frequency"
        return float(function(guess.expand(len(y), -1), y)), name
    if hasattr(function, "chance"):
        margin = getattr(function, "margin", 1.0)
        hinge = f"{classes} - 1" if margin == 1.0 else f"({classes} - 1) × {margin:g}"
        gamma = getattr(function, "gamma", 0.0)
        focal = f"(1 - 1/{classes})^{gamma:g} ln {classes}"
        names = {"CrossEntropy": f"ln {classes}", "Hinge": hinge, "Focal": focal}
        return float(function.chance(classes)), names.get(type(function).__name__, "chance")  # type: ignore[operator]
    return float(function(uniform(exp, len(y)), y)), "uniform logits"


@check(order=70, needs_outputs=True)
def loss(exp: Experiment) -> Verdict:
    """Evaluate the loss function on logits with a known answer: uniform, correct, wrong, the same batch twice."""
    function, classes = data_loss(exp), exp.num_classes
    y = torch.arange(min(classes, CLASSES), device=exp.device)
    right = torch.nn.functional.one_hot(y, classes).float()
    even = uniform(exp, len(y))
    try:
        chance = float(function(even, y))
        twice = float(function(even.repeat(2, 1), y.repeat(2)))
        curve = [_surest(exp, function, s * right, y) for s in SCALES]
        best = float(torch.stack(curve).max(1).values.min())
        right = fitted(exp, right)
        each_right, each_wrong = _each(function, right, y), _each(function, right.roll(1, 1), y)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        message = f"the loss does not accept logits (B, {classes}) and labels (B,): {first_line(error)}; "
        message += "define forward(self, logits, labels)"
        return Verdict(Outcome.FAIL, type(error).__name__, "a number", message)
    known = hasattr(function, "chance")
    expected = float(function.chance(classes)) if known else chance  # type: ignore[operator]
    shown = f"uniform {chance:.3f}, correct {best:.3f}", f"uniform {expected:.3f}, correct lower, wrong higher"
    if not math.isfinite(chance) or not math.isfinite(best):
        lost = [exp.data.classes[c] for c in y.tolist() if not bool(torch.stack(curve)[:, c].isfinite().all())]
        message = "the loss of ordinary logits is not finite: look for a logarithm of 0 in it"
        if 0 < len(lost) < len(y):
            message = f"the loss of a sample of {named(lost)} alone is 0 / 0: the class never counts; "
            message += "look for ignore_index or a weight of 0"
        return Verdict(Outcome.FAIL, *shown, message)
    if abs(twice - chance) > 1e-3 * abs(chance):
        ratio = twice / chance if chance else math.inf
        message = f"the loss of a batch repeated twice is {ratio:.3g} times as high: "
        summed = min(abs(ratio - factor) for factor in (2, 0.5)) < 0.01
        message += (
            "return the mean over samples, with .mean() or reduction='mean'"
            if summed
            else "the loss of a sample depends on others in its batch; compute softmax and sums over the classes, dim=1"
        )
        return Verdict(Outcome.FAIL, *shown, message)
    if chance < 0:
        message = "the loss of uniform logits is negative: look for a wrong sign in it"
        if abs(chance * classes + 1) < 1e-3:
            message = f"the loss of uniform logits is -1/{classes}: nll_loss wants log_softmax, and gets probabilities"
        return Verdict(Outcome.FAIL, *shown, message)
    if abs(chance - expected) > 1e-3 * expected:
        message = f"the loss of uniform logits is {chance:.4g}, but chance() returns {expected:.4g}: fix one of them"
        return Verdict(Outcome.FAIL, *shown, message)
    bad = [exp.data.classes[c] for c in y.tolist() if not each_right[c] < chance * 1.0001 < each_wrong[c] * 1.0002]
    if bad:
        message = (
            f"the loss of a correct answer must be lower than that of a wrong one, and is not for {named(bad)}: "
            + _other(exp, function, y)
        )
        return Verdict(Outcome.FAIL, *shown, message)
    if best > CONFIDENT * chance:
        return Verdict(
            Outcome.WARN,
            *shown,
            f"the loss stays high on confident, correct logits: {_bound([float(c.max()) for c in curve])}",
        )
    return Verdict(Outcome.PASS, *shown, "a mean over samples, lower for correct answers than for wrong ones")


def _surest(exp: Experiment, function: nn.Module, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample (B,) for correct logits, the others at 0 or as far below, as a sigmoid wants them."""
    both = [_each(function, fitted(exp, made), y) for made in (logits, 2 * logits - logits.max())]
    return torch.minimum(*both)


def _bound(curve: list[float]) -> str:
    """Why the loss of correct logits of the sizes in SCALES stays high."""
    if curve[-1] > 1.05 * min(curve):
        size = SCALES[curve.index(min(curve))]
        return (
            f"it is lowest at a size of {size:g} and rises beyond: too much label smoothing, usual values are near 0.1"
        )
    if curve[-1] < 0.98 * curve[-2]:
        return (
            f"it still falls at a size of {SCALES[-1]:g}: the logits are divided by a large temperature; leave it out"
        )
    return "softmax may be applied twice; pass it raw logits"


def _other(exp: Experiment, function: nn.Module, y: Tensor) -> str:
    """Which class has the lowest loss in place of the label's, if it is the same step away for all."""
    logits = fitted(exp, 10 * torch.eye(exp.num_classes, device=exp.device))
    with torch.no_grad():
        best = torch.stack([_each(function, logits, label.expand(len(logits))).argmin() for label in y[:10]])
    steps = {int(step) for step in (best - y[:10]) % exp.num_classes}
    if len(steps) == 1 and steps != {0}:
        return f"the label of class 0 is taken for class {steps.pop()}: look for an index that is shifted"
    return "look for a wrong sign or index"


def _each(function: nn.Module, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample alone (B,)."""
    return torch.stack([function(logits[i : i + 1], y[i : i + 1]).reshape(()) for i in range(len(y))])
