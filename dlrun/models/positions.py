"""Position embeddings of other image sizes: a ViT of 224 pixels starts one of 96 (`dataset.image_size=96`, M3).

Weights have one vector per patch of the images that they were trained with. For another number of patches the grid of
vectors is resized like an image.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["resampled"]

PREFIXES = 17  # class token, distillation token, up to 16 registers


def resampled(name: str, source: Tensor, own: Tensor, model: nn.Module) -> tuple[Tensor, str] | None:
    """Return embeddings (1, N, D) for the grid of the model, of the shape of `own`, and a line about it.

    Bicubic and antialiased, as timm does; the vectors of class tokens stay. None for what is no such embedding: another
    name, or a number of vectors that is no square.
    """
    if "pos" not in name.rpartition(".")[2] or source.ndim != 3 or own.ndim != 3:
        return None
    if (len(source), len(own)) != (1, 1) or source.shape[2] != own.shape[2] or not source.is_floating_point():
        return None
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for prefix in range(PREFIXES):
        old, new = source.shape[1] - prefix, own.shape[1] - prefix
        if min(old, new) < 1:
            return None
        side = math.isqrt(old)
        height, width = grid if grid and math.prod(grid) == new else (math.isqrt(new),) * 2
        if (side * side, height * width) == (old, new):
            break
    else:
        return None
    map_ = source[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    map_ = F.interpolate(map_, (height, width), mode="bicubic", antialias=True)
    made = own.new_empty(own.shape)
    made[:, :prefix] = source[:, :prefix]
    made[:, prefix:] = map_.permute(0, 2, 3, 1).flatten(1, 2)
    return made, f"{name} resampled from {side}×{side} to {height}×{width} patches"
