"""Where a value lies in its range, and how a range grows beyond an edge, where better values may lie (S3).

`search.extend`, the terminal and the page of a sweep share these rules. Imports nothing of dlrun, so any package may
import it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["MARGIN", "beyond", "edge", "listed_beyond", "near_edge", "position", "spans_decades", "typed"]

MARGIN = 0.1  # of the range, in the scale of its axis (S3)
DECADES = 8.0  # largest over smallest below which a log scale shows nothing that a linear one does not


def position(value: float, low: float, high: float, *, log: bool = False) -> float:
    """Return where `value` lies between `low` (0) and `high` (1), by logarithms if the axis is `log`.

    Raises ValueError for a range that is empty, not finite or, with `log`, not positive.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        raise ValueError(f"no {'log ' if log else ''}range from {low} to {high}")
    if log:
        # a value at or below zero lies below any log axis
        value, low, high = (math.log(v) if v > 0 else -math.inf for v in (value, low, high))
    return (value - low) / (high - low)


def edge(value: float, low: float, high: float, *, log: bool = False) -> Literal["low", "high"] | None:
    """Return the edge of the range that `value` is near, within a tenth of the range; None if it is near neither.

    A range of one point has no edges.
    """
    if not low < high:
        return None
    place = position(value, low, high, log=log)
    slack = 1e-9  # a point exactly a tenth away must not depend on rounding
    if place <= MARGIN + slack:
        return "low"
    return "high" if place >= 1 - MARGIN - slack else None


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values of unknown origin look drawn on a log scale: log-uniform is likelier than uniform.

    Compares the largest likelihood of either distribution; the largest value must be at least 8 times the smallest.
    """
    if not values or min(values) <= 0 or max(values) < DECADES * min(values):
        return False
    low, high = min(values), max(values)
    linear = -len(values) * math.log(high - low)
    logarithmic = -sum(map(math.log, values)) - len(values) * math.log(math.log(high / low))
    return logarithmic > linear


def beyond(
    low: float, high: float, side: Literal["low", "high"], *, log: bool = False, whole: bool = False
) -> tuple[float, float] | None:
    """Return a range with as much again beyond one edge, in its scale: 1e-3 to 1e-1 grows to 1e-5 to 1e-1.

    A range that starts at zero or above does not grow below zero, one of `whole` numbers that starts at 1 or above not
    below 1. None if nothing is left to grow into.
    """
    wider = _doubled(low, high, side, log)
    if whole:
        floor = 1 if low >= 1 else -math.inf
        wider = max(math.ceil(wider[0]), floor), math.floor(wider[1])
    return None if wider == (low, high) else wider


def _doubled(low: float, high: float, side: str, log: bool) -> tuple[float, float]:
    step = high / low if log else high - low
    if side == "high":
        return low, high * step if log else high + step
    if log:
        return low / step, high
    return max(low - step, 0.0) if low >= 0 else low - step, high


def listed_beyond(values: Sequence[float], side: Literal["low", "high"], *, log: bool = False) -> list[float]:
    """Return the values of a list mirrored at one edge, in its scale: 1, 10, 100 grow by 1000 and 10000.

    Whole numbers stay whole.
    """
    found = sorted(map(float, values))
    pivot = found[0] if side == "low" else found[-1]
    more = [pivot * pivot / v if log else 2 * pivot - v for v in found if v != pivot]
    return [round(v) for v in more] if all(isinstance(v, int) for v in values) else more


def typed(key: str, low: float, high: float, *, log: bool = False, whole: bool = False) -> str:
    """Return the override that searches a range, as `dlrun train -m` reads it; a shell needs no quotes."""
    form = {(True, True): "logint", (True, False): "loguniform", (False, True): "int", (False, False): "uniform"}
    return f"{key}={form[log, whole]}:{low:.4g}:{high:.4g}"


def near_edge(name: str, value: float, low: float, high: float, side: str, advice: str) -> str:
    """Return the warning that the best value of a range lies near its edge, with what to do about it."""
    return (
        f"edge: the best {name}, {value:.4g}, is within a tenth of the {side} edge of its range, "
        f"{low:.4g} to {high:.4g}: better values may lie beyond it; {advice}"
    )
