"""The block that every model here is built from: weights, then norm, then activation.

Reached by `dlrun train model.activation=gelu model.norm=group` with `model=mlp|cnn|resnet…` (M4, M5).
Activations are never in place: hooks and the gradient check read their inputs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from dlrun.errors import UserError

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "GlobalAverage",
    "Maxout",
    "Style",
    "activation",
    "conv_block",
    "dropout_layer",
    "linear_block",
    "norm",
    "one_of",
]

_SIMPLE: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
}
ACTIVATIONS = (*_SIMPLE, "leaky_relu", "maxout")
NORMS = ("batch", "layer", "group", "none")


def one_of(key: str, value: str, known: Iterable[str]) -> str:
    """Return `value`, or raise UserError with similar names if it is not in `known`."""
    names = sorted(known)
    if value in names:
        return value
    near = get_close_matches(str(value), names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {' '.join(names)}"
    raise UserError(f"{key}={value} is unknown; {hint}")


class Maxout(nn.Module):
    """Maximum over groups of `pieces` neighbouring channels: (B, pieces·C, …) -> (B, C, …).

    Goodfellow et al. 2013, "Maxout networks".
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 1, (-1, self.pieces)).amax(dim=2)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


class GlobalAverage(nn.Module):
    """Mean over the map: (B, C, H, W) -> (B, C, 1, 1), whose gradient has the memory layout of x.

    The gradient of nn.AdaptiveAvgPool2d(1) is always NCHW; in a channels-last model, the layer before it then reads
    one layout and writes the other: 2.9 of the 35 ms that a step of the cnn on 128 images of 32 × 32 takes in bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _map_mean(x)


@torch.fx.wrap  # branches on the layout, not on data: torch.fx must not trace into it
def _map_mean(x: Tensor) -> Tensor:
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return nn.functional.adaptive_avg_pool2d(x, 1)
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)[:, :, None, None]


def activation(name: str, *, slope: float = 0.01, pieces: int = 2) -> nn.Module:
    """The activation called `name` (M4); `slope` is leaky ReLU's α, `pieces` maxout's k; raises UserError."""
    if one_of("model.activation", name, ACTIVATIONS) == "maxout":
        return Maxout(pieces)
    if name == "leaky_relu":
        return nn.LeakyReLU(slope)
    return _SIMPLE[name]()


def norm(name: str, channels: int, *, dims: int = 2) -> nn.Module | None:
    """The normalisation called `name` (M5) for (B, channels) or, with dims=2, (B, channels, H, W).

    `none` gives None. Layer norm normalises each sample as a whole, with one scale and shift per channel. Group
    norm has at most 32 groups (Wu & He 2018), of 4 channels or more if possible: a group of one channel on a
    1×1 map is always 0. Raises UserError.
    """
    if one_of("model.norm", name, NORMS) == "batch":
        return nn.BatchNorm1d(channels) if dims == 1 else nn.BatchNorm2d(channels)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels)
    return None


def dropout_layer(p: float) -> nn.Dropout:
    """Dropout with inverted scaling (R2), present even at p=0, so that its rate can be changed by name.

    Raises UserError if p is not in [0, 1).
    """
    if not 0 <= p < 1:
        raise UserError(f"model.dropout={p} must be at least 0 and below 1, for example 0.5")
    return nn.Dropout(p)


@dataclass(frozen=True)
class Style:
    """What follows the weights of every hidden layer of a model."""

    activation: str = "relu"
    norm: str = "batch"
    maxout_pieces: int = 2

    def __post_init__(self) -> None:
        one_of("model.activation", self.activation, ACTIVATIONS)
        one_of("model.norm", self.norm, NORMS)
        if self.maxout_pieces < 2:
            raise UserError(f"model.maxout_pieces={self.maxout_pieces} must be at least 2")

    @property
    def pieces(self) -> int:
        """Weight channels per output channel: more than 1 for maxout only."""
        return self.maxout_pieces if self.activation == "maxout" else 1

    @property
    def bias(self) -> bool:
        """Whether weights need a bias: a norm has its own shift (M5)."""
        return self.norm == "none"

    def block(self, kind: str, weights: nn.Module, channels: int, dims: int, activate: bool) -> nn.Sequential:
        """Return the weights with the norm and, if `activate`, the activation that follow them."""
        layers: OrderedDict[str, nn.Module] = OrderedDict({kind: weights})
        if (normalise := norm(self.norm, channels, dims=dims)) is not None:
            layers["norm"] = normalise
        if activate:
            layers["activation"] = activation(self.activation, pieces=self.maxout_pieces)
        return nn.Sequential(layers)


def linear_block(in_features: int, out_features: int, style: Style) -> nn.Sequential:
    """`linear`, `norm`, `activation`: (B, in_features) -> (B, out_features)."""
    wide = out_features * style.pieces
    return style.block("linear", nn.Linear(in_features, wide, bias=style.bias), wide, 1, True)


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    style: Style,
    *,
    stride: int = 1,
    activate: bool = True,
) -> nn.Sequential:
    """`conv`, `norm`, `activation`: (B, in_channels, H, W) -> (B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉).

    With activate=False the caller applies the activation, maxout included: the output then has
    out_channels·pieces channels.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"model.kernel_size={kernel_size} must be odd: 1, 3, 5, 7 …")
    wide = out_channels * style.pieces
    conv = nn.Conv2d(in_channels, wide, kernel_size, stride, kernel_size // 2, bias=style.bias)
    return style.block("conv", conv, wide, 2, activate)
