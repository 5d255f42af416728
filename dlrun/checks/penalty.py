"""C2: more regularisation, more loss.

Detects: a penalty with the wrong sign, one that does not grow with its strength, one without a gradient, and
one that misses weights. Compares strengths 0, λ and 10 λ on the same weights, then checks the gradient: a step
against it must shrink the weights, all alike, and by about what the number says (dlrun/checks/strength.py): a mean over
tensors, a sum of norms, nested modules counted twice, a factor of the number of weights or samples. The data loss is
left out, since it adds the same to all three. Cannot detect: a poor choice of the strength, or weight decay inside the
optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, replica
from dlrun.checks.strength import growth, mistaken
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["penalty"]


@check(order=90, needs_outputs=True)
def penalty(exp: Experiment) -> Verdict:
    """Compare the penalty at strengths 0, λ and 10 λ, and the direction of its gradient with the weights."""
    if not exp.penalty.active:
        return Verdict(Outcome.SKIP, "off", "", "no penalty is configured; regularizer=l2 adds one")
    model = replica(exp)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.fill_(0.1)  # the penalty of weights that start at zero is zero, whatever its strength
        values = [float(exp.penalty.scaled(f).penalty(model)) for f in (0.0, 1.0, 10.0)]
    shown = " < ".join(f"{v:.4g}" for v in values), "0 < λ < 10 λ"
    if not 0 <= values[0] < values[1] < values[2]:
        message = "the penalty does not grow with its strength: multiply it by λ, and compute it from the weights"
        if values[2] < values[1] < values[0] <= 0:
            message = "the penalty is negative and rewards large weights: the sign is wrong; add it, do not subtract it"
        elif values[0] == values[1] == values[2]:
            message = "the penalty is the same at every strength: multiply it by λ"
        return Verdict(Outcome.FAIL, *shown, message + advice(exp, "regularizer=l2"))
    cost: Tensor = exp.penalty.penalty(model)
    if not cost.requires_grad:
        message = (
            "the penalty has no gradient, so it shrinks no weight: use the parameters themselves, not .data or detach()"
        )
        return Verdict(Outcome.FAIL, *shown, message)
    torch.autograd.backward(cost)
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad and p.ndim >= 2}
    reached = {n: p for n, p in weights.items() if p.grad is not None and bool(p.grad.any())}
    grows = [n for n, p in reached.items() if p.grad is not None and float((p.grad * p.detach()).sum()) < 0]
    missed = [n for n in weights if n not in reached]
    slopes = {n: p.grad for n, p in reached.items() if p.grad is not None}
    if not reached or grows:
        message = (
            "the penalty reaches no weight of the model: sum over the parameters of the model that is passed to it"
        )
        message += advice(exp, "regularizer=l2")
        if grows:
            message = f"the penalty makes {named(grows)} grow: the sign is wrong; add it, do not subtract it"
        return Verdict(Outcome.FAIL, *shown, message)
    if missed:
        message = f"the penalty misses {named(missed)}: it must include every weight" + advice(exp, "regularizer=l2")
        return Verdict(Outcome.WARN, *shown, message)
    if (wrong := growth(values) or mistaken(exp.penalty, weights, slopes)) is not None:
        return Verdict(Outcome.WARN, *shown, wrong)
    return Verdict(Outcome.PASS, *shown, "a stronger penalty is higher, and shrinks every weight")
