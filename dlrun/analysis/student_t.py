"""The p value of a t-test, without importing scipy, which takes longer than `dlrun compare` on few runs (S9)."""

from __future__ import annotations

import math

__all__ = ["two_sided"]

STEPS = 10_000  # the fraction converges within a few times the root of the degrees of freedom


def two_sided(t: float, freedom: float) -> float:
    """Return the probability of a value of Student's t at least as far from zero; `freedom` need not be whole.

    The regularised incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t²) (Abramowitz and
    Stegun 1964, 26.7.1), to about 12 digits.
    """
    x, rest = freedom / (freedom + t * t), t * t / (freedom + t * t)
    if not x or not rest:
        return 0.0 if rest else 1.0
    a, b = freedom / 2, 0.5
    factor = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return factor * _fraction(a, b, x) / a
    return 1 - factor * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (26.5.8), by Lentz's method (1976, Appl. Opt. 15)."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            found *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return found
