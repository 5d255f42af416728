"""Random choices of operations for each sample: RandAugment, TrivialAugment and AugMix (`augment=strong`, D7).

Cubuk et al. 2020, RandAugment; Müller & Hutter 2021, TrivialAugment; Hendrycks et al. 2020, AugMix; with the
operations and strengths of torchvision's classes. Each operation changes only the samples that chose it, so that a
round costs about one operation per image. Images turn and shear about their centre, and are resampled bilinearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.data import colour, geometry
from dlrun.data.draws import Draws

__all__ = ["OPERATIONS", "RAND", "WIDE", "Strengths", "augmix", "operated", "rand", "trivial"]

MOVES = ("shear_x", "shear_y", "shift_x", "shift_y", "rotate")
FACTORS = ("brightness", "saturation", "contrast", "sharpness")
OPERATIONS = ("identity", *MOVES, *FACTORS, "posterize", "solarize", "autocontrast", "equalize")
STRONGEST, SEVEREST = 30, 10
CHAINS, LONGEST = 3, 3  # of AugMix


@dataclass(frozen=True)
class Strengths:
    """The value of each operation at full strength: tangents, shares of a side, degrees, changes of a factor, bits."""

    shear: float
    shift: float
    rotate: float
    factor: float
    bits: int

    def values(self, numbers: Tensor, strength: Tensor, signs: Tensor) -> Tensor:
        """Return the values (…) of operations by number, for strengths from 0 to 1 and signs of 1 and -1."""
        full = [0.0, self.shear, self.shear, self.shift, self.shift, math.radians(self.rotate)]
        found = torch.tensor([*full, *(self.factor for _ in FACTORS), 0, 0, 0, 0])[numbers] * strength * signs
        factors = (numbers > len(MOVES)) & (numbers <= len(MOVES) + len(FACTORS))
        found = torch.where(factors, 1 + found, found)
        bits, threshold = 8 - (self.bits * strength).round(), 1 - strength
        found = torch.where(numbers == OPERATIONS.index("posterize"), bits, found)
        return torch.where(numbers == OPERATIONS.index("solarize"), threshold, found)


RAND = Strengths(shear=0.3, shift=150 / 331, rotate=30, factor=0.9, bits=4)
WIDE = Strengths(shear=0.99, shift=32 / 224, rotate=135, factor=0.99, bits=6)  # of TrivialAugmentWide
MIXED = Strengths(shear=0.3, shift=1 / 3, rotate=30, factor=0.9, bits=4)


def rand(x: Tensor, count: int, magnitude: float, spread: float, draws: Draws, *, reflect: bool) -> Tensor:
    """Apply `count` operations to each image (B, C, H, W), one after the other, of strength `magnitude` of 30.

    With `spread` a sample's magnitude is Gaussian with that standard deviation, within 0 and 30 (timm's mstd).
    """
    numbers = draws.integers("randaugment", len(OPERATIONS), count)
    signs = draws.integers("randaugment signs", 2, count) * 2 - 1
    u = draws.uniform("randaugment magnitude", count).clamp(1e-6, 1 - 1e-6)
    strength = (magnitude + spread * math.sqrt(2) * (2 * u - 1).erfinv()).clamp(0, STRONGEST) / STRONGEST
    for chosen, value in zip(numbers, RAND.values(numbers, strength, signs), strict=True):
        x = operated(x, chosen, value, reflect=reflect)
    return x


def trivial(x: Tensor, draws: Draws, *, reflect: bool) -> Tensor:
    """Apply one operation of any strength to each image (B, C, H, W)."""
    numbers, strength = draws.integers("trivial", len(OPERATIONS))[0], draws.integers("trivial strength", 31)[0] / 30
    values = WIDE.values(numbers, strength, draws.integers("trivial signs", 2)[0] * 2 - 1)
    return operated(x, numbers, values, reflect=reflect)


def augmix(x: Tensor, severity: int, draws: Draws, *, reflect: bool) -> Tensor:
    """Mix each image (B, C, H, W) with three chains of one to three operations, of strength below `severity` of 9."""
    rounds = CHAINS * LONGEST
    numbers = draws.integers("augmix", len(OPERATIONS) - 1, rounds) + 1
    signs = draws.integers("augmix signs", 2, rounds) * 2 - 1
    strength = draws.integers("augmix strength", severity, rounds) / (SEVEREST - 1)
    long = draws.integers("augmix length", LONGEST, CHAINS) + 1
    values = MIXED.values(numbers, strength, signs)
    # Dirichlet(1, …): exponential numbers by their sum; Beta(1, 1): uniform
    shares = -draws.uniform("augmix shares", CHAINS).clamp_min(1e-6).log()
    whole = draws.uniform("augmix whole")[0]
    shares = (1 - whole) * shares / shares.sum(0)
    made = x * _each(whole, x)
    for chain in range(CHAINS):
        part = x
        for turn in range(LONGEST):
            row = chain * LONGEST + turn
            chosen = torch.where(turn < long[chain], numbers[row], 0)
            part = operated(part, chosen, values[row], reflect=reflect)
        made = made.addcmul_(part, _each(shares[chain], x))
    return made


def operated(x: Tensor, numbers: Tensor, values: Tensor, *, reflect: bool) -> Tensor:
    """Return images (B, C, H, W), each changed by the operation of its number, with its value, both (B,)."""
    x = x.clone()
    for number in sorted(set(numbers.tolist())):
        if number:
            rows = (numbers == number).nonzero().flatten()
            chosen, value = rows.to(x.device, non_blocking=True), values[rows].to(x.device, non_blocking=True)
            x.index_copy_(0, chosen, _one(OPERATIONS[number], x.index_select(0, chosen), value, reflect=reflect))
    return x


def _one(name: str, x: Tensor, value: Tensor, *, reflect: bool) -> Tensor:
    if name in MOVES:
        zero, size = torch.zeros_like(value), (x.shape[2], x.shape[3])
        by = {**dict.fromkeys(MOVES, zero), name: value}
        shear, shift = ((by[f"{what}_x"], by[f"{what}_y"]) for what in ("shear", "shift"))
        matrix = geometry.matrices(by["rotate"], shear, torch.ones_like(value), shift, (zero, zero), size)
        return geometry.warp(x, matrix, reflect=reflect)
    if name in ("autocontrast", "equalize"):
        value = torch.ones_like(value, dtype=torch.bool)
    made: Tensor = getattr(colour, name)(x, value)
    return made


def _each(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.device, non_blocking=True)[:, None, None, None]
