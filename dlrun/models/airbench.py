"""The network of airbench94, designed to train in seconds: `dlrun train experiment=cifar10_speedrun` (M1).

Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU, §3; of the repository cifar10-airbench.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.layers import Style, conv_block, dropout_layer
from dlrun.models.whitening import WhiteningBlock

__all__ = ["Airbench"]

BATCH_NORM_MOMENTUM = 0.4  # weight of the newest batch: training is only a few hundred steps of large batches
SCALE = 1 / 9  # multiplies the logits


class Airbench(nn.Sequential):
    """A whitening first layer, groups of two 3×3 convolutions with a max pool after the first, and a linear head.

    `whiten` convolves 2×2 patches with frozen filters computed from training images, or with ordinary ones if false.
    One group per entry of `widths`; the scale of norms is frozen at 1, and the first filters of a convolution start as
    the identity. Maps of odd sides lose a row and a column when halved. Dropout comes before the head.

    (B, in_channels, H, W) -> logits (B, num_classes), times SCALE. Raises UserError on unknown names and widths.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        widths: Sequence[int] = (64, 256, 256),
        activation: str = "gelu",
        norm: str = "batch",
        maxout_pieces: int = 2,
        whiten: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise UserError(f"model.widths={list(widths)}: expected 1 or more channels per group")
        style = Style(activation, norm, maxout_pieces)
        self.whiten = WhiteningBlock(in_channels, style, frozen=whiten)
        channels = self.whiten.out_channels
        for number, wide in enumerate(widths, 1):
            self.add_module(f"group{number}", _group(channels, wide, style))
            channels = wide
        self.pool = _Largest()
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x * SCALE


def _group(in_channels: int, channels: int, style: Style) -> nn.Sequential:
    """`first`: convolution, pool, norm, activation; `second`: the same without the pool."""
    blocks = [conv_block(in_channels, channels, 3, style), conv_block(channels, channels, 3, style)]
    for block in blocks:
        for module in block:
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                module.weight.requires_grad_(False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(blocks[0].named_children())
    conv = layers.pop("conv")
    first = nn.Sequential(OrderedDict({"conv": conv, "pool": _Halved(), **layers}))
    return nn.Sequential(OrderedDict({"first": first, "second": blocks[1]}))


class _Halved(nn.Module):
    """Max pool over 2×2; a side of length 1 stays 1."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return F.max_pool2d(x, (min(2, height), min(2, width)))


class _Largest(nn.Module):
    """Maximum of every channel: (B, C, H, W) -> (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, x.shape[2:])
