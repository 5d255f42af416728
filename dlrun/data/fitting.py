"""How an image is brought to the size of the others: squashed, cropped or letterboxed (`dataset.resize`, D4)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageStat
from PIL.Image import Image as Picture
from PIL.Image import Resampling

__all__ = ["FILTERS", "STRIP", "Fit", "Held", "fitted", "ground", "scaled", "wider"]

FILTERS = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC, "area": Resampling.BOX}  # all antialiased
STRIP = 16  # resized images with more times the pixels of their crop are cut before resizing


class Held(Protocol):
    """A file inside of another one, see dlrun/data/members.py."""

    @property
    def name(self) -> str: ...
    def read_bytes(self) -> bytes: ...


class Fit(Protocol):
    """The fields of dlrun.data.decoding.Decoding that matter here."""

    @property
    def resize(self) -> str: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def background(self) -> str: ...
    @property
    def crop(self) -> float: ...


def fitted(image: Picture, height: int, width: int, how: Fit, white: float) -> Picture:
    """An image of size (width, height): squashed, cropped as torchvision's Resize and CenterCrop do, or letterboxed."""
    chosen = FILTERS[how.interpolation]
    if how.resize == "squash":
        return image.resize((width, height), chosen)
    columns, rows = scaled(image.size, *wider(width, height, how), inside=how.resize == "letterbox")
    left, top = round((columns - width) / 2), round((rows - height) / 2)
    if how.resize == "crop" and columns * rows > STRIP * width * height:
        # the same pixels up to rounding, without the memory of the whole: a strip of 5,000 × 1 took a gigabyte
        across, down = image.width / columns, image.height / rows
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), chosen, (*box[:2], min(box[2], image.width), min(box[3], image.height)))
    if image.size != (columns, rows):
        image = image.resize((columns, rows), chosen)
    if how.resize == "crop":
        return image.crop((left, top, left + width, top + height))
    whole = Image.new(image.mode, (width, height), ground(image, how.background, None, white))
    whole.paste(image, ((width - columns) // 2, (height - rows) // 2))
    return whole


def ground(image: Picture, background: str, alpha: Picture | None, white: float) -> Any:
    """The colour of the background: of one band a number, of three a tuple."""
    bands = len(image.getbands())
    if background == "average" and (alpha is None or alpha.getbbox() is not None):
        if alpha is None:
            mean = ImageStat.Stat(image).mean
        else:
            weight = np.asarray(alpha, dtype=np.float64)[..., None]
            mean = (np.asarray(image).reshape(*weight.shape[:2], bands) * weight).sum((0, 1)) / weight.sum()
        colour = [value if image.mode == "F" else round(value) for value in mean]
    else:
        colour = [0 if background == "black" else white] * bands
    return colour[0] if bands == 1 else tuple(colour)


def wider(width: int, height: int, how: Fit) -> tuple[int, int]:
    """The size that an image covers before a crop of (width, height) is cut out, rounded down as in timm."""
    if how.resize != "crop" or how.crop == 1:
        return width, height
    return int(width / how.crop + 1e-6), int(height / how.crop + 1e-6)


def scaled(size: tuple[int, int], width: int, height: int, *, inside: bool) -> tuple[int, int]:
    """The size of an image that just fits inside (width, height), or just covers it, with its aspect ratio."""
    columns, rows = size
    if (columns * height >= rows * width) == inside:
        return width, max(1, round(rows * width / columns)) if inside else int(width * rows / columns)
    return max(1, round(columns * height / rows)) if inside else int(height * columns / rows), height
