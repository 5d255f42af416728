"""Copies across splits that were shifted, cropped, turned or mirrored, as by augmentation before the split (D2).

Part of the data audit (`dlrun check`, audit.csv). Of every image the middle is hashed, as in dlrun/data/near.py. Of a
sample of the validation and test images, so are the windows in which a copy would have that middle. Pairs of a window
and a middle that differ in few bits are registered by Gauss-Newton steps on the six parameters of the window
(Lucas & Kanade 1981), and confirmed by the correlation of their edges. The thresholds were set on natural scenes and
CIFAR-10 (tests/benchmarks). Cannot detect turns of more than about 15 degrees, crops to less than about 80 % of
a side, copies of images outside of the sample, or of plain images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.images import Images
from dlrun.data.near import ALIKE, STEP, STRUCTURE, Pair, areas, comparable, differing, hashes

__all__ = ["moved"]

Array = NDArray[Any]
SIDE = 32  # pixels of a side of the gray images that are compared
MIDDLE = 0.75  # of a side
QUERIES = 300  # images of validation, and of test
DISTANCE, WORDS = 6, 4  # bits that may differ; one of the 4 words of 16 bits has to agree
MOST, CROWDED = 12, 500  # pairs that are registered per image, and equal words per window beyond which one says nothing
BEGIN, EDGES = 0.35, 0.9  # correlation of edges before and after registration
SMALL, SMALL_EDGES = 24, 0.95  # pixels of a side, below which more images fit each other, and that after registration
HALF, RESEMBLE = 0.75, 0.3  # pairs between that correlation and EDGES, per image: more, and no pair is a copy
STEPS, DELTA, DAMPING = 4, 0.02, 1e-3  # of Gauss-Newton
# windows, as shares of a side: their side, how far their centres are from that of the image, and how many a row
WINDOWS = (
    (MIDDLE, 0.125, 9),  # shifted copies
    *((0.58, 0.113, 7), (0.62, 0.087, 5), (0.66, 0.06, 5), (0.70, 0.033, 3)),  # the other image is the crop
    *(
        (0.79, 0.027, 3),
        (0.83, 0.053, 3),
        (0.88, 0.06, 5),
        (0.92, 0.04, 3),
        (0.96, 0.0, 1),
        (1.0, 0.0, 1),
    ),  # this one is
)
ANGLES, TURNED = (-15, -10, -5, 5, 10, 15), (MIDDLE, 0.8)  # degrees, of windows in the middle


def moved(splits: Sequence[Images]) -> list[Pair]:
    """Return pairs of an image of a later split and one of an earlier split that show the same part of a picture.

    Images are numbered through all splits. Takes about 2 s of processor time for 10,900 images of 64×64.
    """
    if len(splits) < 2 or not all(comparable(images) for images in splits if len(images)):
        return []
    offsets = np.cumsum([0, *(len(images) for images in splits)])
    known, windows = [_middles(images) for images in splits], _windows()
    found: list[Pair] = []
    for k in range(1, len(splits)):
        chosen = np.unique(np.linspace(0, len(splits[k]) - 1, min(QUERIES, len(splits[k]))).astype(int))
        if not len(chosen):
            continue
        asked = _gray(splits[k], torch.from_numpy(chosen))
        codes = np.concatenate(known[:k])
        query, window, other = _close(codes, *_hashed(asked, windows))
        same = np.zeros(len(query))
        for part in np.array_split(np.arange(len(query)), max(1, len(query) // 1000)):
            others = _taken(splits[:k], offsets, other[part])
            same[part] = _registered(asked[query[part]], others, windows[window[part]])
        limit = SMALL_EDGES if min(splits[k].shape[:2]) < SMALL else EDGES
        kept, half = np.flatnonzero(same >= limit), np.sum((same >= HALF) & (same < limit))
        many = np.sum(np.bincount(query[kept], minlength=1) >= ALIKE)
        if half > RESEMBLE * len(chosen) or many > len(chosen) / 2:
            continue  # digits, video, a fixed camera: images that resemble each other are no copies
        for row in kept:
            mirrored = bool(window[row] % 2)
            number = int(offsets[k] + chosen[query[row]])
            found.append(Pair(number, int(other[row]), float(min(1.0, same[row])), mirrored, True))
    return found


def _gray(images: Images, rows: Tensor) -> Tensor:
    """The brightness of images (B, 1, SIDE, SIDE), 0 to 255."""
    height, width, channels = images.shape
    by = max(1, min(height, width) // (2 * SIDE))
    pixels = images.take(rows)[:, ::by, ::by].float()
    height, width = pixels.shape[1:3]
    if min(height, width) < SIDE:
        gray = pixels.mean(3)[:, None]
        return F.interpolate(gray, (SIDE, SIDE), mode="bilinear", align_corners=False)
    down = torch.from_numpy(areas(height, SIDE))
    across = torch.from_numpy(areas(width, SIDE)).repeat_interleave(channels, 1).T / channels
    return (down @ (pixels.flatten(2) @ across))[:, None]


def _taken(splits: Sequence[Images], offsets: Array, numbers: Array) -> Tensor:
    """The gray images of these numbers (B, 1, SIDE, SIDE)."""
    made = torch.zeros(len(numbers), 1, SIDE, SIDE)
    which = np.searchsorted(offsets, numbers, side="right") - 1
    for k, images in enumerate(splits):
        if len(here := np.flatnonzero(which == k)):
            made[torch.from_numpy(here)] = _gray(images, torch.from_numpy(numbers[here] - offsets[k]))
    return made


def _windows() -> Tensor:
    """Affine maps (T, 2, 3) from a window to the image, in coordinates from -1 to 1; every second one is mirrored."""
    placed = [(side, x, y, 0) for side, t, n in WINDOWS for x in _line(t, n) for y in _line(t, n)]
    placed += [(side, 0.0, 0.0, angle) for angle in ANGLES for side in TURNED]
    return torch.stack([_window(*one, sign) for one in placed for sign in (1, -1)])


def _line(most: float, count: int) -> list[float]:
    return np.linspace(-most, most, count).tolist() if count > 1 else [0.0]


def _window(side: float, x: float, y: float, angle: float, sign: int = 1) -> Tensor:
    c, s = side * math.cos(math.radians(angle)), side * math.sin(math.radians(angle))
    return torch.tensor([[c * sign, -s, 2 * x], [s * sign, c, 2 * y]])


def _cells(gray: Tensor, windows: Tensor, rows: int, columns: int) -> Tensor:
    """The values of images (B, 1, …) at the cells of windows (B or 1, T, 2, 3): (B, T, rows, columns)."""
    ys, xs = ((2 * torch.arange(n) + 1) / n - 1 for n in (rows, columns))
    places = torch.stack([xs.expand(rows, columns), ys[:, None].expand(rows, columns), torch.ones(rows, columns)], -1)
    grid = torch.einsum("pk,btjk->btpj", places.view(-1, 3), windows).expand(len(gray), -1, -1, -1)
    made = F.grid_sample(gray, grid, align_corners=False, padding_mode="border")
    return made.view(len(gray), windows.shape[1], rows, columns)


def _hashed(gray: Tensor, windows: Tensor) -> tuple[Array, Array]:
    """The hashes (B, T, 8) of windows (T, 2, 3) of images, and which windows are not plain, nor their images (B, T)."""
    blurred = F.avg_pool2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), 3, 1)  # as wide as a cell
    whole, codes, kept = _window(1.0, 0.0, 0.0, 0.0)[None, None], [], []
    for part in torch.split(blurred, 128):
        steps, all_steps = (_cells(part, one, 8, 9).diff(dim=-1) for one in (windows[None], whole))
        kept.append(_structured(steps) & _structured(all_steps))
        codes.append(hashes((steps > 0).flatten(0, 1).numpy()).reshape(len(part), len(windows), 8))
    return np.concatenate(codes), torch.cat(kept).numpy()


def _structured(steps: Tensor) -> Tensor:
    return (steps.abs() > STEP).sum((2, 3)) >= STRUCTURE


def _middles(images: Images) -> Array:
    """Hashes (N, 9) of the middles of images; the last byte is 1 if that is not plain."""
    window, parts = _window(MIDDLE, 0.0, 0.0, 0.0)[None], [np.zeros((0, 9), np.uint8)]
    for rows in torch.split(torch.arange(len(images)), 1024):
        codes, kept = _hashed(_gray(images, rows), window)
        parts.append(np.concatenate([codes[:, 0], kept.astype(np.uint8)], axis=1))
    return np.concatenate(parts)


def _close(known: Array, codes: Array, structured: Array) -> tuple[Array, Array, Array]:
    """The pairs of images (query, other) whose hashes are near, at most MOST per query, and the nearest window."""
    there = np.flatnonzero(known[:, 8])
    middles = np.ascontiguousarray(known[there, :8])
    orders = [np.argsort(middles.view(np.uint16)[:, word], kind="stable") for word in range(WORDS)]
    found = [np.zeros((3, 0), np.int64)]
    for query in np.flatnonzero(structured.any(1)):
        here = np.flatnonzero(structured[query])
        windows, parts = np.ascontiguousarray(codes[query, here]), []
        for word, order in enumerate(orders):
            middle, values = middles.view(np.uint16)[order, word], windows.view(np.uint16)[:, word]
            starts, ends = (np.searchsorted(middle, values, side) for side in ("left", "right"))
            counts = ends - starts
            if counts.sum() > CROWDED * len(here):
                continue  # this part of the hash is the same in most images
            one = np.repeat(np.arange(len(here)), counts)
            place = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
            other = order[np.repeat(starts, counts) + place]
            bits = differing(windows.view(np.uint64)[one, 0] ^ middles.view(np.uint64)[other, 0])
            near = bits <= DISTANCE
            parts.append(np.stack([bits[near].astype(np.int64), here[one[near]], there[other[near]]]))
        if parts:
            pairs = np.concatenate(parts, axis=1)
            _, window, other = pairs[:, np.argsort(pairs[0], kind="stable")]
            first = np.sort(np.unique(other, return_index=True)[1])[:MOST]  # in the order of their bits
            found.append(np.stack([np.full(len(first), query), window[first], other[first]]))
    query, window, other = np.concatenate(found, axis=1)
    return query, window, other


def _registered(asked: Tensor, others: Tensor, windows: Tensor) -> Array:
    """The largest correlation of edges (B,) between windows (B, 2, 3) of `asked` and the middles of `others`."""
    middle = _unit(_cells(others, _window(MIDDLE, 0.0, 0.0, 0.0)[None, None], 16, 18)[:, 0])
    best = (_edges(_part(asked, windows)) * _edges(middle)).sum(1)
    rows = (best >= BEGIN).nonzero()[:, 0]
    gray, middle, window, eye = asked[rows], middle[rows], windows[rows], torch.eye(6)
    for _ in range(STEPS if len(rows) else 0):
        now = _unit(_part(gray, window))
        slopes = []
        for k in range(6):
            other = window.flatten(1).clone()
            other[:, k] += DELTA
            slopes.append(((_unit(_part(gray, other.view(-1, 2, 3))) - now) / DELTA).flatten(1))
        slope = torch.stack(slopes, 2)
        square = slope.mT @ slope
        square = square + DAMPING * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-9)[:, None, None] * eye
        step = torch.linalg.solve(square, slope.mT @ (middle - now).flatten(1)[:, :, None])
        window = window + step.clamp(-0.1, 0.1).view(-1, 2, 3)
        best[rows] = torch.maximum(best[rows], (_edges(_part(gray, window)) * _edges(middle)).sum(1))
    return np.asarray(best.numpy())


def _part(gray: Tensor, windows: Tensor) -> Tensor:
    return _cells(gray, windows[:, None], 16, 18)[:, 0]


def _unit(cells: Tensor) -> Tensor:
    """Cells (B, H, W) less their mean, of length 1."""
    cells = cells - cells.mean((1, 2), keepdim=True)
    made: Tensor = cells / cells.flatten(1).norm(dim=1).clamp_min(1e-6)[:, None, None]
    return made


def _edges(cells: Tensor) -> Tensor:
    """The differences of neighbouring cells in both directions (B, …), of length 1."""
    made: Tensor = F.normalize(torch.cat([cells.diff(dim=axis).flatten(1) for axis in (1, 2)], 1))
    return made
