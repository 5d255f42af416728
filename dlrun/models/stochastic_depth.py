"""Residual branches that are dropped at random: `dlrun train model=resnet20 model.stochastic_depth=0.1` (R2).

Huang et al. 2016, "Deep networks with stochastic depth".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from dlrun.errors import UserError

__all__ = ["StochasticDepth", "rates"]


class StochasticDepth(_DropoutNd):
    """Zero for a share p of the samples, x / (1 − p) for the others: x in expectation; x itself in evaluation mode.

    Shape (B, …) is unchanged. A kind of dropout for torch and for the checks, which turn it off by its p.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)


def rates(p: float, blocks: int) -> list[float]:
    """Return the rate of each block: linear in depth, l/L of p for block l of L (§3). Raises UserError."""
    if not 0 <= p < 1:
        raise UserError(f"model.stochastic_depth={p} must be at least 0 and below 1, for example 0.1")
    return [p * block / blocks for block in range(1, blocks + 1)]
