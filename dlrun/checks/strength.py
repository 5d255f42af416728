"""R1: what the gradient of a penalty does to the weights, compared with the number in the config (`penalty`).

A penalty is judged as L2 if its gradient points along every weight tensor, as L1 if all its entries are of one size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from torch import Tensor

from dlrun.checks.sandbox import named

__all__ = ["growth", "mistaken"]

ALONG = 0.999  # cosine of the gradient of an L2 penalty and the weights
LEVEL = 0.01  # spread of the entries of the gradient of an L1 penalty, as a share of their mean
UNEVEN = 1.5  # times as strong for one tensor as for another
EQUAL = 1.02  # times: the same but for rounding
USUAL = 0.4, 2.5  # times the number: with a half, or without, or twice that
TENFOLD = 8.0, 12.5  # times the penalty at ten times the strength


def growth(values: list[float]) -> str | None:
    """A sentence if a penalty at strengths 0, λ and 10 λ is not proportional to the strength; None if it is."""
    start, once, often = values
    if start > 1e-6 * once:
        return f"the penalty is {start:.3g} at strength 0, so it acts even if it is off: multiply all of it by λ"
    times = often / once
    if TENFOLD[0] <= times <= TENFOLD[1]:
        return None
    return f"a strength of ten times λ makes the penalty {times:.3g} times as high, not 10: multiply by λ once"


def mistaken(penalty: Any, weights: Mapping[str, Tensor], slopes: Mapping[str, Tensor]) -> str | None:
    """A sentence if tensors are penalised unlike each other, or not by about what the strength says; None if fine."""
    there = [n for n in slopes if bool(weights[n].any())]
    pairs = {n: (weights[n].detach().cpu().double(), slopes[n].cpu().double()) for n in there}
    if all(_cosine(w, g) > ALONG for w, g in pairs.values()):
        shrink = {n: float((g * w).sum() / w.square().sum()) for n, (w, g) in pairs.items()}
        return _uneven(shrink, pairs) or _off(penalty, median(shrink.values()), "l2")
    if all(float(g.abs().std()) < LEVEL * float(g.abs().mean()) for _, g in pairs.values() if g.numel() > 1):
        sizes = {n: float(g.abs().mean()) for n, (_, g) in pairs.items()}
        return _uneven(sizes, pairs) or _off(penalty, median(sizes.values()), "l1")
    return None


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300))


def _same(values: list[float]) -> bool:
    return max(values) <= EQUAL * min(values)


def _uneven(found: Mapping[str, float], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str | None:
    low, high = min(found.values()), max(found.values())
    if not low > 0 or high <= UNEVEN * low:
        return None
    if _same([k * pairs[n][0].numel() for n, k in found.items()]):
        return (
            "the penalty is a mean over each tensor and not a sum, so large layers are hardly penalised and the "
            "strength depends on their sizes: use sum() in place of mean()"
        )
    if _same([k * float(pairs[n][0].norm()) for n, k in found.items()]):
        return "the penalty is a sum of norms and not of their squares: use w.square().sum() in place of w.norm()"
    most = [n for n, k in found.items() if k > UNEVEN * low]
    times = high / low
    if abs(times - round(times)) < LEVEL * times:
        return (
            f"the penalty counts {named(most)} up to {times:.0f} times: parameters() of nested modules holds the same "
            "weights again; loop over model.parameters() once"
        )
    return None  # a strength per layer may be meant


def _off(penalty: Any, found: float, kind: str) -> str | None:
    """A sentence if the gradient is not about what the only strength says."""
    strength = _strength(penalty)
    if not strength or not math.isfinite(found):
        return None
    ratio = found / strength[1]
    if USUAL[0] <= ratio <= USUAL[1]:
        return None
    what = "shrinks weights" if kind == "l2" else "pulls at weights"
    return (
        f"the penalty {what} {ratio:.2g} times as strongly as {strength[0]}={strength[1]:g} says: divided by the "
        "number of weights or samples, or multiplied by it? The loss is a mean over samples, and gets λ·½‖w‖² or λ‖w‖₁"
    )


def _strength(penalty: Any) -> tuple[str, float] | None:
    """The name and value of the number that `scaled` multiplies, if there is a single one."""
    before, after = (vars(one) for one in (penalty, penalty.scaled(2.0)))
    found = [
        (name, float(value))
        for name, value in before.items()
        if isinstance(value, float) and value and after.get(name) == 2 * value
    ]
    return found[0] if len(found) == 1 else None
