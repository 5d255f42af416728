"""A plain convolutional network, set by its config: `dlrun train model=cnn model.depth=6 model.width=64` (M1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dlrun.errors import UserError
from dlrun.models.blur_pool import max_blur_pool
from dlrun.models.layers import GlobalAverage, Style, conv_block, dropout_layer, one_of
from dlrun.models.squeeze_excitation import SqueezeExcitation
from dlrun.models.whitening import WhiteningBlock

__all__ = ["CNN"]

_POOLINGS: dict[str, type[nn.MaxPool2d | nn.AvgPool2d]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


class CNN(nn.Sequential):
    """Stages of convolutions that halve the map from stage to stage, a global average and a linear head.

    There are three stages whose widths double from `width`, or one stage per entry of `widths`; the `depth`
    convolutions are spread evenly over them, early stages first. Every stage but the first starts by halving
    the map: `pool` is max or avg over 2×2, blur (max over 3×3, then anti-aliased), stride 2 in the convolution, or
    none. Odd sides are rounded up, so that images of any size work. `se_ratio` above 0 adds squeeze-and-excitation
    after every convolution. `whiten` adds a frozen first layer that whitens patches of 2×2. Dropout comes before the
    head.

    (B, in_channels, H, W) -> logits (B, num_classes). Raises UserError on unknown names and impossible sizes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        depth: int = 3,
        width: int = 32,
        widths: Sequence[int] | None = None,
        kernel_size: int = 3,
        pool: str = "max",
        se_ratio: float = 0.0,
        activation: str = "relu",
        norm: str = "batch",
        maxout_pieces: int = 2,
        whiten: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("model.pool", pool, (*_POOLINGS, "blur", "stride", "none"))
        style = Style(activation, norm, maxout_pieces)
        stages = _stage_widths(depth, width, widths)
        channels = in_channels
        if whiten:
            self.whiten = WhiteningBlock(in_channels, style)
            channels = self.whiten.out_channels
        for stage, wide in enumerate(stages):
            layers = nn.Sequential()
            if stage > 0 and pool in _POOLINGS:
                layers.add_module("pool", _POOLINGS[pool](2, ceil_mode=True))
            elif stage > 0 and pool == "blur":
                layers.add_module("pool", max_blur_pool(channels))
            for conv in range(depth // len(stages) + (stage < depth % len(stages))):
                stride = 2 if pool == "stride" and stage > 0 and conv == 0 else 1
                layers.add_module(f"conv{conv + 1}", conv_block(channels, wide, kernel_size, style, stride=stride))
                channels = wide
                if se_ratio:
                    layers.add_module(f"se{conv + 1}", SqueezeExcitation(wide, se_ratio))
            self.add_module(f"stage{stage + 1}", layers)
        self.pool = GlobalAverage()
        self.flatten = nn.Flatten()
        self.dropout = dropout_layer(dropout)
        self.head = nn.Linear(channels, num_classes)


def _stage_widths(depth: int, width: int, widths: Sequence[int] | None) -> list[int]:
    if depth < 1:
        raise UserError(f"model.depth={depth} must be at least 1")
    if widths is None:
        widths = [width * 2**stage for stage in range(min(depth, 3))]
    elif not 1 <= len(widths) <= depth:
        raise UserError(
            f"model.widths has {len(widths)} stages for model.depth={depth} convolutions; "
            f"give 1 to {depth} widths or type model.depth={max(len(widths), 1)}"
        )
    if min(widths) < 1:
        raise UserError(f"model.width: every stage needs at least 1 channel, found {list(widths)}")
    return list(widths)
