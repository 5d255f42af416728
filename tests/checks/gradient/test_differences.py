"""Difference quotients against derivatives that are known, and the bands between right and wrong (C4, C6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlrun.checks.gradient.differences import Comparison, Slopes
from support.derivatives import Scaled, leaf, states


def test_difference_of_a_cubic_is_exact():
    w = leaf(2.0, -1.0)
    slopes = Slopes(lambda: (w**3).sum(), {"w": w})
    found = slopes.measure([slopes.entry("w", 0)], 1e-3)
    assert found.analytic == 12.0
    # (w+h)³ − (w−h)³ = 2h·(3w² + h²)
    assert found.numeric == pytest.approx(12.0 + 1e-6, abs=1e-10)
    assert found.jump == pytest.approx(12e-3, rel=1e-6)  # 6w·h
    assert found.crossed == 0
    assert w.tolist() == [2.0, -1.0]


def test_a_group_adds_up_without_cancelling():
    w = leaf(2.0, -1.0, 0.5)
    slopes = Slopes(lambda: (w**2 * torch.tensor([1.0, 1.0, -1.0])).sum(), {"w": w})
    found = slopes.measure([slopes.entry("w", i) for i in range(3)], 1e-4)
    assert found.analytic == pytest.approx(4.0 + 2.0 + 1.0)
    assert found.numeric == pytest.approx(7.0, rel=1e-9)


def test_relative_error_is_the_one_of_the_practice():
    c = Comparison((), analytic=1.0, numeric=-4.0, h=1e-5, floor=0.0, crossed=0, loose=0, jump=0.0)
    assert c.error == 1.25
    assert Comparison((), 0.0, 0.0, 1e-5, 0.0, 0, 0, 0.0).error == 0.0


def test_rounding_is_measured():
    w = leaf(*torch.linspace(0.1, 1.3, 50).tolist())
    exact = Slopes(lambda: w.square().sum(), {"w": w})
    rounded = Slopes(lambda: w.square().sum() + 1e6 - 1e6, {"w": w})
    ulp = 2.0**-33  # the spacing of doubles at 1e6
    assert exact.noise < 1e-14
    assert ulp / 10 < rounded.noise < 2 * ulp


def test_kinks_are_reported_and_do_not_fail():
    zero, near = leaf(0.0), leaf(3e-6)
    assert states(lambda: (zero.abs() + zero).sum(), w=zero) == {"w[0]": "fine"}  # slopes 0 and 2, 1 in both
    assert states(lambda: F.relu(zero).sum(), w=zero) == {"w[0]": "kink"}
    assert states(lambda: near.abs().sum(), w=near) == {"w[0]": "fine"}  # by a smaller step
    tied = leaf(1.0, 1.0)
    assert states(lambda: tied.max(0)[0] * 3.0, w=tied) == {"w[0]": "kink", "w[1]": "kink"}


def test_a_kink_does_not_excuse_more_than_it_explains():
    w, small = leaf(1.0), leaf(1e-9)

    def loss() -> Tensor:
        return Scaled.apply(w, -1.0).sum() + 1e-3 * F.relu(small + w - w.detach()).sum()

    assert states(loss, w=w) == {"w[0]": "wrong"}


def test_both_zero_passes_and_one_zero_does_not():
    w, unused = leaf(1.0, 2.0), leaf(1.0)
    found = states(lambda: w[0] ** 2 + w[1].detach() ** 2, w=w, unused=unused)
    assert found == {"w[0]": "fine", "w[1]": "wrong", "unused[0]": "zero"}


def test_one_wrong_tensor_among_many_is_found():
    tensors = {f"t{i}": leaf(*torch.randn(3, generator=torch.Generator().manual_seed(i)).tolist()) for i in range(40)}

    def loss() -> Tensor:
        return sum((Scaled.apply(t, 1.05 if n == "t17" else 1.0) ** 2).sum() for n, t in tensors.items())

    slopes = Slopes(loss, tensors)
    found = list(slopes.compare([slopes.direction(n) for n in tensors]))
    assert [m.name for c in found if c.state == "wrong" for m in c.moves] == ["t17"]
    assert {m.name for c in found for m in c.moves} == set(tensors)
    assert len(found) < 15  # groups, not each


def test_larger_steps_that_agree_over_a_narrow_bend_prove_nothing():
    w = leaf(0.0)  # slope 1.033 at 0, and 1.001 and 1.0001 as seen by steps of 1e-5 and 1e-4
    assert states(lambda: (w + 1.0 + 1e-8 * torch.tanh(w / 3e-7)).sum(), w=w) == {"w[0]": "rough"}


def test_bands():
    w = leaf(0.7)
    for factor, state in (
        (1.02, "wrong"),
        (1.002, "suspicious"),
        (1 + 1e-6, "suspicious"),
        (1 + 1e-9, "fine"),
    ):
        assert states(lambda factor=factor: (Scaled.apply(w, factor) ** 2).sum(), w=w) == {"w[0]": state}


def test_small_and_large_derivatives_are_compared():
    w, big = leaf(0.5), leaf(0.5)
    for scale in (1e-7, 1.0, 1e7):
        assert states(lambda s=scale: (s * torch.sin(w) + 1.0).sum(), w=w) == {"w[0]": "fine"}
        wrong = states(lambda s=scale: (s * torch.sin(Scaled.apply(big, -1.0)) + 1.0).sum(), w=big)
        assert wrong == {"w[0]": "wrong"}
