"""One pass over the pixels of a split: unusable samples, and the moments of its channels (D1, D3).

Every verb that reads data does it (`dlrun train dataset=image_folder dataset.root=photos
dataset.on_bad=drop`). Files are decoded here for the first time: held in memory, or digested so that no check
has to decode them again. Finds files that do not decode to the end, and values that are nan or inf. Cannot detect
damage that still decodes, such as an image half gray because its file was cut and patched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.images import Images, InMemory, Marks, Streamed, Unreadable, mark, run_ahead, threads_for

__all__ = ["Part", "Scan", "Sums", "moments", "parts", "scan", "sums_of"]

VALUES = 2_000_000  # per task: a few megabytes
FILES = 64  # per task: enough to make the hand-over between threads cheap
Pixels = NDArray[Any]
# number of pixels; then per channel: sum and sum of squares (integers), or mean and squared deviations (floats)
Sums = tuple[int, Pixels, Pixels]


@dataclass(frozen=True)
class Scan:
    """Result of the pass: the images (decoded if requested) and by number why some cannot be used.

    `mean` and population `std` per channel are those of the others, in raw units; the std of a constant channel
    is 1.
    """

    images: Images
    bad: dict[int, str]
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Part:
    """Result for a few neighbouring images; `pixels` of unusable ones are 0."""

    pixels: Pixels | None
    bad: dict[int, str]  # by row
    sums: Sums
    marks: Marks | None


def scan(images: Images, *, keep: bool, workers: int = 0) -> Scan:
    """Read every image once, in `workers` threads; with `keep`, files end up in memory.

    Raises UserError for intact images of different sizes, which call for another setting and are not damaged.
    """
    files = images if isinstance(images, Streamed) else None
    pixels = np.empty((len(images), *images.shape), dtype=files.dtype) if files and keep else None
    bad: dict[int, str] = {}
    sums: list[Sums] = []
    marks: list[Marks] = []
    for first, part in parts(images, keep=keep, workers=workers):
        bad.update({first + row: reason for row, reason in part.bad.items()})
        sums.append(part.sums)
        if part.marks is not None:
            marks.append(part.marks)
        if pixels is not None and part.pixels is not None:
            pixels[first : first + len(part.pixels)] = part.pixels
    if files:
        digests = [digest for part_marks in marks for digest in part_marks.digests]
        constant = np.concatenate([part_marks.constant for part_marks in marks] or [np.zeros(0, dtype=bool)])
        known = Marks(digests, constant)
        kept = None if pixels is None else InMemory(torch.from_numpy(pixels), source=files, known=known)
        images = replace(files, marks=known) if kept is None else kept
    mean, std = moments(sums, images.shape[2])
    return Scan(images, bad, mean, std)


def parts(images: Images, *, keep: bool, workers: int = 0) -> Iterator[tuple[int, Part]]:
    """Read every image once, in `workers` threads; yield each part with the number of its first image."""
    files = isinstance(images, Streamed)
    size = max(1, VALUES // int(np.prod(images.shape)))
    index = torch.split(torch.arange(len(images)), min(FILES, size) if files else size)
    look: Callable[..., Part] = partial(_files, keep=keep) if files else _arrays
    tasks = [partial(look, images, rows) for rows in index]
    at_once = workers or threads_for(images)
    groups = (tasks[start : start + at_once] for start in range(0, len(tasks), at_once))
    found = (part for group in run_ahead(groups, at_once) for part in group)
    for rows, part in zip(_shown(index, len(images), files), found, strict=True):
        yield int(rows[0]), part


def _shown(index: Sequence[Tensor], total: int, files: bool) -> Iterable[Tensor]:
    """The parts, with a progress bar if a person waits for them."""
    if not files or total <= 2000 or not sys.stderr.isatty():
        return index
    from rich.console import Console
    from rich.progress import track

    return track(index, "Decoding images", console=Console(stderr=True), transient=True)


def _files(images: Streamed, index: Tensor, keep: bool) -> Part:
    # NumPy only: a torch operation inside a thread would start one more set of compute threads
    pixels = np.zeros((len(index), *images.shape), dtype=images.dtype)
    bad = {}
    for row, number in enumerate(index.tolist()):
        try:
            pixels[row] = images.decode(number)
        except Unreadable as error:
            bad[row] = error.reason
    return Part(pixels if keep else None, bad, sums_of(_without(pixels, bad)), mark(pixels))


def _arrays(images: InMemory, index: Tensor) -> Part:
    all_pixels = images.pixels.numpy()
    pixels = all_pixels[(index if images.rows is None else images.rows[index]).numpy()]
    bad = {}
    if pixels.dtype != np.uint8:
        finite = np.isfinite(pixels).all(axis=(1, 2, 3))
        bad = {int(row): "contains nan or inf" for row in np.flatnonzero(~finite)}
    return Part(None, bad, sums_of(_without(pixels, bad)), None)


def _without(pixels: Pixels, bad: dict[int, str]) -> Pixels:
    return np.delete(pixels, list(bad), axis=0) if bad else pixels


def sums_of(pixels: Pixels) -> Sums:
    """Return the sums of images (N, H, W, C), for `moments`."""
    channels = pixels.shape[3]
    if pixels.dtype == np.uint8:
        flat = pixels.reshape(len(pixels), int(np.prod(pixels.shape[1:])))  # -1 fails if all are bad
        if len(flat) <= FILES:  # 64 × 255² is exact in float32, 64 × 255 in uint16
            total, values = flat.sum(0, dtype=np.uint16), flat.astype(np.float32)
            squares = np.einsum("ij,ij->j", values, values).astype(np.int64)
        else:
            total, squares = flat.sum(0, dtype=np.int64), np.square(flat, dtype=np.uint16).sum(0, dtype=np.int64)
        return pixels.size // channels, _by_channel(total.astype(np.int64), channels), _by_channel(squares, channels)
    values = pixels.reshape(-1, channels).astype(np.float64)
    mean = values.mean(0) if len(values) else np.zeros(channels)
    return len(values), mean, ((values - mean) ** 2).sum(0)


def _by_channel(values: Pixels, channels: int) -> Pixels:
    result: Pixels = values.reshape(-1, channels).sum(0)
    return result


def moments(parts: list[Sums], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel.

    uint8 is summed in integers, so that the result is exact and the same for any number of threads.
    Floats are merged part by part in float64 (Chan, Golub and LeVeque 1979).
    """
    count = sum(part[0] for part in parts)
    if not count:
        return [0.0] * channels, [1.0] * channels
    if parts[0][1].dtype == np.int64:
        sums, squares = sum(part[1] for part in parts), sum(part[2] for part in parts)
        pairs = [(int(s), int(q)) for s, q in zip(sums, squares, strict=True)]  # type: ignore[arg-type]
        mean = [s / count for s, _ in pairs]
        variance = [(q * count - s * s) / count**2 for s, q in pairs]
    else:
        seen, middle, spread = 0, np.zeros(channels), np.zeros(channels)
        for size, here, around in parts:
            share = size / max(1, seen + size)
            spread = spread + around + (here - middle) ** 2 * seen * share
            middle, seen = middle + (here - middle) * share, seen + size
        mean, variance = middle.tolist(), (spread / count).tolist()
    return mean, [v**0.5 if v > 0 else 1.0 for v in variance]
