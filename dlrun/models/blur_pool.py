"""Anti-aliased halving of a map: `dlrun train model=resnet20 model.antialias=true`, `model=cnn model.pool=blur` (M1).

Zhang 2019, "Making convolutional networks shift-invariant again".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BlurPool", "max_blur_pool"]


class BlurPool(nn.Module):
    """Every second pixel of the map blurred with the binomial filter [1, 2, 1]; the border pixels are repeated.

    (B, channels, H, W) -> (B, channels, ⌈H/2⌉, ⌈W/2⌉). Without parameters, and without a place in the state dict.
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(line, line).expand(channels, 1, 3, 3).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, self.kernel.to(x.dtype), stride=2, groups=len(self.kernel))


def max_blur_pool(channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Return a maximum over neighbours at every pixel, followed by BlurPool (§3.2)."""
    return nn.Sequential(nn.MaxPool2d(kernel_size, 1, padding=kernel_size // 2), BlurPool(channels))
