"""What the headers of image files say: size, kind of values, transparency, number of frames (D1).

Behind `dlrun train dataset=image_folder`: the type in which pixels are held, the size of images that are not resized,
and the sizes that the check data_audit reports. Pixels are decoded only for the white level of values of more than 8
bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from dlrun.data.decoding import KINDS, Decoding, deep, kind_of, opened, upright
from dlrun.data.images import Images, Streamed, run_ahead
from dlrun.data.members import File
from dlrun.data.sixteen import sixteen
from dlrun.errors import UserError

__all__ = ["Files", "alike", "first_size", "header", "held", "levelled", "looked_at", "scaled", "veiled", "white_level"]

DEEP = frozenset((".j2k", ".jp2", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"))  # may exceed 8 bits
LOOKED = 64  # files whose headers decide whether all are read
SHOWN = 500  # files whose sizes are reported, at equal distances


class Header(NamedTuple):
    """Size in pixels as displayed, kind of values, and whether the file has several pictures in time."""

    height: int
    width: int
    kind: str
    animated: bool


@dataclass(frozen=True)
class Files:
    """Sizes (height, width) of `count` files, by area; how many are animated; the share that resizing cuts off.

    `lost` is of the median image, the middle one by aspect ratio.
    """

    count: int
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    aspects: tuple[float, float]  # width / height, least and most
    animated: int
    lost: float

    def __str__(self) -> str:
        named = {"smallest": self.smallest, "median": self.median, "largest": self.largest}
        sizes = ", ".join(f"{name} {height}×{width}" for name, (height, width) in named.items())
        text = f"{self.count} files looked at: {sizes} (height×width)"
        low, high = self.aspects
        text += f", width/height {low:.2f} to {high:.2f}" if high > low else ""
        return f"{text}; {self.animated} animated, of which the first frame counts" if self.animated else text


@dataclass(frozen=True)
class _Peak:
    kind: str
    value: float


def header(path: File) -> Header | None:
    """Return what a file's header says; None for one that is no image."""
    with suppress(Exception), opened(path) as image:
        width, height = image.size
        # a PNG would be decoded to find its orientation, and Pillow has turned the size of a TIFF already
        if image.format in ("JPEG", "MPO", "WEBP", "AVIF") and image.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return Header(height, width, kind_of(image), animated)
    return None


def _spread(files: Sequence[File], most: int) -> list[File]:
    """At most `most` files at equal distances: a folder's are sorted by class."""
    return [files[int(k)] for k in np.linspace(0, len(files) - 1, min(most, len(files)))] if files else []


def looked_at(images: Streamed) -> Files | None:
    """Return the sizes of image files, from the headers of at most SHOWN; None if none is readable."""
    found = [one for path in _spread(images.files, SHOWN) if (one := header(path)) is not None]
    if not found:
        return None
    sizes = sorted(((one.height, one.width) for one in found), key=lambda size: size[0] * size[1])
    aspects = sorted(one.width / one.height for one in found)
    middle, wanted = aspects[len(aspects) // 2], images.shape[1] / images.shape[0]
    lost = 1 - min(middle / wanted, wanted / middle) if images.recipe.resize == "crop" else 0.0
    ends = (aspects[0], aspects[-1])
    count = sum(one.animated for one in found)
    return Files(len(found), sizes[0], sizes[len(sizes) // 2], sizes[-1], ends, count, lost)


def veiled(path: File) -> bool:
    """Whether a file that looks blank holds a picture that only its transparency hides."""
    with suppress(Exception), opened(path) as image:
        image.load()
        alpha = "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBA", "RGBa")
        return alpha and any(low < high for low, high in image.convert("RGBA").getextrema())  # type: ignore[misc]
    return False


def first_size(files: Sequence[File]) -> tuple[int, int]:
    """Return height and width of the first readable file; the scan compares the others with it.

    Raises UserError if none is readable.
    """
    for path in files:
        with suppress(Exception), opened(path) as image:
            image.load()
            width, height = upright(image).size
            return height, width
    raise UserError(f"{files[0]}: cannot be read as an image, nor can the {len(files) - 1} others; repair them")


def held(files: Sequence[File], how: Decoding) -> Decoding:
    """Return the same with the kind in which pixels are held: the largest, if most files have more than 8 bits.

    White levels that are still to be measured are 0.
    """
    candidates = [path for path in files if path.suffix.lower() in DEEP]
    if how.decoder == 1 or set(_kinds(_spread(candidates, LOOKED))) <= {"uint8"}:
        return how
    kinds = _kinds(candidates)  # of all: files of both sorts have to be scaled to each other
    kinds["uint8"] += len(files) - len(candidates)
    kinds = +kinds
    largest = max(kinds, key=KINDS.index) if 2 * kinds["uint8"] < kinds.total() else "uint8"
    return replace(how, held=largest, whites={kind: 255.0 if kind == "uint8" else 0.0 for kind in sorted(kinds)})


def scaled(files: Sequence[File], how: Decoding) -> list[File]:
    """Return the files whose values have more bits than those a run was trained on, which are scaled."""
    deep = [path for path in files if path.suffix.lower() in DEEP and how.decoder > 1]
    kinds = {"uint8", how.held, *how.whites}
    return [path for path in deep if (found := header(path)) is not None and found.kind not in kinds]


def _kinds(files: Iterable[File]) -> Counter[str]:
    """How many files have each kind of values."""
    return Counter(found.kind for path in files if (found := header(path)) is not None)


def alike(images: Images, train: Images) -> Images:
    """Return images whose files are decoded as those of the training images are."""
    both = isinstance(images, Streamed) and isinstance(train, Streamed)
    return replace(images, decoding=train.decoding) if both else images  # type: ignore[attr-defined,type-var]


def levelled(images: Images, workers: int = 0) -> Images:
    """Return training images with the white levels that decoding needs, measured over these files.

    They are needed for kinds of values to be scaled to each other, and for a white ground around a letterbox.
    """
    if not isinstance(images, Streamed):
        return images
    how = images.decoding
    bright = images.resize and how.resize == "letterbox" and how.background == "white"
    if all(how.whites.values()) or not (len(how.whites) > 1 or bright):
        return images
    found = dict.fromkeys(how.whites, 0.0)
    groups = [[partial(_peak, path)] for path in images.files]
    for peak in (one for group in run_ahead(groups, workers) for one in group if one is not None):
        found[peak.kind] = max(found.get(peak.kind, 0.0), peak.value)
    measured = {kind: white_level(kind, value) for kind, value in found.items()}
    return replace(images, decoding=replace(how, whites=measured))


def _peak(path: File) -> _Peak | None:
    with suppress(Exception), opened(path) as image:
        kind = kind_of(image)
        if deep(image):
            with opened(path) as again:
                return _Peak(kind, float(sixteen(image, again)[..., :3].max()))
        image.load()
        return _Peak(kind, float(np.nanmax(np.asarray(image))))
    return None  # decoding reports it


def white_level(kind: str, peak: float) -> float:
    """Return the white level of values up to `peak`: 2^k - 1 for integers, 1, 255 or the peak itself for floats."""
    if kind == "uint8":
        return 255.0
    if kind == "float32":
        return 1.0 if peak <= 1 else 255.0 if peak <= 255 else peak
    return float(2 ** max(8, math.ceil(math.log2(peak + 1))) - 1) if peak > 0 else 255.0
