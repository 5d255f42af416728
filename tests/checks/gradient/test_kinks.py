"""Kinks are seen in every function that has one, and held to the piece in force (C5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.checks.gradient.kinks import Winners

MODULES = (
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.RReLU()),
    *(nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softsign(), nn.Threshold(0.0, 0.0)),
    *(nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d(2, return_indices=True), nn.Hardshrink()),
)
FUNCTIONS = (
    *(torch.relu, F.relu, Tensor.relu, Tensor.relu_, F.leaky_relu, F.relu6, abs, torch.max, torch.min),
    *(Tensor.amax, Tensor.argmax, torch.round),
    *(lambda x: torch.max(x, 1), lambda x: x.max(dim=1), lambda x: x.amax(dim=1), lambda x: x.topk(2, 1)),
    *(lambda x: torch.max(x, -x), lambda x: torch.maximum(x, -x), lambda x: x.sort(1), lambda x: x.norm(p=1)),
    *(lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: x.clamp(-1, 1), lambda x: x * (x > 0)),
    *(lambda x: torch.where(x <= 0, 0, x), lambda x: F.max_pool2d(x, 2)),
    lambda x: F.l1_loss(x, torch.zeros_like(x)),
    lambda x: F.multi_margin_loss(x[:, :, 0, 0], torch.tensor([0, 1])),
)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_modules_have_winners(module):
    assert kept(module) == 1


def kept(function: Callable[[Tensor], object]) -> int:
    torch.manual_seed(0)
    x = 4 * torch.randn(2, 4, 4, 4)
    with Winners() as seen:
        function(x.clone())
    with Winners(seen.winners) as again:
        function(x.clone())
    with Winners(seen.winners) as other:
        function(-x)
    assert again.moved == 0
    assert other.moved > 0
    return seen.count


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_have_winners(function):
    assert kept(function) == 1


def test_a_changed_path_counts_as_crossed():
    def walk(times: int) -> None:
        for _ in range(times):
            torch.relu(torch.ones(1))

    with Winners() as seen:
        walk(2)
    with Winners(seen.winners) as other:
        walk(3)
    assert other.moved == 1


HELD = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu_(x.clone()),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3, 0.7], dtype=x.dtype)),
    "relu6": lambda x: F.relu6(x * 100),
    "hardtanh": lambda x: F.hardtanh(x, -0.05, 0.06),
    "clamp": lambda x: x.clamp(min=-0.05, max=0.06),
    "clamp_min": lambda x: x.clamp_min(0.01),
    "abs": torch.abs,
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool in one dimension": lambda x: F.max_pool1d(x.flatten(2), 2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "maxout": lambda x: x.amax(dim=1),
    "amax of two": lambda x: x.amax((2, 3), keepdim=True),
    "maximum": lambda x: torch.maximum(x, 0.1 * x),
    "minimum": lambda x: torch.minimum(x, x.flip(-1)),
    "max of two": lambda x: torch.max(x, x.flip(1)),
    "comparison": lambda x: x * (x > 0),
    "where": lambda x: torch.where(x <= 0.01, 0, x),
}


@pytest.mark.parametrize("name", HELD)
def test_a_crossed_kink_is_held_to_the_piece_in_force(name):
    # pieces are lines here: with each held, f(x + d) is f(x) + f'(x)·d however many kinks are crossed
    generator = torch.Generator().manual_seed(0)
    x, d = 0.05 * torch.randn(2, 2, 2, 4, 4, dtype=torch.float64, generator=generator)
    if name in ("relu6", "hardtanh", "clamp"):
        d *= 0.3  # an entry that crosses both edges is not held

    def summed(x: Tensor) -> Tensor:
        y = HELD[name](x)
        return (y.flatten() * torch.arange(1.0, y.numel() + 1, dtype=y.dtype)).sum()

    with Winners() as seen:
        before = summed(x.requires_grad_())
    (gradient,) = torch.autograd.grad(before, x)
    expected = before.item() + (gradient * d).sum().item()
    with torch.no_grad(), Winners(seen.winners, hold=True) as held:
        assert summed(x + d).item() == pytest.approx(expected, abs=1e-10)
    assert held.moved == held.held > 0
    with torch.no_grad(), Winners(seen.winners) as free:
        assert summed(x + d).item() != pytest.approx(expected, abs=1e-3)
    assert (free.moved, free.held) == (held.moved, 0)


def test_what_lay_on_an_edge_or_crossed_two_is_not_held():
    for before, after in ((0.0, 0.1), (0.0, -0.1), (-1.0, 7.0)):
        with Winners() as seen:
            F.relu6(torch.tensor([before]))
        with Winners(seen.winners, hold=True) as held:
            assert F.relu6(torch.tensor([after])).tolist() == pytest.approx([min(max(after, 0.0), 6.0)])
        assert (held.moved, held.held) == (1, 0)
