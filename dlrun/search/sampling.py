"""The values of each trial: `search=random|grid|grid_jitter|sobol`, a function of seed and number alone.

So a resumed search draws the same values (S1, S2). `search=tpe` learns from results: dlrun/search/study.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from dlrun.search.space import Axis, grid, size

__all__ = ["draw", "draws", "pick", "unseen"]


def pick(sampler: str, axes: Sequence[Axis]) -> str:
    """Return the sampler that `auto` means: a grid of lists, random if any axis is a range (S1)."""
    if sampler != "auto":
        return sampler
    return "grid" if all(a.words for a in axes) else "random"


def draws(sampler: str, axes: Sequence[Axis], trials: int) -> int:
    """Return the number of trials of a search: as many as asked for, but no point of a grid of lists twice."""
    if sampler == "grid" or (sampler != "tpe" and all(a.words for a in axes)):
        return min(trials or size(axes), size(axes))
    return trials or 20


def unseen(axes: Sequence[Axis], before: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return the new points of a grid of lists that grew (S3)."""
    points = (grid(axes, n) for n in range(size(axes)))
    return [p for p in points if not all(a.holds(p[a.key]) for a in before)]


def draw(sampler: str, axes: Sequence[Axis], seed: int, number: int, total: int) -> dict[str, Any]:
    """Return the values of a trial by key. Every draw is repeated with each seed of a list of seeds (S9)."""
    if sampler == "grid" or all(a.words for a in axes):
        if sampler != "grid":
            order = list(range(size(axes)))
            Random(f"{seed} order").shuffle(order)
            number = order[number]
        return grid(axes, number)
    turns = [a for a in axes if a.name == "seed" and a.words]
    count = len(turns[0].words) if turns else 1
    others = [a for a in axes if a not in turns]
    shares = _SHARES[sampler](others, seed, number // count, math.ceil(total / count))
    values = {a.key: a.at(share) for a, share in zip(others, shares, strict=True)}
    values |= {a.key: a.choices[number % count] for a in turns}
    return {a.key: values[a.key] for a in axes}


def _random(axes: Sequence[Axis], seed: int, number: int, total: int) -> list[float]:
    source = Random(f"{seed} trial {number}")
    return [source.random() for _ in axes]


def _sobol(axes: Sequence[Axis], seed: int, number: int, total: int) -> list[float]:
    from scipy.stats import qmc

    source = qmc.Sobol(len(axes), scramble=True, seed=seed)
    if number:  # SciPy refuses 0
        source.fast_forward(number)
    return [min(float(share), 1 - 1e-12) for share in source.random(1)[0]]


def _jitter(axes: Sequence[Axis], seed: int, number: int, total: int) -> list[float]:
    """The cells of a grid in random order, with a random point within each (S2)."""
    ranges = [a for a in axes if not a.words]
    room = math.prod(len(a.words) for a in axes if a.words)
    side = 1
    while room * side ** len(ranges) < total:
        side += 1
    sides = [len(a.words) or side for a in axes]
    cells = list(range(math.prod(sides)))
    Random(f"{seed} cells").shuffle(cells)
    cell, source, shares = cells[number % len(cells)], Random(f"{seed} shift {number}"), []
    for count in sides:
        cell, digit = divmod(cell, count)
        shares.append((digit + source.random()) / count)
    return shares


_SHARES = {"random": _random, "grid_jitter": _jitter, "sobol": _sobol}
