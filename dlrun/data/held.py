"""Images while an augmentation changes them: as floats, or as bytes with curves of tones (`augment=randaugment`, D7).

A change of tones that looks at no other pixel, such as brightness, is a curve from old to new values. On a processor
bytes keep theirs for as long as possible: curves of several changes are one, and a table of 256 entries is read for
each byte at the end. Only images that are moved, blurred or change their colours become floats.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dlrun.data import colour
from dlrun.data.draws import sent

__all__ = ["Bytes", "Floats", "Held", "change"]

Change: TypeAlias = Callable[..., Tensor]  # of images (B, C, H, W), 0 black and 1 white, and values of each
CACHED = 1 << 19  # floats
ALL = np.arange(256, dtype=np.uint8)
SHIFT = float(1 << 23)  # at this size floats are whole numbers: adding it rounds, and the last byte is the number


class Floats:
    """Images (B, C, H, W) of floats, 0 black and 1 white, which change in place."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.device = x, x.device

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W)."""
        return self.x.shape

    def copy(self) -> Floats:
        """Return images that change apart from these."""
        return Floats(self.x.clone())

    def pixels(self, change: Change, rows: Tensor | None = None, *values: Tensor) -> None:
        """Change all images, or those of some numbers; `values` (N, …), one per image, are arguments of the change."""
        at = torch.arange(len(self.x)) if rows is None else rows
        step = _step(self.shape) if self.device.type == "cpu" else max(len(at), 1)
        if rows is None and step >= len(at):
            self.x = change(self.x, *values)
            return
        for start in range(0, len(at), step):
            some = sent(at[start : start + step], self.device)
            part = change(self.x.index_select(0, some), *(value[start : start + step] for value in values))
            self.x.index_copy_(0, some, part)

    def tones(self, name: str, rows: Tensor | None = None, *values: Tensor) -> None:
        """Apply a function of `colour` by its name, to images that have the colours it needs."""
        if self.shape[1] == colour.COLOURS or name not in colour.OF_COLOURS:
            self.pixels(getattr(colour, name), rows, *values)

    def mix(self, shares: Tensor, others: Sequence[Any]) -> None:
        """Add other images to these, with shares (1 + len(others), B)."""
        shares = sent(shares, self.device)[:, :, None, None, None]
        made = self.x * shares[0]
        for share, other in zip(shares[1:], others, strict=True):
            made.addcmul_(other.x, share)
        self.x = made

    def bytes(self) -> Tensor:
        """Return the images (B, H, W, C), uint8."""
        return _rounded(self.x)


class Bytes:
    """Images (B, H, W, C), uint8 on a processor, that change as `Floats` do; they themselves stay as they are."""

    device = torch.device("cpu")

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self.shape = torch.Size((len(images), images.shape[3], *images.shape[1:3]))
        self._unbent = (torch.arange(256) / 255).expand(self.shape[1], 256)
        # of each image that has changed either a curve (C, 256), from 0 to 1, or floats: a batch and the place in it
        self._curves: dict[int, Tensor] = {}
        self._floats: dict[int, tuple[Tensor, int]] = {}
        self._counts: dict[int, Tensor] = {}  # (C, 256), how often a channel has each byte

    def copy(self) -> Bytes:
        """Return images that change apart from these."""
        made = Bytes(self._images)
        made._curves, made._floats, made._counts = {**self._curves}, {**self._floats}, self._counts
        return made

    def pixels(self, change: Change, rows: Tensor | None = None, *values: Tensor) -> None:
        """Change all images, or those of some numbers; `values` (N, …), one per image, are arguments of the change."""
        numbers, step = self._numbers(rows), _step(self.shape)
        for start in range(0, len(numbers), step):
            some = numbers[start : start + step]
            self._keep(some, change(self._as_floats(some), *(value[start : start + step] for value in values)))

    def tones(self, name: str, rows: Tensor | None = None, *values: Tensor) -> None:
        """Apply a function of `colour` by its name, to images that have the colours it needs."""
        numbers, change = self._numbers(rows), getattr(colour, name)
        if name not in colour.CURVES:
            if self.shape[1] == colour.COLOURS or name not in colour.OF_COLOURS:
                self.pixels(change, rows, *values)
            return
        floats = [place for place, number in enumerate(numbers) if number in self._floats]
        if floats:
            self.pixels(change, torch.tensor([numbers[k] for k in floats]), *(value[floats] for value in values))
        bent = [place for place, number in enumerate(numbers) if number not in self._floats]
        if bent:
            some = [numbers[place] for place in bent]
            curves = torch.stack([self._curves.get(number, self._unbent) for number in some])[:, :, None]
            counts = self._counted(some) if name in colour.OF_COUNTS else ()
            made = change(curves, *(value[bent] for value in values), *counts)[:, :, 0]
            self._curves.update(zip(some, made.unbind(), strict=True))

    def mix(self, shares: Tensor, others: Sequence[Any]) -> None:
        """Add other images, copies of these, to these, with shares (1 + len(others), B)."""
        members, made, curves = (self, *others), {}, {}
        for number in range(len(self._images)):
            whole, curve = None, torch.zeros(self.shape[1], 256)
            for member, share in zip(members, shares[:, number].tolist(), strict=True):
                if (held := member._floats.get(number)) is None:
                    curve.add_(member._curves.get(number, self._unbent), alpha=share)
                elif whole is None:
                    whole = held[0][held[1]] * share
                else:
                    whole.add_(held[0][held[1]], alpha=share)
            if whole is None:
                curves[number] = curve
            else:
                made[number] = whole.add_(self._looked_up(number, curve))[None], 0
        self._curves, self._floats = curves, made

    def write(self, out: Tensor) -> None:
        """Write the images into `out`, (B, H, W, C), uint8."""
        few = 2 * (len(self._floats) + len(self._curves)) < len(self._images)
        if few:
            out.copy_(self._images)
        groups: dict[int, tuple[Tensor, list[int]]] = {}
        for number, (batch, _) in self._floats.items():
            groups.setdefault(id(batch), (batch, []))[1].append(number)
        for _, numbers in groups.values():
            for number, one in zip(numbers, _rounded(self._as_floats(numbers)), strict=True):
                out[number] = one
        before, after = self._images.numpy(), out.numpy()
        if self._curves:
            tables = (torch.stack([*self._curves.values()]) * 255).round_().to(torch.uint8).numpy()
            for number, table in zip(self._curves, tables, strict=True):
                _replace(before[number], table, after[number])
        for number in range(0 if few else len(before)):
            if number not in self._curves and number not in self._floats:
                after[number] = before[number]

    def _numbers(self, rows: Tensor | None) -> list[int]:
        return [*range(len(self._images))] if rows is None else rows.tolist()

    def _keep(self, numbers: list[int], x: Tensor) -> None:
        for place, number in enumerate(numbers):
            self._floats[number] = x, place
            self._curves.pop(number, None)

    def _as_floats(self, numbers: list[int]) -> Tensor:
        held = [self._floats.get(number) for number in numbers]
        whole = held[0][0] if held[0] is not None else None
        if whole is not None and len(whole) == len(numbers):
            same = (one is not None and one[0] is whole and one[1] == place for place, one in enumerate(held))
            if all(same):
                return whole
        if not any(number in self._floats or number in self._curves for number in numbers):
            together = numbers[-1] - numbers[0] == len(numbers) - 1
            at = torch.tensor(numbers)
            some = self._images[numbers[0] : numbers[-1] + 1] if together else self._images.index_select(0, at)
            x = some.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            return x.mul_(1 / 255)
        rows = [self._one(number)[None] for number in numbers]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _one(self, number: int) -> Tensor:
        if (held := self._floats.get(number)) is not None:
            return held[0][held[1]]
        return self._looked_up(number, self._curves.get(number, self._unbent))

    def _looked_up(self, number: int, curve: Tensor) -> Tensor:
        image, out = self._images[number].numpy(), np.empty(self.shape[1:], np.float32)
        for channel, values in enumerate(curve.contiguous().numpy()):
            np.take(values, image[..., channel], mode="clip", out=out[channel])
        return torch.from_numpy(out)

    def _counted(self, numbers: list[int]) -> tuple[Tensor]:
        """How often each channel of images has each byte: (B, C, 256)."""
        for number in numbers:
            if number not in self._counts:
                self._counts[number] = torch.from_numpy(_histogram(self._images[number].numpy()))
        return (torch.stack([self._counts[number] for number in numbers]),)


Held: TypeAlias = Floats | Bytes


def change(images: Tensor, span: tuple[float, float], apply: Callable[[Held], None], out: Tensor) -> None:
    """Write images (B, H, W, C), uint8 or floats with black and white of `span`, into `out` after `apply`.

    The images stay as they are; bytes are rounded once, at the end.
    """
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        held = Bytes(images)
        apply(held)
        held.write(out)
        return
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else span
    between = (high - low) or 1.0
    # one plane per channel: operations along 3 values at a time would be many times slower
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    floats = Floats((x - low) / between)
    apply(floats)
    out.copy_(floats.bytes() if images.dtype == torch.uint8 else (floats.x * between + low).permute(0, 2, 3, 1))


def _rounded(x: Tensor) -> Tensor:
    """Images (B, C, H, W) from 0 to 1 as bytes (B, H, W, C); the conversion of torch takes three times as long."""
    if x.shape[1] > 1 and x.stride(1) == 0:  # gray, with one plane in memory
        return _rounded(x[:, :1]).expand(-1, -1, -1, x.shape[1])
    whole = torch.add(SHIFT, x, alpha=255).view(torch.int32)
    if x.device.type != "cpu":
        return whole.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    last = whole.numpy().view(np.uint8)[..., 0 if sys.byteorder == "little" else 3 :: 4]
    made = np.empty((*x.shape[:1], *x.shape[2:], x.shape[1]), np.uint8)
    for channel in range(x.shape[1]):
        made[..., channel] = last[:, channel]
    return torch.from_numpy(made)


def _replace(image: NDArray[np.uint8], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write the bytes of an image (H, W, C) by a table (C, 256): numpy's indexing takes five times as long."""
    mask = table[0, 255]
    if (table == ALL & mask).all():  # posterized
        np.bitwise_and(image, mask, out=out)
    elif (table == table[0]).all():
        out.reshape(-1)[:] = np.frombuffer(image.tobytes().translate(table[0].tobytes()), np.uint8)
    elif len(table) == 3:
        out[:] = np.asarray(Image.fromarray(image).point(table.flatten().tolist()))
    else:
        for channel, values in enumerate(table):
            out[..., channel] = np.take(values, image[..., channel])


def _step(shape: torch.Size) -> int:
    """How many images a processor changes at a time: all of 128 images of 224 × 224 leave its cache."""
    return max(1, CACHED // math.prod(shape[1:]))


def _histogram(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel of an image (H, W, C) has each byte: (C, 256)."""
    if image.shape[2] == 3:
        return np.array(Image.fromarray(image).histogram(), np.int64).reshape(3, 256)
    return np.stack([np.bincount(image[..., k].ravel(), minlength=256) for k in range(image.shape[2])])
