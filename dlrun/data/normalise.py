"""The mean and std by which images are normalised: measured, given, or those of weights (`dataset.normalize=`, D3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dlrun.data.splits import Data
from dlrun.errors import UserError

__all__ = ["normalised"]


def normalised(data: Data, normalize: Any) -> Data:
    """Return data with the given mean and std per channel, in shares of white; measured ones for auto and data.

    Of images without a white level they are in the units of the images. For another number of channels their means
    are used. Raises UserError for numbers that cannot be mean and std of these images.
    """
    if not isinstance(normalize, list):
        return data
    key, channels, white = f"dataset.normalize={_shown(normalize)}", data.shape[2], data.units.white
    mean, std = (_per_channel(key, part, channels) for part in normalize)
    if white is None and max(data.units.high, -data.units.low) > 1:
        unit = f"{data.units}: they have no white level"
        raise UserError(f"{key}: the images are {unit}; type dataset.normalize=data")
    if max(map(abs, mean)) > 1 or max(std) > 1:
        raise UserError(f"{key}: expected shares of white, 0 to 1; divide by 255")
    scale = white or 1.0
    own = data.own or (data.mean, data.std)
    made = replace(data, mean=[v * scale for v in mean], std=[v * scale for v in std], own=own)
    vars(made).update({name: vars(data)[name] for name in ("audit", "units") if name in vars(data)})
    return made


def _per_channel(key: str, values: Any, channels: int) -> list[float]:
    found = [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
    if len(found) == channels:
        return found
    if len(found) not in (1, 3):
        raise UserError(f"{key}: expected {channels} numbers, one per channel, found {len(found)}")
    return [sum(found) / len(found)] * channels


def _shown(normalize: Any) -> str:
    return "[" + ",".join("[" + ",".join(f"{v:g}" for v in part) + "]" for part in normalize) + "]"
