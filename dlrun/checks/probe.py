"""A linear probe that knows nothing of the model (behind the checks `numbering` and `augmented`, D4, D7).

Ridge regression on small images and their likeness to random patches: Coates et al. 2011, An Analysis of Single-Layer
Networks in Unsupervised Feature Learning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun.data.splits import Split

__all__ = ["Features", "fitted", "seen", "small"]

SIDE, CELLS, FILTERS = 24, 8, 32  # pixels and cells of a side, random patches
RIDGE = 0.3  # of the mean square of a feature


def seen(split: Split, index: Tensor) -> Tensor:
    """Images (N, C, H, W) of a split, at most SIDE pixels a side."""
    parts = []
    for rows in torch.split(index, 256):
        parts.append(small(split.images.take(rows).permute(0, 3, 1, 2).float()))
    return torch.cat(parts)


def small(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) of at most SIDE pixels a side."""
    made: Tensor = F.adaptive_avg_pool2d(x, [min(SIDE, side) for side in x.shape[2:]])  # type: ignore[arg-type]
    return made


class Features:
    """Cells of an image and its likeness to random patches of training images, standardised (N, D)."""

    def __init__(self, x: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self.mean, self.std = x.mean(), x.std().clamp_min(1e-6)
        side = 5 if min(x.shape[2:]) >= 12 else 3
        self.patch = side if min(x.shape[2:]) > side else 0
        self.moments = None
        if self.patch:
            images, rows, columns = (
                torch.randint(n, (FILTERS,), generator=generator)
                for n in (len(x), x.shape[2] - side + 1, x.shape[3] - side + 1)
            )
            cut = [
                x[i, :, r : r + side, c : c + side]
                for i, r, c in zip(images.tolist(), rows.tolist(), columns.tolist(), strict=True)
            ]
            weight = torch.stack(cut)
            weight = weight - weight.mean((1, 2, 3), keepdim=True)
            self.weight = F.normalize(weight.flatten(1)).view_as(weight)
        found = self._made(x)
        self.moments = found.mean(0), found.std(0).clamp_min(1e-6)

    def __call__(self, x: Tensor) -> Tensor:
        assert self.moments is not None
        return (self._made(x) - self.moments[0]) / self.moments[1]

    def _made(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        cells = F.adaptive_avg_pool2d(x, [min(CELLS, side) for side in x.shape[2:]]).flatten(1)  # type: ignore[arg-type]
        parts = [cells]
        for part in torch.split(x, 256) if self.patch else ():
            found = F.conv2d(part, self.weight)
            parts.append(F.adaptive_avg_pool2d(torch.cat([found.relu(), (-found).relu()], 1), 2).flatten(1))
        return torch.cat([cells, torch.cat(parts[1:])], 1) if self.patch else cells


def fitted(x: Tensor, y: Tensor, asked: Tensor, classes: int) -> Tensor:
    """The likeness to each class (M, K) of features (M, D), by a ridge regression from others (N, D) to labels (N,)."""
    square = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
    target = F.one_hot(y, classes).float()
    mean = target.mean(0)
    weights = torch.linalg.solve(square, x.T @ (target - mean))
    found: Tensor = asked @ weights + mean
    return found
