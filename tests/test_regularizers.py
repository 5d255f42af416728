"""Penalties and max-norm: exact values, exemptions, gradients (R1, R3, R5, C2)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlrun.errors import UserError
from dlrun.regularizers import Penalty
from support.composed import composed


def small_model() -> nn.Sequential:
    """Weights [[1, −2], [3, 0]]: ‖w‖₁ 6, ‖w‖² 14; biases and batch norm add 2·10 + 2·1 and 2·100 + 2·1."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        model[0].bias.fill_(10.0)
    return model


@pytest.mark.parametrize(
    ("penalty", "value"),
    [
        (Penalty(l1=0.1), 0.6),
        (Penalty(l2=0.1), 0.7),
        (Penalty(l1=0.1, l2=0.1), 1.3),
        (Penalty(l1=0.1, biases=True), 2.8),
        (Penalty(l2=0.1, biases=True), 0.05 * (14 + 200 + 2)),
    ],
)
def test_values(penalty: Penalty, value: float) -> None:
    assert penalty.penalty(small_model()).item() == pytest.approx(value, rel=1e-12)


def test_gradient_is_l2_w_plus_l1_sign_and_spares_biases_and_norms() -> None:
    model = small_model()
    Penalty(l1=0.25, l2=0.5).penalty(model).backward()
    assert model[0].weight.grad.tolist() == [[0.75, -1.25], [1.75, 0.0]]
    assert [p.grad for p in model.parameters() if p.ndim < 2] == [None, None, None]


def test_l2_step_equals_the_weight_decay_of_sgd() -> None:
    ours, theirs = small_model(), small_model()
    Penalty(l2=0.3).penalty(ours).backward()
    torch.optim.SGD([ours[0].weight], lr=0.1).step()
    theirs[0].weight.grad = torch.zeros_like(theirs[0].weight)
    torch.optim.SGD([theirs[0].weight], lr=0.1, weight_decay=0.3).step()
    torch.testing.assert_close(ours[0].weight, theirs[0].weight, rtol=1e-15, atol=0)


def test_frozen_weights_do_not_count() -> None:
    model = nn.Sequential(*small_model(), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    assert Penalty(l1=1.0).penalty(model).item() == pytest.approx(6.0)


def test_float32_penalty_of_many_weights_keeps_its_digits() -> None:
    model = nn.Linear(3000, 300)
    exact = model.weight.detach().double()
    assert Penalty(l1=1.0).penalty(model).item() == pytest.approx(exact.abs().sum().item(), rel=1e-6)
    assert Penalty(l2=2.0).penalty(model).item() == pytest.approx(exact.square().sum().item(), rel=1e-6)


def test_off_is_a_plain_zero_without_a_graph() -> None:
    penalty = Penalty(max_norm=3.0)
    value = penalty.penalty(small_model())
    assert not penalty.active
    assert value.item() == 0.0
    assert not value.requires_grad
    assert Penalty(l1=1.0).penalty(nn.ReLU()).item() == 0.0


def test_scaled_multiplies_the_penalty_alone() -> None:
    penalty, model = Penalty(l1=0.1, l2=0.2, max_norm=3.0, biases=True), small_model()
    values = [penalty.scaled(factor).penalty(model).item() for factor in (0.0, 1.0, 10.0)]
    assert values == pytest.approx([0.0, values[1], 10 * values[1]])
    assert penalty.scaled(10.0).max_norm == 3.0
    assert penalty.scaled(10.0).biases
    assert not penalty.scaled(0.0).active


def test_max_norm_scales_back_long_units_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.6, 0.8]]))
        model[0].bias.fill_(10.0)
        model[1].weight[0].fill_(2.0)
        model[1].weight[1].fill_(0.5)
    Penalty(max_norm=2.0).project(model)
    torch.testing.assert_close(model[0].weight.data, torch.tensor([[1.2, 1.6], [0.6, 0.8]]))
    torch.testing.assert_close(model[1].weight[0].data, torch.ones(1, 2, 2))
    torch.testing.assert_close(model[1].weight[1].data, torch.full((1, 2, 2), 0.5))
    assert model[0].bias.tolist() == [10.0, 10.0]
    Penalty(max_norm=2.0, biases=True).project(model)
    assert model[0].bias.tolist() == [2.0, 2.0]


def test_project_is_off_by_default_and_spares_frozen_weights() -> None:
    model = small_model()
    before = model[0].weight.clone()
    Penalty(l1=1.0).project(model)
    model[0].weight.requires_grad_(False)
    Penalty(max_norm=0.1).project(model)
    assert torch.equal(model[0].weight, before)


def test_negative_strength_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"regularizer\.l2=-0\.1\b"):
        Penalty(l2=-0.1)


def test_nothing_is_regularised_unless_it_is_asked_for() -> None:
    cfg = composed()
    assert (cfg.choices["regularizer"], cfg.plain["optimizer"].get("weight_decay", 0.0)) == ("none", 0.0)
    assert not any(cfg.plain["regularizer"][key] for key in ("l1", "l2", "max_norm", "dropout", "label_smoothing"))
