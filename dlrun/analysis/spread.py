"""How far two means over seeds may be apart by chance, from the spread within settings (S9).

With two or three seeds the standard deviation of one setting says little, so that those of several are pooled. Behind
`dlrun ladder` and `dlrun study`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import variance

__all__ = ["margin"]

LEVEL = 0.95  # of chance differences that are smaller than the margin


def margin(groups: Iterable[Sequence[float]], one: int, other: int) -> float:
    """Return the difference that two means over `one` and `other` seeds reach by chance (95 %), nan if it is unknown.

    The standard deviation within groups is pooled: the root of the mean of their variances, weighted by n - 1. Its
    degrees of freedom decide how many standard errors the margin has (Student's t).
    """
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom or not one or not other:
        return math.nan
    from scipy.special import stdtrit

    within = sum(variance(group) * (len(group) - 1) for group in several) / freedom
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(within * (1 / one + 1 / other))
