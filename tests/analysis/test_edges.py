"""The edges of a range in its own scale, how it grows beyond them, and the scale of unknown values (S3)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dlrun.analysis import edges


@pytest.mark.parametrize(
    ("value", "found"),
    [(0.0, "low"), (0.1, "low"), (0.11, None), (0.5, None), (0.89, None), (0.9, "high"), (1.0, "high"), (1.5, "high")],
)
def test_a_tenth_of_a_linear_range(value: float, found: str | None) -> None:
    assert edges.edge(value, 0.0, 1.0) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [(1e-5, "low"), (3.1e-5, "low"), (3.2e-5, None), (0.03, None), (0.31, None), (0.32, "high"), (1.0, "high")],
)
def test_a_tenth_of_a_log_range_is_a_tenth_of_its_decades(value: float, found: str | None) -> None:
    assert edges.edge(value, 1e-5, 1.0, log=True) == found  # five decades: half a decade from either end


def test_positions() -> None:
    assert edges.position(0.01, 1e-4, 1.0, log=True) == pytest.approx(0.5)
    assert edges.position(20, 10, 50) == 0.25
    assert edges.edge(0.3, 0.3, 0.3) is None
    assert edges.edge(0.0, 1e-3, 1.0, log=True) == "low"
    for low, high, log in ((1.0, 1.0, False), (0.0, 1.0, True), (0.0, float("inf"), False), (float("nan"), 1.0, False)):
        with pytest.raises(ValueError, match="range from"):
            edges.position(0.5, low, high, log=log)


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.1, 0.01, 0.001], True),
        ([16, 32, 64, 128], True),
        ([0.5, 0.9, 0.95, 0.99], False),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], False),
        ([0.0, 0.001, 0.1], False),
        ([-3.0, 100.0], False),
        ([0.1, 0.2, 0.4], False),
        ([5.0], False),
        ([], False),
    ],
)
def test_the_scale_of_typed_values(values: list[float], log: bool) -> None:
    assert edges.spans_decades(values) is log


def test_the_scale_of_drawn_values() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        assert edges.spans_decades([10 ** rng.uniform(-5, 0) for _ in range(12)])
        assert not edges.spans_decades([rng.uniform(0, 0.5) for _ in range(12)])


@pytest.mark.parametrize(
    ("before", "side", "log", "whole", "after"),
    [
        ((1e-3, 1e-1), "high", True, False, (1e-3, 10)),
        ((1e-3, 1e-1), "low", True, False, (1e-5, 1e-1)),
        ((2.0, 4.0), "high", False, False, (2.0, 6.0)),
        ((0.5, 4.5), "low", False, False, (0.0, 4.5)),
        ((-1.0, 1.0), "low", False, False, (-3.0, 1.0)),
        ((0.0, 0.5), "low", False, False, None),  # a share of nothing is its natural end
        ((16, 64), "high", True, True, (16, 256)),
        ((4, 64), "low", True, True, (1, 64)),
        ((2, 9), "low", False, True, (1, 9)),
        ((1, 9), "low", True, True, None),
    ],
)
def test_a_range_grows_by_as_much_again(
    before: tuple[float, float], side: Any, log: bool, whole: bool, after: tuple[float, float] | None
) -> None:
    found = edges.beyond(*before, side, log=log, whole=whole)
    assert found == (after if after is None else pytest.approx(after))


def test_a_list_grows_by_its_mirror_image() -> None:
    assert edges.listed_beyond([0.1, 0.01, 0.001], "low", log=True) == pytest.approx([1e-4, 1e-5])
    assert edges.listed_beyond([8, 16, 64], "high", log=True) == [512, 256]
    assert edges.listed_beyond([1, 2, 3], "high") == [5, 4]
    assert [type(v) for v in edges.listed_beyond([1, 2.5], "high")] == [float]
