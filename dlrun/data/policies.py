"""Random choices of operations for each sample: RandAugment, TrivialAugment and AugMix (`augment=strong`, D7).

Cubuk et al. 2020, RandAugment; Müller & Hutter 2021, TrivialAugment; Hendrycks et al. 2020, AugMix; with the
operations and strengths of torchvision's classes. Each operation changes only the samples that chose it, so that a
round costs about one operation per image. Images turn and shear about their centre, and are resampled bilinearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dlrun.data import geometry
from dlrun.data.draws import Draws, sent
from dlrun.data.held import Held

__all__ = ["OPERATIONS", "RAND", "WIDE", "Strengths", "augmix", "operate", "rand", "trivial"]

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


def rand(x: Held, count: int, magnitude: float, spread: float, draws: Draws, *, reflect: bool) -> None:
    """Apply `count` operations to each image, one after the other, of strength `magnitude` of 30.

    With `spread` a sample's magnitude is Gaussian with that standard deviation, within 0 and 30 (timm's mstd).
    """
    numbers = draws.integers("randaugment", len(OPERATIONS), count)
    signs = draws.integers("randaugment signs", 2, count) * 2 - 1
    u = draws.uniform("randaugment magnitude", count).clamp(1e-6, 1 - 1e-6)
    strength = (magnitude + spread * math.sqrt(2) * (2 * u - 1).erfinv()).clamp(0, STRONGEST) / STRONGEST
    for chosen, value in zip(numbers, RAND.values(numbers, strength, signs), strict=True):
        operate(x, chosen, value, reflect=reflect)


def trivial(x: Held, draws: Draws, *, reflect: bool) -> None:
    """Apply one operation of any strength to each image."""
    numbers, strength = draws.integers("trivial", len(OPERATIONS))[0], draws.integers("trivial strength", 31)[0] / 30
    values = WIDE.values(numbers, strength, draws.integers("trivial signs", 2)[0] * 2 - 1)
    operate(x, numbers, values, reflect=reflect)


def augmix(x: Held, severity: int, draws: Draws, *, reflect: bool) -> None:
    """Mix each image with three chains of one to three operations, of strength below `severity` of 9."""
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
    parts = [x.copy() for _ in range(CHAINS)]
    for chain, part in enumerate(parts):
        for turn in range(LONGEST):
            row = chain * LONGEST + turn
            operate(part, torch.where(turn < long[chain], numbers[row], 0), values[row], reflect=reflect)
    x.mix(torch.cat([whole[None], shares]), parts)


def operate(x: Held, numbers: Tensor, values: Tensor, *, reflect: bool) -> None:
    """Change each image by the operation of its number, with its value, both (B,) on the processor."""
    moved = (numbers > 0) & (numbers <= len(MOVES))
    if len(rows := moved.nonzero().flatten()):
        _move(x, rows, numbers[rows], sent(values[rows], x.device), reflect=reflect)
    for number in sorted(set(numbers.tolist())):
        name = OPERATIONS[number]
        if name != "identity" and name not in MOVES:
            rows = (numbers == number).nonzero().flatten()
            value = sent(values[rows], x.device)
            x.tones(name, rows, *(() if name in ("autocontrast", "equalize") else (value,)))


def _move(x: Held, rows: Tensor, numbers: Tensor, value: Tensor, *, reflect: bool) -> None:
    """Shear, shift and rotate images, all at once; their numbers are on the processor."""
    numbers, zero, size = sent(numbers, x.device), torch.zeros_like(value), (x.shape[2], x.shape[3])
    by = {name: torch.where(numbers == OPERATIONS.index(name), value, zero) for name in MOVES}
    shear, shift = ((by[f"{what}_x"], by[f"{what}_y"]) for what in ("shear", "shift"))
    matrix = geometry.matrices(by["rotate"], shear, torch.ones_like(value), shift, (zero, zero), size)
    x.pixels(partial(geometry.warp, reflect=reflect), rows, matrix)
