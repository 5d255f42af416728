"""C10: the loss gets logits, not probabilities.

Detects: softmax, log-softmax, sigmoid, tanh, ReLU or a temperature far from 1 on the outputs. Logits may take any
value, so a copy is trained for a few steps towards large and towards small outputs; outputs that cannot go below 0,
above 1 or beyond ±1 are not logits. Cannot detect: a softmax inside the loss (the check `loss` does), or a bound far
from zero, such as that of scaled cosines, which is legitimate.
"""

from __future__ import annotations

import math
from itertools import repeat

import torch
from torch import Tensor, nn

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import replica, training, wants_log_probabilities
from dlrun.checks.smaller import small_samples
from dlrun.data.batches import Batch
from dlrun.models.outputs import logits_of
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["pooled", "probabilities"]

COUNT, STEPS = 8, 15  # so that a bias alone, after dead units, gets beyond 1
RATES = (0.1, 0.01, 0.001)  # the next one if a deep network without norms overflows
ALMOST = 1e-4
FACTORS = 0.1, 50.0  # on the output of the last layer; a learned scale of cosines is 10 to 100
TINY = 0.02
LOOKED = 5  # operations at the end of a forward pass, reshapes among them

# the last operations of a forward pass, as autograd names them; distances may be far below 0 without end
CUTTING = ("LogSigmoid", "LogBackward", "LogSoftmax", "Relu", "Softplus", "Clamp", "Hardtanh", "Threshold")
POOLING = ("MeanBackward", "AdaptiveAvgPool", "AvgPool")
MAY_BE_MEANT = ("log_softmax", "pooled")

WRONG = {
    "softmax": "outputs look like probabilities, but the loss applies softmax itself: return raw logits",
    "log_softmax": "outputs look like log-probabilities, but the loss applies log-softmax itself: return raw logits",
    "sigmoid": "outputs stay between 0 and 1: a sigmoid is applied to the logits; return its input",
    "tanh": "outputs stay between -1 and 1: a tanh, clamp or tiny factor is applied to the logits; return its input",
    "relu": "outputs never go below 0: a ReLU or softplus is applied to the logits; end with a plain nn.Linear",
    "negative": "outputs never go above 0: a log or -ReLU is applied to the logits; end with a plain nn.Linear",
    "pooled": "outputs never go below 0: they are means of ReLU outputs, as in SqueezeNet, so a class whose units die "
    "gets no gradient any more; another model, or a head without that ReLU, trains more safely",
    "raw": "outputs are raw logits, but the loss takes log-probabilities: use loss=cross_entropy, or return "
    "log_softmax(logits, 1)",
}


@check(order=100, needs_outputs=True)
def probabilities(exp: Experiment) -> Verdict:
    """Look at rows of outputs, then train them up and down to find bounds."""
    if not any(p.requires_grad for p in exp.model.parameters()):
        message = "every parameter is frozen, so there is nothing to train: unfreeze some with requires_grad_(True)"
        return Verdict(Outcome.SKIP, "frozen", "any value", message)
    x, y = small_samples(exp, COUNT)
    logits = logits_of(replica(exp)(x)).float()
    last, logits = _last(logits), logits.detach()
    low, high = float(logits.min()), float(logits.max())
    kind = _rows(logits)
    if kind is None and not (low < -1 - ALMOST and high > 1 + ALMOST):
        low, high = min(low, _pushed(exp, x, y, -1.0)), max(high, _pushed(exp, x, y, 1.0))
        kind = _range(low, high)
        if kind == "negative" and not any(name.startswith(CUTTING) for name in last):
            kind = None
        elif kind == "relu" and any(name.startswith(POOLING) for name in last):
            kind = "pooled"
    if kind in (None, "tanh") and (found := _factor(exp, x)) is not None:
        name, factor = found
        shown, what = f"{name} × {factor:.3g}", "a tiny factor, at which softmax stays at chance"
        if factor > 1:
            what = "at which softmax is certain from the start, and its gradient is 0 or huge"
        message = f"logits are the output of {name} times {factor:.3g}, {what}: return the output of {name} as it is"
        return Verdict(Outcome.FAIL if factor < TINY else Outcome.WARN, shown, "any value", message)
    if wants_log_probabilities(exp):
        kind = None if kind == "log_softmax" else kind or "raw"
    shown = f"{low:.3g} to {high:.3g}"
    if kind is None:
        return Verdict(Outcome.PASS, shown, "any value", "the loss gets logits")
    return Verdict(Outcome.WARN if kind in MAY_BE_MEANT else Outcome.FAIL, shown, "any value", WRONG[kind])


def _factor(exp: Experiment, x: Tensor) -> tuple[str, float] | None:
    """The last linear layer or convolution and the number that its output is multiplied by, if that is far from 1."""
    model, seen = replica(exp).eval(), list[tuple[str, Tensor]]()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda _m, _a, output, name=name: seen.append((name, output.detach().float())))
    with torch.no_grad():
        logits = logits_of(model(x)).float()
    if not seen or seen[-1][1].numel() != logits.numel():
        return None
    name, output = seen[-1][0], seen[-1][1].view_as(logits)
    factor = float((output * logits).sum() / output.square().sum().clamp_min(1e-30))
    if FACTORS[0] < factor < FACTORS[1] or factor <= 0:
        return None
    return (name, factor) if float((logits - factor * output).norm()) < 1e-3 * float(logits.norm()) else None


def pooled(exp: Experiment, x: Tensor) -> bool:
    """Whether the outputs of samples x (B, C, H, W) are means of what a ReLU let pass, as in SqueezeNet."""
    outputs = logits_of(replica(exp)(x))
    return float(outputs.detach().min()) >= 0 and any(name.startswith(POOLING) for name in _last(outputs))


def _last(logits: Tensor) -> list[str]:
    """The last operations of a forward pass, the last one first, as autograd names them."""
    node, found = logits.grad_fn, list[str]()
    while node is not None and len(found) < LOOKED:
        found.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    return found


def _rows(logits: Tensor) -> str | None:
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-2).all()):
        return "softmax"
    # rounding of log-probabilities in bfloat16 is 1e-2 at most
    return "log_softmax" if bool((logits.logsumexp(1).abs() < 1e-3).all()) else None


def _range(low: float, high: float) -> str | None:
    if low >= 0:
        return "sigmoid" if high <= 1 + ALMOST else "relu"
    if high <= 0:
        return "negative"
    return "tanh" if low >= -1 - ALMOST and high <= 1 + ALMOST else None


def _pushed(exp: Experiment, x: Tensor, y: Tensor, sign: float) -> float:
    """The largest (sign 1) or smallest (sign -1) output seen while a copy is trained towards it."""
    extreme = float("-inf")

    def pushed(model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = logits_of(model(batch.x)).float()
        return -sign * outputs.mean(), outputs

    for rate in RATES:
        for _, outputs in training(exp, replica(exp), repeat((x, y), STEPS), rate, objective=pushed):
            reached = float((sign * outputs).max())
            if not math.isfinite(reached):
                break
            extreme = max(extreme, reached)
            if extreme > 1 + ALMOST:
                return sign * extreme
        else:
            return sign * extreme
    return sign * extreme
