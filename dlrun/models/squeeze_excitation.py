"""Channels weighted by the whole image: `dlrun train model=resnet20 model.se_ratio=0.25` (M1, M2).

Hu et al. 2018, "Squeeze-and-excitation networks", with SiLU for ReLU as in Tan & Le 2019, "EfficientNet": all of
a few hidden units could be dead, above all with model.zero_init_residual, and the layer would never learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.layers import GlobalAverage

__all__ = ["SqueezeExcitation"]


class SqueezeExcitation(nn.Module):
    """x · sigmoid(W₂ silu(W₁ mean(x))) with one factor per channel; W₁ has ratio · channels rows, 4 at least.

    (B, channels, H, W) keeps its shape. Raises UserError if the ratio is not in (0, 1].
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise UserError(f"model.se_ratio={ratio} must be above 0 and at most 1, for example 0.25; 0 is off")
        hidden = max(4, round(channels * ratio))
        self.squeeze = GlobalAverage()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # a function: a Sigmoid module would count as a hidden layer that saturates (M4)
        hidden = torch.nn.functional.silu(self.reduce(self.squeeze(x)))
        return x * torch.sigmoid(self.expand(hidden))
