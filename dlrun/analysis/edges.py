"""Where in its range a value lies: near an edge there may be better ones beyond it (S3).

What `search.extend` and the page of a sweep ask. Imports nothing, so that every room may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["MARGIN", "beyond", "edge", "position", "spans_decades"]

MARGIN = 0.1  # of the range, in the scale of its axis (S3)
DECADES = 8.0  # largest over smallest below which a log scale shows nothing that a linear one does not


def position(value: float, low: float, high: float, *, log: bool = False) -> float:
    """Return where `value` lies between `low` (0) and `high` (1), by logarithms where the axis is `log`.

    Raises ValueError for a range that is empty, not finite or, where `log`, not positive.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        raise ValueError(f"no {'log ' if log else ''}range from {low} to {high}")
    if log:
        # a value at or below zero lies below any log axis
        value, low, high = (math.log(v) if v > 0 else -math.inf for v in (value, low, high))
    return (value - low) / (high - low)


def edge(value: float, low: float, high: float, *, log: bool = False) -> Literal["low", "high"] | None:
    """Return the edge from which `value`, the best that was found, is within a tenth of the range, or None.

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
    """Whether values look drawn on a log scale, where nothing says: log-uniform is likelier than uniform.

    Compares the largest likelihood of either distribution, and wants a ratio of at least 8 from end to end.
    """
    if not values or min(values) <= 0 or max(values) < DECADES * min(values):
        return False
    low, high = min(values), max(values)
    linear = -len(values) * math.log(high - low)
    logarithmic = -sum(map(math.log, values)) - len(values) * math.log(math.log(high / low))
    return logarithmic > linear


def beyond(
    low: float, high: float, side: Literal["low", "high"], *, log: bool = False, most: float = math.inf
) -> tuple[float, float] | None:
    """Return a range grown beyond one edge: by a decade where `log`, else by half of its length.

    A range that starts at zero or above does not grow below zero, nor any above `most`; None where none is left.
    """
    if log:
        return (low / 10, high) if side == "low" else (low, min(high * 10, most)) if high < most else None
    half = (high - low) / 2
    if side == "low":
        grown = max(low - half, 0.0) if low >= 0 else low - half
        return (grown, high) if grown < low else None
    return (low, min(high + half, most)) if high < most else None
