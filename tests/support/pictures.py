"""Images in three colours that have an up and a down, for the splits of an experiment (D3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dlrun.data.images import InMemory
from dlrun.training.experiment import Experiment
from support.composed import alter
from support.pairs import Change

__all__ = ["both", "noise", "pictures", "read", "repaint"]


def same(x: Tensor) -> Tensor:
    return x


def pictures(count: int, seed: int) -> Tensor:
    """Smooth images (N, 16, 16, 3), uint8: blue above, green below, with a darker left."""
    generator = torch.Generator().manual_seed(seed)
    noise = F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), 16, mode="bilinear") * 20
    down, right = torch.linspace(0, 1, 16).view(16, 1), torch.linspace(0.5, 1, 16)
    colours = torch.stack([0.3 * right.expand(16, 16), down * right, 0.5 * (1 - down) * right])
    return (colours * 180 + 40 + noise).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def read(train: Callable[[Tensor], Tensor] = same, val: Callable[[Tensor], Tensor] = same) -> Change:
    def change(exp: Experiment) -> None:
        data = exp.data
        sides = {"train": (pictures(len(data.train), 0), train), "val": (pictures(len(data.val), 1), val)}
        made = {n: replace(getattr(data, n), images=InMemory(c(x).contiguous())) for n, (x, c) in sides.items()}
        alter(exp, data=replace(data, **made))

    return change


def repaint(train: Callable[[Tensor], Tensor] = same, val: Callable[[Tensor], Tensor] = same) -> Change:
    """Change the images (N, H, W, C) that the experiment has."""

    def change(exp: Experiment) -> None:
        splits = {"train": train, "val": val}
        made = {}
        for name, function in splits.items():
            split = getattr(exp.data, name)
            pixels = function(split.images.take(torch.arange(len(split))))
            made[name] = replace(split, images=InMemory(pixels.contiguous()))
        alter(exp, data=replace(exp.data, **made))

    return change


def both(function: Callable[[Tensor], Tensor]) -> Change:
    return read(function, function)


def noise(x: Tensor) -> Tensor:
    return torch.randint(0, 256, x.shape, generator=torch.Generator().manual_seed(2)).to(torch.uint8)
