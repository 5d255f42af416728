"""Decoded images of 8 bits resized by torch's kernel for bytes (`dlrun train dataset=shards`, `dataset.decoder=3`, D1).

It takes a third of the time of Pillow's, which dlrun/data/fitting.py uses. Both round after each of two passes, and are
within 1 of the exact value: they differ by at most 2 of 255, and in one value of 500 by 1. Only bilinear crops and
squashed images of 8 bits are resized so; torch's bicubic differs by far more at sharp edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from dlrun.data.fitting import STRIP, Fit, fitted, scaled, wider

__all__ = ["DECODER", "placed", "resized"]

DECODER = 3  # the value of Decoding.decoder for which it is used
MODES = ("L", "RGB")


def placed(size: tuple[int, int], height: int, width: int, how: Fit) -> tuple[int, int, int, int] | None:
    """Return the rows and columns to which an image of a size (width, height) is resized, and where its crop begins.

    None if Pillow resizes it: by another interpolation, into a letterbox, or a strip that is cut before.
    """
    columns, rows = (width, height)
    if how.resize == "crop":
        columns, rows = scaled(size, *wider(width, height, how), inside=False)
    usual = how.resize in ("crop", "squash") and how.interpolation == "bilinear"
    if not usual or columns * rows > STRIP * width * height:
        return None
    return rows, columns, round((rows - height) / 2), round((columns - width) / 2)


def resized(image: Picture, height: int, width: int, how: Fit, white: float) -> NDArray[Any]:
    """Return the pixels (H, W) or (H, W, C) of an image, brought to a size as `fitting.fitted` does."""
    if image.mode not in MODES or (place := placed(image.size, height, width, how)) is None:
        return np.asarray(fitted(image, height, width, how, white))
    rows, columns, top, left = place
    pixels = np.array(image)  # of its own, since torch wants writable memory
    planes = torch.from_numpy(pixels).view(1, image.height, image.width, -1)
    # channels-last, which the kernel takes as it is; nothing here starts one more set of compute threads
    made = F.interpolate(planes.permute(0, 3, 1, 2), (rows, columns), mode="bilinear", antialias=True)
    cut = made[0].permute(1, 2, 0)[top : top + height, left : left + width].numpy()
    return cut if pixels.ndim == 3 else cut[..., 0]
