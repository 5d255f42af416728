"""Layers, norms and activations by number (M4, M5)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlrun.models.layers import (
    ACTIVATIONS,
    NORMS,
    GlobalAverage,
    Maxout,
    Style,
    activation,
    conv_block,
    linear_block,
    norm,
)
from support.networks import every, small_models


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_global_average_is_that_of_torch_and_its_gradient_keeps_the_layout(
    layout: torch.memory_format,
) -> None:
    x = torch.randn(4, 8, 5, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    middle = x * 2
    middle.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=layout)))
    layouts: list[bool] = []
    pooled = GlobalAverage()(middle)
    assert pooled.shape == (4, 8, 1, 1)
    torch.testing.assert_close(pooled, nn.AdaptiveAvgPool2d(1)(middle))
    weight = torch.randn(4, 8, 1, 1, dtype=torch.float64)
    (pooled * weight).sum().backward()
    torch.testing.assert_close(x.grad, (2 * weight / 15).expand_as(x))
    assert layouts == [True]  # with mixed layouts the layer before takes several times as long


def test_maxout_takes_the_largest_of_neighbouring_channels() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 7.0, 5.0, 6.0]])
    assert Maxout(2)(x).tolist() == [[1.0, 7.0, 6.0]]
    assert Maxout(3)(x).tolist() == [[3.0, 7.0]]
    assert torch.equal(Maxout(3)(x.view(1, 6, 1, 1)), torch.tensor([3.0, 7.0]).view(1, 2, 1, 1))


def test_a_maxout_layer_is_the_maximum_of_its_linear_pieces() -> None:
    layer = linear_block(1, 1, Style("maxout", "none", 3))
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        layer.linear.bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
    # max(x, -x, 1/2)
    assert layer(torch.tensor([[2.0], [-3.0], [0.25]])).flatten().tolist() == [2.0, 3.0, 0.5]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", [0.0, 2.0]),
        ("leaky_relu", [-0.01, 2.0]),
        ("prelu", [-0.25, 2.0]),
        ("elu", [math.exp(-1) - 1, 2.0]),
        ("gelu", [-0.5 * math.erfc(1 / math.sqrt(2)), 2 - math.erfc(2 / math.sqrt(2))]),
        ("silu", [-1 / (1 + math.e), 2 / (1 + math.exp(-2))]),
        ("tanh", [math.tanh(-1), math.tanh(2)]),
        ("sigmoid", [1 / (1 + math.e), 1 / (1 + math.exp(-2))]),
        ("softsign", [-0.5, 2 / 3]),
        ("maxout", [2.0]),
    ],
)
def test_activation_values(name: str, expected: list[float]) -> None:
    x = torch.tensor([[-1.0, 2.0]])
    assert activation(name)(x).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert x.tolist() == [[-1.0, 2.0]]  # never in place


@pytest.mark.parametrize("name", ["batch", "layer", "group"])
def test_norms_standardise_over_their_own_axes(name: str) -> None:
    x = 3 + 5 * torch.randn(6, 8, 4, 4)
    layer = norm(name, 8)
    assert layer is not None
    y = layer(x)
    over = {"batch": (0, 2, 3), "layer": (1, 2, 3), "group": (2, 3, 4)}[name]
    if name == "group":  # 8 channels: two groups of four
        y = y.view(6, 2, 4, 4, 4)
    assert y.mean(over).abs().max() < 1e-5
    assert (y.var(over, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (8, 2), (12, 3), (16, 4), (64, 16), (128, 32), (512, 32)])
def test_group_norm_has_at_most_32_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    layer = norm("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


@pytest.mark.parametrize("name", NORMS)
def test_norm_stands_between_weights_and_activation_and_replaces_the_bias(name: str) -> None:
    for block, kind in (
        (linear_block(3, 4, Style("tanh", name)), "linear"),
        (conv_block(3, 4, 3, Style("tanh", name)), "conv"),
    ):
        names = [n for n, _ in block.named_children()]
        assert names == ([kind, "activation"] if name == "none" else [kind, "norm", "activation"])
        assert (block.get_submodule(kind).bias is None) == (name != "none")


@pytest.mark.parametrize("norm_name", NORMS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_and_norm_sends_a_gradient_to_every_parameter(name: str, norm_name: str) -> None:
    for model in small_models(activation=name, norm=norm_name):
        logits = model(torch.randn(6, 1, 8, 8))
        assert logits.shape == (6, 10)
        F.cross_entropy(logits, torch.arange(6)).backward()
        for key, p in model.named_parameters():
            assert p.grad is not None, key
            assert torch.isfinite(p.grad).all(), key
            assert p.grad.abs().max() > 0, key


def test_only_the_head_has_a_bias_where_a_norm_follows() -> None:
    for model in small_models(norm="batch"):
        biased = [n for n, m in model.named_modules() if getattr(m, "bias", None) is not None]
        weighty = [n for n in biased if isinstance(model.get_submodule(n), (nn.Linear, nn.Conv2d))]
        assert weighty == ["head"]
    for model in small_models(norm="none"):
        assert all(m.bias is not None for m in every(model, (nn.Linear, nn.Conv2d)))


def test_forward_has_no_control_flow_that_depends_on_data() -> None:
    x = torch.randn(3, 1, 8, 8)
    for name in ("relu", "maxout"):
        for model in small_models(activation=name):
            model.eval()
            assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
