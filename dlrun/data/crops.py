"""Parts of images: random-resized crops for training, the centre for evaluation (`augment=resized_crop`, D7).

`dlrun train augment=resized_crop dataset.image_size=256 augment.crop=224` keeps images larger than the network sees
them. A training image is a random part of one, resized to 224 × 224 (Szegedy et al. 2015, GoogLeNet, §6); evaluation,
`dlrun predict` and an exported model cut out the centre. With `augment.eval_crop=256` they see larger images than
training did (Touvron et al. 2019, Fixing the train-test resolution discrepancy). With `augment.crop=auto` the number of
training images decides whether there are such crops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun.data.draws import Draws, sent
from dlrun.errors import UserError

__all__ = [
    *("Boxes", "boxes", "centre", "decided", "evaluated", "fed", "filled", "flipped", "resized", "rising", "within")
]

Boxes = tuple[Tensor, Tensor, Tensor, Tensor]  # top, left, height, width (B,), int64, on the processor
# training images from which crop=auto means full. Fine-tuning on 300, 1,000 and 2,000 photos gained nothing by them
# (bench_finetune.py), and below this number BiT adds no regularization either (Kolesnikov et al. 2020, §3.3: mixup)
MANY = 20_000
TRIES = 10  # boxes per image, as in torchvision's RandomResizedCrop; if none fits, the centre is taken


def decided(augment: Mapping[str, Any], images: int) -> tuple[str, str] | None:
    """Return the crop that `auto` is for a number of training images, with a line for the screen; None if not asked."""
    if augment.get("crop") != "auto":
        return None
    if images >= MANY:
        return "full", f"augment.crop=full: random-resized crops, since there are {images:,} training images"
    small = f"shifts by augment.pad={augment.get('pad', 0)} in place of random-resized crops"
    return "none", f"augment.crop=none: {small}, since there are fewer than {MANY:,} training images"


def fed(augment: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (H, W, C) of training images, of a dataset's shape. Raises UserError for too large a crop."""
    height, width = _size("crop", augment.get("crop", "none"), shape) or shape[:2]
    return height, width, shape[2]


def evaluated(augment: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Return height and width of the centre that is evaluated; None: the whole image. Raises UserError."""
    asked = augment.get("eval_crop", "auto")
    name = "crop" if asked == "auto" else "eval_crop"
    size = _size(name, augment.get("crop", "none") if asked == "auto" else asked, shape)
    return None if size == shape[:2] else size


def _size(name: str, asked: Any, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    if asked in ("none", "full"):
        return shape[:2] if asked == "full" else None
    height, width = (asked, asked) if isinstance(asked, int) else asked
    if height > shape[0] or width > shape[1]:
        least = "×".join(map(str, shape[:2]))
        hint = f"choose a smaller crop, or a larger dataset.image_size for image files, such as {round(height * 8 / 7)}"
        raise UserError(f"augment.{name}={_shown(asked)}: the images have {least} pixels; {hint}")
    return height, width


def _shown(asked: Any) -> str:
    return str(asked) if isinstance(asked, int) else "[" + ",".join(map(str, asked)) + "]"


def centre(images: Tensor, size: tuple[int, int] | None, rows: int = 1) -> Tensor:
    """Cut out the centre as torchvision's CenterCrop does; axis `rows` is the height, the next one the width."""
    if size is None:
        return images
    for axis, length in zip((rows, rows + 1), size, strict=True):
        images = images.narrow(axis, round((images.shape[axis] - length) / 2), length)
    return images


def rising(**ranges: Sequence[float]) -> tuple[Sequence[float], ...]:
    """Return ranges of `boxes` that come by the names of their keys. Raises UserError unless they rise from above 0."""
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise UserError(f"augment.{name}=[{low:g},{high:g}]: expected the smaller number first, above 0")
    return tuple(ranges.values())


def boxes(
    draws: Draws,
    shape: tuple[int, int],
    area: Sequence[float],
    aspect: Sequence[float],
    *,
    purpose: str = "resized crop",
    smaller: bool = False,
) -> Boxes:
    """Draw a box per sample as torchvision's RandomResizedCrop does, or if `smaller`, as its RandomErasing.

    `area` is the range of shares of the image, `aspect` that of widths in heights, drawn evenly on a log scale. If ten
    boxes do not fit, it is the centre; with `smaller`, which leaves a row and a column, nothing.
    """
    height, width = shape
    u = draws.uniform(purpose, 2 * TRIES + 2)
    share = area[0] + (area[1] - area[0]) * u[:TRIES]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = (low + (high - low) * u[TRIES : 2 * TRIES]).exp()
    across = (share * (height * width) * ratio).sqrt().round().long()
    down = (share * (height * width) / ratio).sqrt().round().long()
    fits = (across > 0) & (across <= width - smaller) & (down > 0) & (down <= height - smaller)
    first = fits.int().argmax(0, keepdim=True)
    widest = min(max(width / height, aspect[0]), aspect[1])  # the centre, within the ratios
    fallback = (0, 0) if smaller else (round(min(height, width / widest)), round(min(width, height * widest)))
    h, w = (
        torch.where(fits.any(0), tried.gather(0, first)[0], other)
        for tried, other in zip((down, across), fallback, strict=True)
    )
    top, left = ((u[k] * (size - side + 1)).long() for k, size, side in ((-2, height, h), (-1, width, w)))
    middle = [(size - side) // 2 for size, side in ((height, h), (width, w))]
    top, left = (torch.where(fits.any(0), drawn, m) for drawn, m in zip((top, left), middle, strict=True))
    return top, left, h, w


def within(box: Boxes, shape: tuple[int, int]) -> Tensor:
    """Return which pixels (B, H, W) of images are inside their box."""
    rows, cols = (
        (places >= first[:, None]) & (places < (first + length)[:, None])
        for places, first, length in (
            (torch.arange(size, device=start.device), start, side)
            for size, start, side in ((shape[0], box[0], box[2]), (shape[1], box[1], box[3]))
        )
    )
    return rows[:, :, None] & cols[:, None, :]


def filled(images: Tensor, box: Boxes, value: Tensor) -> Tensor:
    """Write a value per channel (C,) into the boxes of images (B, H, W, C), which may lie beyond the border.

    On the processor into the images themselves.
    """
    if images.device.type != "cpu":
        top, left, height, width = (sent(part, images.device) for part in box)
        inside = within((top, left, height, width), (images.shape[1], images.shape[2]))
        return torch.where(inside[..., None], sent(value.to(images.dtype), images.device), images)
    for image, top, left, height, width in zip(images, *(part.tolist() for part in box), strict=True):
        if height > 0 and width > 0:
            image[max(top, 0) : top + height, max(left, 0) : left + width] = value
    return images


def flipped(images: Tensor, mirrored: Tensor, upside_down: Tensor) -> Tensor:
    """Return images (B, H, W, C) of which those of two bools (B,), on the processor, are turned."""
    made = torch.empty_like(images)
    for image, out, down, across in zip(images, made, upside_down.tolist(), mirrored.tolist(), strict=True):
        out.copy_(image.flip([axis for axis, yes in enumerate((down, across)) if yes]) if down or across else image)
    return made


def resized(images: Tensor, box: Boxes, size: tuple[int, int], mirrored: Tensor, upside_down: Tensor) -> Tensor:
    """Boxes of images (B, H, W, C) resized to `size`, bilinearly and antialiased, as torchvision's resized_crop does.

    Those that are `mirrored` and `upside_down` (B,), bools on the processor, are flipped afterwards. On the processor
    by the same kernel; on an accelerator the whole batch at once, and bytes may differ by 1.
    """
    if images.device.type != "cpu":
        return _by_matrices(images, box, size, mirrored, upside_down)
    out = images.new_empty(len(images), *size, images.shape[3])
    given = (part.tolist() for part in (*box, mirrored, upside_down))
    for image, made, top, left, height, width, across, down in zip(images, out, *given, strict=True):
        part = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
        part = F.interpolate(part, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        made.copy_(part.flip([axis for axis, yes in enumerate((down, across)) if yes]) if down or across else part)
    return out


def _by_matrices(images: Tensor, box: Boxes, size: tuple[int, int], mirrored: Tensor, upside_down: Tensor) -> Tensor:
    """Rows and columns of every box as weighted means: two products of matrices for the whole batch."""
    top, left, height, width = (sent(part, images.device).float() for part in box)
    down, across = _weights(top, height, images.shape[1], size[0]), _weights(left, width, images.shape[2], size[1])
    down, across = (
        torch.where(sent(chosen, images.device)[:, None, None], weights.flip(1), weights)
        for chosen, weights in ((upside_down, down), (mirrored, across))
    )
    x = images.permute(0, 3, 1, 2).float()
    x = (down[:, None] @ x @ across[:, None].transpose(2, 3)).permute(0, 2, 3, 1)
    return (x.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else x).contiguous()


def _weights(start: Tensor, length: Tensor, whole: int, count: int) -> Tensor:
    """The share (B, count, whole) of each old pixel in each new one: a triangle, as wide as a new pixel is."""
    step = (length / count)[:, None, None]
    wide = step.clamp_min(1)
    middle = step * (torch.arange(count, device=start.device) + 0.5)[None, :, None]
    old = torch.arange(whole, device=start.device)[None, None, :] - start[:, None, None]
    inside = (old >= 0) & (old < length[:, None, None])
    found = (1 - (old + 0.5 - middle).abs() / wide).clamp_min(0) * inside
    return found / found.sum(2, keepdim=True)
