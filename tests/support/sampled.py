"""Cases of which some run in the fast suite and the others are slow: `pytest -m slow` runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["sampled"]


def sampled(cases: Iterable[Any], every: int) -> list[Any]:
    """Parameters for `parametrize`, of which each `every`-th is fast."""
    found = []
    for number, case in enumerate(cases):
        slow = () if number % every == 0 else (pytest.mark.slow,)
        if isinstance(case, type(pytest.param())):
            found.append(pytest.param(*case.values, marks=(*case.marks, *slow), id=case.id))
        else:
            found.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=slow))
    return found
