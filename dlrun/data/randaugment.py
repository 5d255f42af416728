"""RandAugment's random choice of operations, and those that only it has (`augment=randaugment`, D7).

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019), with the
operations and strengths of torchvision's RandAugment. A sample's choice becomes numbers that are neutral for all other
samples, so that the whole batch passes every operation once, in the order of `Augment`; an operation chosen twice is
twice as strong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.data import colour
from dlrun.data.draws import Draws

__all__ = ["OPERATIONS", "Drawn", "draw", "toned"]

# the maximum strength in either direction: tangents, fractions, radians, changes of a factor
MOVES = {"shear_x": 0.3, "shear_y": 0.3, "shift_x": 150 / 331, "shift_y": 150 / 331, "rotate": math.radians(30)}
FACTORS = {"brightness": 0.9, "saturation": 0.9, "contrast": 0.9, "sharpness": 0.9}
OPERATIONS = ("identity", *MOVES, *FACTORS, "posterize", "solarize", "autocontrast", "equalize")
STRONGEST = 30


@dataclass(frozen=True)
class Drawn:
    """Values (B,): `moves` to add, `factors` to multiply by, bits to keep, a threshold, and masks of chosen samples."""

    moves: dict[str, Tensor]
    factors: dict[str, Tensor]
    bits: Tensor
    threshold: Tensor
    autocontrast: Tensor
    equalize: Tensor


def draw(count: int, magnitude: int, draws: Draws, device: torch.device) -> Drawn:
    """Choose `count` operations for each sample, with replacement, of strength `magnitude` of 30."""
    strength = magnitude / STRONGEST
    numbers = draws.integers("randaugment", len(OPERATIONS), count).to(device, non_blocking=True)
    signs = draws.integers("randaugment signs", 2, count).to(device, non_blocking=True) * 2 - 1
    picked = {name: numbers == number for number, name in enumerate(OPERATIONS)}
    posterized, solarized = picked["posterize"].any(0), picked["solarize"].any(0)
    return Drawn(
        moves={name: (signs * picked[name]).sum(0) * (most * strength) for name, most in MOVES.items()},
        factors={name: (1 + signs * picked[name] * (most * strength)).prod(0) for name, most in FACTORS.items()},
        bits=torch.where(posterized, float(8 - round(4 * strength)), 8.0),
        threshold=torch.where(solarized, 1 - strength, math.inf),
        autocontrast=picked["autocontrast"].any(0),
        equalize=picked["equalize"].any(0),
    )


def toned(x: Tensor, drawn: Drawn) -> Tensor:
    """Apply autocontrast, equalize, posterize and solarize to images (B, C, H, W)."""
    x = colour.equalize(colour.autocontrast(x, drawn.autocontrast), drawn.equalize)
    return colour.solarize(colour.posterize(x, drawn.bits), drawn.threshold)
