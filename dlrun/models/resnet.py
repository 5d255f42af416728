"""Residual networks: `dlrun train model=resnet20 model.skip=false` shows why skip connections matter (M2).

He et al. 2016, "Deep residual learning for image recognition": resnet20/32/44/56 are its CIFAR form (§4.2),
resnet18/34/50 its ImageNet form with stride 2 in the 3×3 convolution of a bottleneck, as in torchvision. The deep stem
and the pooled shortcut are ResNet-C and ResNet-D of He et al. 2019, "Bag of tricks for image classification".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.blur_pool import BlurPool, max_blur_pool
from dlrun.models.layers import GlobalAverage, Style, activation, conv_block, dropout_layer, one_of
from dlrun.models.squeeze_excitation import SqueezeExcitation
from dlrun.models.stochastic_depth import StochasticDepth, rates
from dlrun.models.whitening import WhiteningBlock

__all__ = ["ResNet"]

STEMS = ("small", "half", "imagenet", "deep", "auto")
SHORTCUTS = ("pad", "projection", "pooled")
SIDES = {"small": 40, "half": 80}  # the longest side in pixels for which stem=auto takes it; deep for longer ones
BLOCKS = {"basic": 1, "bottleneck": 4}  # output channels per channel of width


class ResNet(nn.Sequential):
    """`stem`, then stages of `blocks[i]` residual blocks of width·2^i, a global average and a linear `head`.

    stem: `small` is one 3×3 convolution; `half` is three, the first with stride 2; `deep` adds a 3×3 max pool with
    stride 2; `imagenet` is 7×7 with stride 2 and the pool; `auto` takes small, half or deep, by image_size.
    shortcut, if a block changes shape: `pad` subsamples and adds zero channels (He's option A, without parameters),
    `projection` is a 1×1 convolution (option B), `pooled` averages 2×2 pixels before it. skip=False omits every
    shortcut, projections too. `antialias` blurs what a block or the pool of the stem subsamples. `se_ratio` above 0
    ends each branch with squeeze-and-excitation. `stochastic_depth` is the rate at which the branch of the last block
    is dropped. `whiten` adds a frozen layer that whitens patches of 2×2 before the stem. Dropout comes before the head.

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
        antialias: bool = False,
        se_ratio: float = 0.0,
        stochastic_depth: float = 0.0,
        activation: str = "relu",
        norm: str = "batch",
        maxout_pieces: int = 2,
        whiten: bool = False,
        dropout: float = 0.0,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        one_of("model.block", block, BLOCKS)
        one_of("model.shortcut", shortcut, SHORTCUTS)
        _possible(blocks, width, norm, skip=skip, zero_init=zero_init_residual, dropped=stochastic_depth)
        style = Style(activation, norm, maxout_pieces)
        if whiten:
            self.whiten = WhiteningBlock(in_channels, style)
            in_channels = self.whiten.out_channels
        self.stem = _stem(stem, in_channels, width, style, image_size, antialias=antialias)
        kind = _Kind(block, shortcut if skip else "none", antialias, se_ratio)
        drops = iter(rates(stochastic_depth, sum(blocks)))
        channels = width
        for stage, count in enumerate(blocks):
            layers = nn.Sequential()
            for number in range(count):
                stride = 2 if stage and not number else 1
                made = _Block(channels, width * 2**stage, style, kind, stride=stride, drop=next(drops))
                if zero_init_residual:
                    made.start_as_identity()
                layers.add_module(f"block{number + 1}", made)
                channels = width * 2**stage * BLOCKS[block]
            self.add_module(f"stage{stage + 1}", layers)
        self.pool = GlobalAverage()
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.head = nn.Linear(channels, num_classes)


def _possible(blocks: Sequence[int], width: int, norm: str, *, skip: bool, zero_init: bool, dropped: float) -> None:
    if not blocks or min(blocks) < 1 or width < 1:
        raise UserError(f"model.blocks={list(blocks)} and model.width={width} must be at least 1")
    if zero_init and (norm == "none" or not skip):
        raise UserError("model.zero_init_residual=true needs a norm and model.skip=true: it sets scales to 0")
    if dropped and not skip:
        raise UserError(
            f"model.stochastic_depth={dropped} needs model.skip=true: without it nothing is left of a block"
        )


def _stem(name: str, in_channels: int, width: int, style: Style, image_size: int, *, antialias: bool) -> nn.Sequential:
    if one_of("model.stem", name, STEMS) == "auto":
        name = next((stem for stem, side in SIDES.items() if image_size <= side), "deep")
    if name == "small":
        return conv_block(in_channels, width, 3, style)
    if name == "imagenet":
        made = conv_block(in_channels, width, 7, style, stride=2)
    else:
        half = max(1, width // 2)
        made = nn.Sequential()
        for number, (into, wide) in enumerate(((in_channels, half), (half, half), (half, width)), 1):
            made.add_module(f"conv{number}", conv_block(into, wide, 3, style, stride=2 if number == 1 else 1))
    if name != "half":
        made.add_module("pool", max_blur_pool(width) if antialias else nn.MaxPool2d(3, 2, padding=1))
    return made


class _Kind(NamedTuple):
    """What all blocks of a network share."""

    block: str
    shortcut: str
    antialias: bool
    se_ratio: float


class _Block(nn.Module):
    """activation(F(x) + shortcut(x)); F is two 3×3 convolutions, or 1×1, 3×3, 1×1 in a bottleneck."""

    def __init__(self, in_channels: int, width: int, style: Style, kind: _Kind, *, stride: int, drop: float) -> None:
        super().__init__()
        channels = width * BLOCKS[kind.block]
        blur = kind.antialias and stride > 1
        # a convolution of stride 1 with its activation, then a blurred subsampling (Zhang 2019, §3.2)
        own = 1 if blur else stride
        if kind.block == "basic":
            self.conv1 = conv_block(in_channels, width, 3, style, stride=own)
            self.conv2 = conv_block(width, channels, 3, style, activate=False)
            self.conv3 = None
        else:
            self.conv1 = conv_block(in_channels, width, 1, style)
            self.conv2 = conv_block(width, width, 3, style, stride=own)
            self.conv3 = conv_block(width, channels, 1, style, activate=False)
        if blur:
            (self.conv1 if kind.block == "basic" else self.conv2).add_module("blur", BlurPool(width))
        self.se = SqueezeExcitation(channels * style.pieces, kind.se_ratio) if kind.se_ratio else None
        self.drop = StochasticDepth(drop) if drop else None
        self.shortcut = _shortcut(kind, in_channels, channels, stride, style)
        self.activation = activation(style.activation, pieces=style.maxout_pieces)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        if self.conv3 is not None:
            out = self.conv3(out)
        if self.se is not None:
            out = self.se(out)
        if self.drop is not None:
            out = self.drop(out)
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return self.activation(out)  # type: ignore[no-any-return]

    def start_as_identity(self) -> None:
        """Set the scale of the last norm to 0, so that the block starts as its shortcut (Goyal 2017)."""
        nn.init.zeros_((self.conv3 or self.conv2).get_parameter("norm.weight"))


def _shortcut(kind: _Kind, in_channels: int, channels: int, stride: int, style: Style) -> nn.Module | None:
    """The way around a branch; None without one."""
    changes = stride > 1 or in_channels != channels
    if kind.shortcut == "none":
        return None
    smaller: nn.Module | None = None
    if stride > 1 and kind.antialias:
        smaller, stride = BlurPool(in_channels), 1
    elif stride > 1 and kind.shortcut == "pooled":
        smaller, stride = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), 1
    made: nn.Module
    if kind.shortcut != "pad" and changes:
        made = conv_block(in_channels, channels, 1, style, stride=stride, activate=False)
        if smaller is not None:
            made = nn.Sequential(OrderedDict(pool=smaller, **dict(made.named_children())))
        return made
    made = _Carry(channels - in_channels, stride, style.pieces)
    return made if smaller is None else nn.Sequential(OrderedDict(pool=smaller, carry=made))


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
