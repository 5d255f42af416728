"""Near duplicates: the same picture compressed again, resized, brighter, slightly cropped or mirrored (D2).

Part of the data audit (`dlrun check`, audit.csv). Images are compared by a difference hash of 64 bits (Krawetz 2013,
"Kind of like that") of their pixels as the network gets them; pairs within DISTANCE bits are confirmed by the
correlation of their edges. The thresholds were set on natural scenes and CIFAR-10 (tests/benchmarks). Images are left
out if a side has less than 16 pixels, or 32 in gray, if they are mostly plain, such as digits on a dark ground, or if
they are not 8-bit images in memory or cache. Cannot detect crops of more than about 3 % of a side, or rotation; across
splits, dlrun/data/moved.py does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.data.images import Images, InMemory

__all__ = ["ALIKE", "STEP", "STRUCTURE", "Pair", "areas", "comparable", "differing", "hashes", "near"]

Array = NDArray[Any]
SIDE, GRAY_SIDE = 16, 32  # pixels of the shorter side below which images of one class look alike
DISTANCE, BANDS = 7, 8  # bits that may differ; two hashes within 7 bits agree in one of 8 bands (pigeonhole)
EDGES, SMALL_EDGES, SMALL = 0.8, 0.9, 32  # correlation of edges from which a pair is one picture; of small images
STEP, STRUCTURE = 2.0, 40  # of 255, between neighbouring cells, and the number of the 64 steps that must be as large
SAMPLE, ALIKE = 2000, 3  # if most of a sample look like three others, all images are alike: video, a fixed camera
ROWS, COLUMNS = 16, 18  # cells of a thumbnail, twice those of the hash
BLOCKS = (100_000, 4_000_000)  # pairs compared at once, at least and at most: 1 and 32 MB


class Pair(NamedTuple):
    """Two images by number, the earlier one second, and the correlation of their edges, 0 to 1.

    moved: one is shifted, cropped or turned
    """

    number: int
    other: int
    similarity: float
    mirrored: bool
    moved: bool = False


def near(splits: Sequence[Images]) -> list[Pair] | None:
    """Return the pairs of images that look the same, numbered through all splits; None if most look like several.

    Identical images are pairs as well. Takes 1.8 s of processor time for 60,000 images of 32×32.
    """
    cells = np.concatenate([_thumbnails(images) for images in splits])
    small = any(min(images.shape[:2]) < SMALL for images in splits)
    coarse = cells.reshape(len(cells), ROWS // 2, 2, COLUMNS // 2, 2).mean((2, 4), dtype=np.float32)
    steps = np.diff(coarse, axis=2)
    kept = np.flatnonzero((np.abs(steps) > STEP).sum((1, 2)) >= STRUCTURE)
    if len(kept) < 2:
        return []
    cells, steps = cells[kept], steps[kept]  # 576 bytes per image
    # mirrored, the steps come in the other order with the other sign
    plain, mirrored = hashes(steps > 0), hashes(steps[:, :, ::-1] < 0)
    some = np.unique(np.linspace(0, len(kept) - 1, SAMPLE).astype(int))
    first, second, _ = _confirmed(cells[some], *_close(plain[some], plain[some]), small)
    if np.sum(np.bincount(np.append(first, second), minlength=len(some)) >= ALIKE) > len(some) / 2 > ALIKE:
        return None
    found: list[Pair] = []
    for flip, codes in ((False, plain), (True, mirrored)):
        for one, other, same in zip(*_confirmed(cells, *_close(plain, codes), small, flip), strict=True):
            found.append(Pair(int(kept[other]), int(kept[one]), float(same), flip))
    return found


def comparable(images: Images) -> bool:
    """Return whether images are large enough to be compared, and bytes in memory."""
    least = GRAY_SIDE if images.shape[2] == 1 else SIDE
    return min(images.shape[:2]) >= least and isinstance(images, InMemory) and images.pixels.dtype == torch.uint8


def _thumbnails(images: Images) -> Array:
    """Mean brightness of the cells of each image (N, ROWS, COLUMNS), 0 to 255; plain for images not compared."""
    height, width, channels = images.shape
    if not comparable(images):
        return np.zeros((len(images), ROWS, COLUMNS), np.float16)
    by = max(1, min(height, width) // 64)  # of larger images every second, third … row and column is enough
    down = areas(len(range(0, height, by)), ROWS)
    across = np.repeat(areas(len(range(0, width, by)), COLUMNS), channels, axis=1).T / channels
    parts = []
    for rows in torch.split(torch.arange(len(images)), 512):
        pixels = images.take(rows).numpy()[:, ::by, ::by].astype(np.float32)
        parts.append((down @ (pixels.reshape(*pixels.shape[:2], len(across)) @ across)).astype(np.float16))
    return np.concatenate([np.zeros((0, ROWS, COLUMNS), np.float16), *parts])


def areas(pixels: int, cells: int) -> Array:
    """The share of each pixel of a line in the mean of each cell, (cells, pixels)."""
    edges, starts = np.linspace(0, pixels, cells + 1), np.arange(pixels)
    share = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.clip(share, 0, 1) * cells / pixels, np.float32)


def hashes(bits: Array) -> Array:
    """The bits (N, 8, 8) as BANDS bytes (N, 8), each of bits from all over the image: neighbours are related."""
    order = np.random.default_rng(0).permutation(64)
    return np.asarray(np.packbits(bits.reshape(len(bits), 64)[:, order], axis=1))


def _close(codes: Array, others: Array) -> tuple[Array, Array]:
    """The pairs of rows, first < second, of `codes` and `others` (N, BANDS) that differ in at most DISTANCE bits."""
    words, queries = (np.ascontiguousarray(part).view(np.uint64)[:, 0] for part in (codes, others))
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for band in range(BANDS):
        for rows, columns in _buckets(codes[:, band], others[:, band]):
            close = differing(words[rows][:, None] ^ queries[columns][None]) <= DISTANCE
            one, other = np.nonzero(close & (rows[:, None] < columns[None]))
            firsts.append(rows[one])
            seconds.append(columns[other])
    keys = np.unique(np.concatenate(firsts) * len(codes) + np.concatenate(seconds))
    return keys // len(codes), keys % len(codes)


def _buckets(codes: Array, others: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the numbers of equal bytes of both, in blocks of at most BLOCKS[1] pairs."""
    by_code, by_other = (np.argsort(part, kind="stable") for part in (codes, others))
    ends, other_ends = (np.searchsorted(part, np.arange(257)) for part in (codes[by_code], others[by_other]))
    for value in range(256):
        rows, columns = by_code[ends[value] : ends[value + 1]], by_other[other_ends[value] : other_ends[value + 1]]
        least, most = (block // max(1, len(rows)) for block in BLOCKS)
        size = max(1, min(most, max(least, len(columns) // 8)))
        for part in (columns[start : start + size] for start in range(0, len(columns), size)):
            yield rows[: np.searchsorted(rows, part[-1])], part  # both ascend: later rows have no part in a pair


def differing(words: Array) -> Array:
    """The number of bits set in each word."""
    if hasattr(np, "bitwise_count"):  # since NumPy 2.0
        return np.asarray(np.bitwise_count(words))
    table = np.array([bin(k).count("1") for k in range(256)], np.uint8)
    return np.asarray(table[words.view(np.uint8).reshape(*words.shape, 8)].sum(-1))


def _confirmed(
    cells: Array, first: Array, second: Array, small: bool, flip: bool = False
) -> tuple[Array, Array, Array]:
    """The pairs whose edges correlate, `second` mirrored with `flip`, and how much."""
    same = np.zeros(len(first))
    for start in range(0, len(first), 50_000):
        part = slice(start, start + 50_000)
        mirror = cells[second[part]]
        same[part] = (_edges(cells[first[part]]) * _edges(mirror[:, :, ::-1] if flip else mirror)).sum(1)
    kept = same >= (SMALL_EDGES if small else EDGES)
    return first[kept], second[kept], same[kept]


def _edges(cells: Array) -> Array:
    """The differences of neighbouring cells in both directions (N, …), of length 1."""
    cells = cells.astype(np.float32)
    found = np.concatenate([np.diff(cells, axis=axis).reshape(len(cells), -1) for axis in (1, 2)], axis=1)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6))
