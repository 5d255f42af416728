"""A plain convolutional network, all in conf: `dlrun train model=cnn model.depth=6 model.width=64` (M1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dlrun.config import UserError
from dlrun.models.layers import Style, conv_block, dropout_layer, one_of

__all__ = ["CNN"]

POOLINGS = ("max", "avg", "stride", "none")


class CNN(nn.Sequential):
    """Stages of convolutions, the map halved from stage to stage, then its global average and a linear head.

    There are three stages whose widths double from `width`, or one stage for each entry of `widths`; the
    `depth` convolutions are spread evenly over them, early stages first. Every stage but the first opens by
    halving the map: `pooling` is max or avg over 2×2, stride 2 in the convolution, or none. A map of one pixel
    is not halved. Dropout stands before the head.

    (B, in_channels, H, W) -> logits (B, num_classes). Raises UserError on unknown names and impossible sizes.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        *,
        depth: int = 3,
        width: int = 32,
        widths: Sequence[int] | None = None,
        kernel_size: int = 3,
        pooling: str = "max",
        activation: str = "relu",
        norm: str = "batch",
        maxout_pieces: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("model.pooling", pooling, POOLINGS)
        style = Style(activation, norm, maxout_pieces)
        stages = _stage_widths(depth, width, widths)
        channels, side = in_channels, image_size
        for stage, wide in enumerate(stages):
            halve = stage > 0 and side > 1 and pooling != "none"
            layers = nn.Sequential()
            if halve and pooling != "stride":
                layers.add_module("pool", nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
            for conv in range(depth // len(stages) + (stage < depth % len(stages))):
                stride = 2 if halve and pooling == "stride" and conv == 0 else 1
                layers.add_module(
                    f"conv{conv + 1}", conv_block(channels, wide, kernel_size, style, stride=stride)
                )
                channels = wide
            if halve:
                side = side // 2
            self.add_module(f"stage{stage + 1}", layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
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
