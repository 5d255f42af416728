"""Geometric transforms of a batch of images, all of one image in one resampling (`augment=affine`, D7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["matrices", "warp"]


def matrices(
    angle: Tensor,
    shear: tuple[Tensor, Tensor],
    scale: Tensor,
    shift: tuple[Tensor, Tensor],
    skew: tuple[Tensor, Tensor],
    shape: tuple[int, int],
) -> Tensor:
    """Return matrices (B, 3, 3) from new to old positions, in the coordinates of `F.grid_sample`.

    An image is sheared, rotated, scaled, shifted and skewed, in this order and about its centre. `angle` in radians,
    `shear` as tangents, `shift` in fractions of width and height, `skew` the tilt towards or away from the viewer: a
    side of the image is 1 ± skew times as far away as its centre. All (B,), pairs as (x, y). Without skew the same as
    torchvision's `affine`, with its signs; with it, a `perspective`.
    """
    (height, width), (sx, sy), (dx, dy), one = shape, shear, shift, torch.ones_like(angle)
    cos, sin = angle.cos(), angle.sin()
    # scale⁻¹ · shear⁻¹ · rotation⁻¹ of square pixels, …
    a, b = (1 + sx * sy) * cos - sx * sin, (1 + sx * sy) * sin + sx * cos
    c, d = sy * cos - sin, sy * sin + cos
    # … in coordinates that run from -1 to 1 along either side
    b, c = b * (height / width), c * (width / height)
    a, b, c, d = (entry / scale for entry in (a, b, c, d))
    zero = torch.zeros_like(one)
    flat = torch.stack([a, b, -2 * (a * dx + b * dy), c, d, -2 * (c * dx + d * dy), zero, zero, one], 1)
    tilt = torch.stack([one, zero, zero, zero, one, zero, skew[0], skew[1], one], 1)
    return flat.view(-1, 3, 3) @ tilt.view(-1, 3, 3)


def warp(x: Tensor, matrix: Tensor, *, reflect: bool) -> Tensor:
    """Images (B, C, H, W) resampled bilinearly; black beyond the border, or mirrored with `reflect`.

    `matrix` (B, 3, 3) as `matrices` returns it.
    """
    height, width = x.shape[2:]
    down = ((torch.arange(height, device=x.device) * 2 + 1) / height - 1)[:, None, None]
    right = ((torch.arange(width, device=x.device) * 2 + 1) / width - 1)[:, None]
    flat = x.device.type == "cpu" and not bool(matrix[:, 2, :2].any())  # an accelerator would wait for the answer
    # products of the columns, (B, 1, 1, 2 or 3) each: a third of the time of one of matrices
    columns = matrix[:, : 2 if flat else 3].transpose(1, 2)[:, :, None, None]
    across, along, middle = columns.unbind(1)
    places = across * right + (along * down + middle)
    grid = places if flat else places[..., :2] / places[..., 2:]
    padding = "reflection" if reflect else "zeros"
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
