"""C2: more regularisation, more loss.

Sees: a penalty with the wrong sign, or one that does not reach the weights. Cannot see: whether its strength is wise.
"""

from __future__ import annotations

import torch

from dlrun.checks.verdict import Verdict
from dlrun.experiment import Experiment

__all__ = ["penalty"]


def penalty(exp: Experiment) -> Verdict:
    """Compare the penalty at strengths 0, λ and 10 λ on the same weights."""
    if not exp.penalty.active:
        return Verdict("skip", "off", "", "no penalty is on (R5); regularizer=l2 adds one")
    with torch.no_grad():
        values = [float(exp.penalty.scaled(f).penalty(exp.model)) for f in (0.0, 1.0, 10.0)]
    shown = " < ".join(f"{v:.4g}" for v in values)
    if values[0] < values[1] < values[2]:
        return Verdict("pass", shown, "0 < λ < 10 λ", "a stronger penalty costs more")
    return Verdict("fail", shown, "0 < λ < 10 λ", "the penalty does not grow with its strength: wrong sign, or it misses the weights")
