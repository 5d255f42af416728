"""Functions with a wrong backward, modules around functions, and leaves to differentiate by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlrun.checks.gradient.differences import Slopes
from dlrun.training.experiment import Experiment, build
from support.composed import composed

SMALL = ("trainer.threads=1", "check=none", "dataset.limit=120")


def experiment(*overrides: str) -> Experiment:
    return build(composed(*SMALL, *overrides))


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def states(loss: Callable[[], Tensor], **tensors: Tensor) -> dict[str, str]:
    """The state of every entry."""
    slopes = Slopes(loss, tensors)
    moves = [slopes.entry(n, i) for n, t in tensors.items() for i in range(t.numel())]
    return {str(m): c.state for c in slopes.compare(moves) for m in c.moves}


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


class LeakyWrongBelowZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g, 0.01 * g)


class WrongLinear(torch.autograd.Function):
    """x·wᵀ + b, with the gradient of weight and bias off by factors."""

    @staticmethod
    def forward(ctx, x, w, b, weight_factor, bias_factor):
        ctx.save_for_backward(x, w)
        ctx.factors = weight_factor, bias_factor
        return x @ w.T + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x * ctx.factors[0], g.sum(0) * ctx.factors[1], None, None


class Through(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class WrongHead(nn.Linear):
    factors = 1.0, 1.0

    def forward(self, x):
        return WrongLinear.apply(x, self.weight, self.bias, *self.factors)
