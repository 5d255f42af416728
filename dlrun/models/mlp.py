"""A multi-layer perceptron: `dlrun train model=mlp model.depth=2 model.width=256` (M3)."""

from __future__ import annotations

from torch import nn

from dlrun.errors import UserError
from dlrun.models.layers import Style, dropout_layer, linear_block

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """`depth` hidden layers of `width` units, dropout after each; depth 0 is softmax regression.

    (B, in_channels, image_size, image_size) -> logits (B, num_classes); `image_shape` is (H, W) if they differ.
    Raises UserError on unknown names and impossible sizes.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        *,
        width: int = 256,
        depth: int = 2,
        activation: str = "relu",
        norm: str = "batch",
        maxout_pieces: int = 2,
        dropout: float = 0.0,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if depth < 0 or width < 1:
            raise UserError(f"model.depth={depth} must be at least 0 and model.width={width} at least 1")
        style = Style(activation, norm, maxout_pieces)
        height, width_in = image_shape or (image_size, image_size)
        features = in_channels * height * width_in
        self.flatten = nn.Flatten()
        for number in range(1, depth + 1):
            layer = linear_block(features, width, style)
            layer.add_module("dropout", dropout_layer(dropout))
            self.add_module(f"layer{number}", layer)
            features = width
        self.head = nn.Linear(features, num_classes)
