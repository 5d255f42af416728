"""Residual networks: `dlrun train model=resnet20 model.skip=false` shows why skip connections matter (M2).

He et al. 2016, "Deep residual learning for image recognition": resnet20/32/44/56 are its CIFAR form (§4.2),
resnet18/34/50 its ImageNet form with stride 2 in the 3×3 convolution of a bottleneck, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.layers import GlobalAverage, Style, activation, conv_block, dropout_layer, one_of
from dlrun.models.whitening import WhiteningBlock

__all__ = ["ResNet"]

STEMS = ("small", "imagenet")
SHORTCUTS = ("pad", "projection")
BLOCKS = {"basic": 1, "bottleneck": 4}  # output channels per channel of width


class ResNet(nn.Sequential):
    """`stem`, then stages of `blocks[i]` residual blocks of width·2^i, a global average and a linear `head`.

    stem: `small` is one 3×3 convolution; `imagenet` is 7×7 with stride 2 and a 3×3 max pool with stride 2.
    shortcut, if a block changes shape: `pad` subsamples and adds zero channels (He's option A, without
    parameters), `projection` is a 1×1 convolution (option B). skip=False omits every shortcut, projections
    too. `whiten` adds a frozen layer that whitens patches of 2×2 before the stem. Dropout comes before the head.

    (B, in_channels, H, W) -> logits (B, num_classes). Raises UserError on unknown names and impossible sizes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        blocks: Sequence[int] = (3, 3, 3),
        width: int = 16,
        block: str = "basic",
        stem: str = "small",
        shortcut: str = "pad",
        skip: bool = True,
        zero_init_residual: bool = False,
        activation: str = "relu",
        norm: str = "batch",
        maxout_pieces: int = 2,
        whiten: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("model.block", block, BLOCKS)
        one_of("model.stem", stem, STEMS)
        one_of("model.shortcut", shortcut, SHORTCUTS)
        if not blocks or min(blocks) < 1 or width < 1:
            raise UserError(f"model.blocks={list(blocks)} and model.width={width} must be at least 1")
        if zero_init_residual and (norm == "none" or not skip):
            raise UserError("model.zero_init_residual=true needs a norm and model.skip=true: it sets scales to 0")
        style = Style(activation, norm, maxout_pieces)
        if whiten:
            self.whiten = WhiteningBlock(in_channels, style)
            in_channels = self.whiten.out_channels
        if stem == "small":
            self.stem = conv_block(in_channels, width, 3, style)
        else:
            self.stem = conv_block(in_channels, width, 7, style, stride=2)
            self.stem.add_module("pool", nn.MaxPool2d(3, 2, padding=1))
        channels = width
        for stage, count in enumerate(blocks):
            layers = nn.Sequential()
            for number in range(count):
                made = _Block(
                    channels,
                    width * 2**stage,
                    style,
                    stride=2 if stage and not number else 1,
                    kind=block,
                    shortcut=shortcut if skip else "none",
                )
                if zero_init_residual:
                    made.start_as_identity()
                layers.add_module(f"block{number + 1}", made)
                channels = width * 2**stage * BLOCKS[block]
            self.add_module(f"stage{stage + 1}", layers)
        self.pool = GlobalAverage()
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.head = nn.Linear(channels, num_classes)


class _Block(nn.Module):
    """activation(F(x) + shortcut(x)); F is two 3×3 convolutions, or 1×1, 3×3, 1×1 in a bottleneck."""

    def __init__(self, in_channels: int, width: int, style: Style, *, stride: int, kind: str, shortcut: str) -> None:
        super().__init__()
        channels = width * BLOCKS[kind]
        if kind == "basic":
            self.conv1 = conv_block(in_channels, width, 3, style, stride=stride)
            self.conv2 = conv_block(width, channels, 3, style, activate=False)
            self.conv3 = None
        else:
            self.conv1 = conv_block(in_channels, width, 1, style)
            self.conv2 = conv_block(width, width, 3, style, stride=stride)
            self.conv3 = conv_block(width, channels, 1, style, activate=False)
        changes = stride > 1 or in_channels != channels
        self.shortcut: nn.Module | None = None
        if shortcut == "projection" and changes:
            self.shortcut = conv_block(in_channels, channels, 1, style, stride=stride, activate=False)
        elif shortcut != "none":
            self.shortcut = _Carry(channels - in_channels, stride, style.pieces)
        self.activation = activation(style.activation, pieces=style.maxout_pieces)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        if self.conv3 is not None:
            out = self.conv3(out)
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return self.activation(out)  # type: ignore[no-any-return]

    def start_as_identity(self) -> None:
        """Set the scale of the last norm to 0, so that the block starts as its shortcut (Goyal 2017)."""
        nn.init.zeros_((self.conv3 or self.conv2).get_parameter("norm.weight"))


class _Carry(nn.Module):
    """Parameter-free shortcut: every stride-th pixel, zero channels added, repeated for each maxout piece."""

    def __init__(self, extra_channels: int, stride: int, pieces: int) -> None:
        super().__init__()
        self.extra_channels, self.stride, self.pieces = extra_channels, stride, pieces

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))
        return x.repeat_interleave(self.pieces, dim=1) if self.pieces > 1 else x
