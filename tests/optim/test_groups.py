"""Parameter groups: what decays, rates by layer, and which overrides are refused (R1, O7)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dlrun.errors import UserError
from dlrun.optim import Scheduler, parameter_groups, schedulers


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def sizes(groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    return [({k: v for k, v in g.items() if k != "params"}, len(g["params"])) for g in groups]


def test_one_group_when_nothing_differs() -> None:
    model = net()
    groups = parameter_groups(model)
    assert sizes(groups) == [({}, 6)]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in model.parameters()]
    torch.optim.LBFGS(groups)


def test_biases_and_norms_do_not_decay() -> None:
    model = net()
    groups = parameter_groups(model, 0.1)
    assert sizes(groups) == [({"weight_decay": 0.1}, 2), ({"weight_decay": 0.0}, 4)]
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(groups, lr=1.0, weight_decay=0.1).step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.9 * old if old.ndim >= 2 else old)


def test_rates_by_layer_and_the_later_pattern_wins() -> None:
    groups = parameter_groups(net(), 0.1, {"^0": {"lr": 0.01, "momentum": 0.5}, "bias$": {"lr": 0.02}})
    assert sizes(groups) == [
        ({"weight_decay": 0.1, "lr": 0.01, "momentum": 0.5}, 1),
        ({"weight_decay": 0.0, "lr": 0.02, "momentum": 0.5}, 1),
        ({"weight_decay": 0.0}, 1),
        ({"weight_decay": 0.0, "lr": 0.02}, 2),
        ({"weight_decay": 0.1}, 1),
    ]
    explicit = parameter_groups(net(), 0.1, {"^3": {"weight_decay": 0.3}})
    assert ({"weight_decay": 0.3}, 2) in sizes(explicit)


def test_frozen_and_shared_parameters() -> None:
    model = net()
    model[0].requires_grad_(False)
    model.append(nn.Linear(4, 2))
    model[4].weight = model[3].weight
    assert sizes(parameter_groups(model)) == [({}, 5)]
    with pytest.raises(UserError, match="no trainable parameters"):
        parameter_groups(net().requires_grad_(False))


@pytest.mark.parametrize(
    ("per_layer", "message"),
    [
        ({"^fcc": {"lr": 0.1}}, r"optimizer\.per_layer: '\^fcc' .*names: fc"),
        ({"zzz": {"lr": 0.1}}, r"optimizer\.per_layer: 'zzz' .*names: stem\.weight, stem\.bias"),
        ({"(": {"lr": 0.1}}, r"optimizer\.per_layer: '\(' .*regular expression"),
        ({"fc": {"lrr": 0.1}}, r"optimizer\.per_layer: 'fc' .*'lrr'.*: epochs, lr, mom"),
    ],
)
def test_bad_patterns_are_user_errors(per_layer: dict[str, dict[str, float]], message: str) -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.Linear(2, 2))
    model.add_module("fc", nn.Linear(2, 2))
    with pytest.raises(UserError, match=message):
        parameter_groups(model, 0.0, per_layer, known=["momentum", "lr"])


def test_a_group_with_epochs_is_frozen_when_they_are_over() -> None:
    model = net()
    groups = parameter_groups(model, 0.0, {r"^0\.": {"epochs": 1.5}}, known=("lr",))
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = Scheduler(optimizer, schedulers.constant)
    for t, learns in ((0.0, True), (1.4, True), (1.5, False), (3.0, False), (1.0, True)):  # a resume may go back
        scheduler.set(t)
        assert [p.requires_grad for p in model.parameters()] == [learns] * 2 + [True] * 4
    for wrong in (0, -1, "three", True):
        with pytest.raises(UserError, match=rf"'weight' sets epochs={wrong}: .*\b0$"):
            parameter_groups(model, 0.0, {"weight": {"epochs": wrong}})
