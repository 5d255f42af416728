"""Colours of 16 bits in PNG and TIFF files, whose low bytes Pillow leaves out (`dataset=image_folder`, D4)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

__all__ = ["LUMA", "of_sixteen", "opaque", "sixteen"]

MODES = ("RGB;16", "RGBA;16")  # of Pillow's raw decoder, before the order of the bytes
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # brightness of RGB: ITU-R BT.601, as Pillow computes it
OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def of_sixteen(image: Picture) -> bool:
    """Whether an image, opened and not loaded, has colours of 16 bits."""
    tiles: Any = getattr(image, "tile", None)
    return bool(tiles) and all(_raw(tile)[:-1] in MODES and _raw(tile)[-1] in OTHER for tile in tiles)


def sixteen(image: Picture, again: Picture) -> NDArray[np.float32]:
    """Return the values (H, W, 3 or 4) of an image that is opened twice: its high and its low bytes are decoded."""
    image.load()
    tiles: Any = again.tile  # type: ignore[attr-defined]
    again.tile = [_swapped(tile) for tile in tiles]  # type: ignore[attr-defined]
    again.load()
    values: NDArray[np.float32] = np.asarray(image).astype(np.float32) * 256 + np.asarray(again)
    return values


def opaque(values: NDArray[np.float32], background: str, white: float) -> NDArray[np.float32]:
    """Return colours (H, W, 3) of values with alpha (H, W, 4), on white, black, or the average of what is visible."""
    colours, alpha = values[..., :3], values[..., 3:] / np.float32(65535)
    grounds = {"black": np.zeros(3), "white": np.full(3, white)}
    if background == "average" and alpha.any():
        grounds["average"] = (colours * alpha).sum((0, 1), dtype=np.float64) / alpha.sum(dtype=np.float64)
    ground = grounds.get(background, grounds["white"]).astype(np.float32)
    found: NDArray[np.float32] = colours * alpha + ground * (1 - alpha)
    return found


def _raw(tile: Any) -> str:
    """The raw mode of a tile of Pillow: codec, box, offset, and arguments of the codec."""
    args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    return args[0] if args and isinstance(args[0], str) and args[0] else "?"


def _swapped(tile: Any) -> Any:
    """The tile with the bytes of each value in the other order, so that the low ones count as high."""
    raw = _raw(tile)[:-1] + OTHER[_raw(tile)[-1]]
    args = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
    return type(tile)((*tile[:3], args)) if type(tile) is tuple else type(tile)(*tile[:3], args)
