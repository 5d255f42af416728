"""The units of a run's input, and what makes other values fit them (`dlrun predict`, `dlrun export`).

A run records type, range and white level of its training images. Values that fit are taken as they are, values in units
that are unmistakable are scaled, and the rest is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.data.decoding import TWELVE_BITS
from dlrun.data.headers import white_level
from dlrun.data.images import Images, InMemory, files_of

__all__ = ["Unfit", "Units", "Values", "decoding_of", "factor", "measured", "recorded", "values_of"]

PART = 64  # images measured at a time
DARK = 16  # floats between 1 and this may be either 0 to 1 with overshoot, or very dark 0 to 255


class Unfit(ValueError):
    """Values whose units are not those of the run, and cannot be told."""


@dataclass(frozen=True)
class Units:
    """Type (uint8, uint16, float32), range and white level of images; white None: floats that are no brightness."""

    dtype: str
    low: float
    high: float
    white: float | None

    def record(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        end = f" (white {self.white:g})" if self.white not in (None, 255, 1) else ""
        return f"{self.dtype} from {self.low:g} to {self.high:g}{end}"


@dataclass(frozen=True)
class Values:
    """Type and range of an array, and whether all its values are whole numbers."""

    dtype: np.dtype[Any]
    low: float
    high: float
    whole: bool

    def __str__(self) -> str:
        return f"{self.dtype} from {self.low:g} to {self.high:g}"


def values_of(parts: Iterable[NDArray[Any]]) -> Values:
    """Return type and range of an array that is given in parts; values that are not finite do not count."""
    low, high, whole, dtype = np.inf, -np.inf, True, np.dtype(np.uint8)
    for part in parts:
        dtype = part.dtype
        finite = part[np.isfinite(part)] if dtype.kind == "f" else part
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            whole = whole and (dtype.kind != "f" or bool((finite == np.rint(finite)).all()))
    return Values(dtype, *((low, high) if low <= high else (0.0, 0.0)), whole)


def decoding_of(images: Images, units: Units) -> dict[str, Any]:
    """Return {"decoding": how files became these images}, with the white level that they have; {} if they are none."""
    if (files := files_of(images)) is None:
        return {}
    how = files.recipe
    if how.whites and units.white:
        how = replace(how, whites={**how.whites, how.held: units.white})
    return {"decoding": how.record()}


def measured(images: Images) -> Units:
    """Return the units of training images; the white level of files is the one they were decoded with, if any."""
    files = files_of(images)
    white = None if files is None else files.decoding.whites.get(files.decoding.held)
    if isinstance(images, InMemory) and images.pixels.dtype == torch.uint8:
        return Units("uint8", 0.0, 255.0, 255.0)
    dtype = "float32"
    if isinstance(images, InMemory):
        pixels, rows = images.pixels.cpu().numpy(), images.rows
        numbers = np.arange(len(pixels)) if rows is None else rows.cpu().numpy()
        found = values_of(pixels[numbers[at : at + PART]] for at in range(0, len(numbers), PART))
        dtype = str(pixels.dtype)
    else:
        if (dtype := str(images.dtype)) == "uint8":  # type: ignore[attr-defined]
            return Units("uint8", 0.0, 255.0, 255.0)
        index = torch.arange(len(images))
        found = values_of(images.take(part).numpy() for part in torch.split(index, PART))
    if dtype == "uint16":
        return Units(dtype, found.low, found.high, white or white_level(dtype, found.high))
    if found.low < 0 or (found.high > 255 and not white):
        return Units(dtype, found.low, found.high, None)
    return Units(dtype, found.low, found.high, white or white_level(dtype, found.high))


def recorded(data: Mapping[str, Any], images: NDArray[Any] | None) -> Units | None:
    """Return the units in a run's record of its data; for older runs from the few `images` they stored.

    None if neither tells. Raises ValueError for a record that is none.
    """
    found = data.get("units")
    if found is None:
        if images is not None and images.dtype != np.uint8 and images.size:
            stored = values_of([images])
            return Units("float32", stored.low, stored.high, _brightness(stored))
        sure = images is not None or max(data["mean"]) > 2
        return Units("uint8", 0.0, 255.0, 255.0) if sure else None
    if not isinstance(found, Mapping) or found.get("dtype") not in ("uint8", "uint16", "float32"):
        raise ValueError("units")
    white = found.get("white")
    return Units(found["dtype"], float(found["low"]), float(found["high"]), None if white is None else float(white))


def _brightness(found: Values) -> float | None:
    """The white level of an array's values, if it is unmistakable."""
    if found.dtype == np.uint8:
        return 255.0
    if found.low < 0:
        return None
    if found.dtype.kind == "f" and not found.whole:
        return 1.0 if found.high <= 1 else 255.0 if DARK < found.high <= 255 else None
    if found.high <= 255:
        return 255.0 if found.high > DARK or found.dtype.kind != "f" else None
    return 65535.0 if TWELVE_BITS < found.high <= 65535 else None


def factor(found: Values, run: Units | None) -> float:
    """Return by what values are multiplied to be in the units of a run; 1 if they fit. Raises Unfit."""
    if run is None or (found.low == found.high == 0):
        return 1.0
    if run.white is None:
        span = run.high - run.low
        if found.dtype.kind == "f" and run.low - span <= found.low and found.high <= run.high + span:
            return 1.0
        raise Unfit(_refusal(found, run))
    if found.dtype == run.dtype == "uint16" or (run.dtype == "uint16" and found.whole and found.high > 255):
        if found.low >= 0 and found.high <= run.white:
            return 1.0
        raise Unfit(_refusal(found, run))
    if run.white == 255 and found.dtype.kind == "f" and found.low >= 0 and 1 < found.high <= 255:
        return 1.0
    level = _brightness(found)
    if run.white == 1 and found.dtype.kind == "f" and found.low >= 0 and found.high <= 1:
        return 1.0
    if level is None:
        raise Unfit(_refusal(found, run))
    return run.white / level


def _refusal(found: Values, run: Units) -> str:
    return f"is {found}, the training images are {run}; bring it to the same units"
