"""How far two means over seeds may be apart by chance, from the spread of all settings of one sweep (S9).

With two or three seeds the standard deviation of one setting says little, so that those of all settings are pooled.
Behind `dlrun ladder` and `dlrun study`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import variance

__all__ = ["margin", "pooled"]

ERRORS = 2.0  # standard errors of a difference: about 95 % of chance differences are smaller


def pooled(groups: Iterable[Sequence[float]]) -> float:
    """Return the standard deviation within groups: the root of the mean of their variances, weighted by n - 1.

    nan if no group has two values.
    """
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return math.nan
    return math.sqrt(sum(variance(group) * (len(group) - 1) for group in several) / freedom)


def margin(deviation: float, one: int, other: int) -> float:
    """Return the difference that two means over `one` and `other` seeds reach by chance: two standard errors."""
    return ERRORS * deviation * math.sqrt(1 / one + 1 / other) if one and other else math.nan
