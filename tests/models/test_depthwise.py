"""Depthwise convolutions compute in fp32 under autocast on a processor, and are the same in every other way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.config.compose import compose
from dlrun.models.depthwise import widen
from dlrun.training.experiment import build


class Own(nn.Conv2d):
    """A class of a user, whose forward pass is meant as it is."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), Own(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1)
    )


def seen(model: nn.Sequential, x: Tensor, enabled: bool = True) -> list[Tensor]:
    """The output of each layer."""
    found = [x]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        for layer in model:
            found.append(layer(found[-1]))
    return found


def test_under_autocast_they_compute_in_fp32_and_give_the_type_that_they_get() -> None:
    plain, wide = network(), network()
    widen(wide)
    x = torch.randn(2, 3, 9, 9)
    _, first, second, third, last = seen(wide, x)
    layer = wide[1]
    exact = F.conv2d(first.float(), layer.weight, layer.bias, padding=1, groups=16)
    assert torch.equal(second, exact.bfloat16())
    assert not torch.equal(second, seen(plain, x)[2])
    assert second.dtype == third.dtype == last.dtype == torch.bfloat16
    last.float().sum().backward()
    assert layer.weight.grad is not None
    assert not torch.equal(layer.weight.grad, layer.weight.grad.bfloat16().float())  # it was never rounded


def test_without_autocast_names_weights_and_results_are_the_same() -> None:
    plain, wide = network(), network()
    widen(wide)
    widen(wide)
    x = torch.randn(2, 3, 9, 9)
    for kept in (wide, copy.deepcopy(wide)):
        assert [*kept.state_dict()] == [*plain.state_dict()]
        assert [type(m).__name__ for m in kept] == [type(m).__name__ for m in plain]
        assert all(map(torch.equal, seen(kept, x, False), seen(plain, x, False)))
    assert type(wide[2]) is Own
    assert type(wide[0]) is type(wide[3]) is nn.Conv2d


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_models_of_torchvision_have_theirs_in_fp32(name: str) -> None:
    words = ("model=torchvision", f"model.name={name}", "dataset.limit=50", "trainer.precision=bf16")
    model = build(compose(*words, "check=none")).model
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert depthwise
    for layer in depthwise:
        x = torch.randn(1, layer.in_channels, 8, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(x)
        assert torch.equal(found, layer(x))
