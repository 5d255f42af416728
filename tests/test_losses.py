"""Losses and the supervised objective: exact values, gradients, chance (C1)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.losses import CrossEntropy, Hinge
from dlrun.objectives import Supervised

LOSSES = [CrossEntropy(), CrossEntropy(0.1), Hinge(), Hinge(0.25)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_uniform_logits_cost_exactly_the_chance_loss(loss: CrossEntropy | Hinge, classes: int) -> None:
    labels = torch.arange(2 * classes) % classes
    logits = torch.full((len(labels), classes), 3.5, dtype=torch.float64)
    assert loss(logits, labels).item() == pytest.approx(loss.chance(classes), rel=1e-12)


def test_chance_is_the_number_of_the_practice() -> None:
    assert CrossEntropy().chance(10) == pytest.approx(2.302585092994046, rel=1e-15)
    assert Hinge().chance(10) == 9.0
    assert Hinge(0.5).chance(3) == 1.0


def test_cross_entropy_values() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)  # probabilities 1/4 and 3/4
    assert CrossEntropy()(logits, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3), rel=1e-12)
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * (math.log(4) + math.log(4 / 3)) / 2
    assert CrossEntropy(0.1)(logits, torch.tensor([1])).item() == pytest.approx(smoothed, rel=1e-12)


def test_hinge_values() -> None:
    # max(0, s_j − s_y + 1) summed: 2.9 + 0, then 0 + 0, then 6.3 + 6.6
    logits = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    each = [Hinge()(logits[i : i + 1], labels[i : i + 1]).item() for i in range(3)]
    assert each == pytest.approx([2.9, 0.0, 12.9], abs=1e-12)
    assert Hinge()(logits, labels).item() == pytest.approx(15.8 / 3, rel=1e-12)


def test_hinge_is_torchs_averaged_form_times_the_classes() -> None:
    logits = torch.randn(16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 7
    theirs = 7 * F.multi_margin_loss(logits, labels, margin=0.7)
    assert Hinge(0.7)(logits, labels).item() == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_match_finite_differences(loss: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits,), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_are_summed_in_full(loss: nn.Module) -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(64)
    value = loss(logits, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.double(), labels).item(), rel=1e-6)


@pytest.mark.parametrize("make", [lambda: CrossEntropy(1.0), lambda: CrossEntropy(-0.1), lambda: Hinge(0.0)])
def test_impossible_settings_are_user_errors(make: object) -> None:
    with pytest.raises(UserError, match=r"label_smoothing=|margin="):
        make()  # type: ignore[operator]


def test_supervised_returns_loss_and_logits_with_a_graph() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    loss, logits = Supervised()(model, CrossEntropy(), Batch(x, y))
    assert torch.equal(logits, model(x))
    assert loss.item() == CrossEntropy()(model(x), y).item()
    loss.backward()
    assert model.weight.grad is not None
