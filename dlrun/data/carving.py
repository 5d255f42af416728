"""Which samples go into which fold: stratified, and decided only by the labels and a seed (D4, D10).

`dlrun train dataset.val_fraction=0.1 dataset.limit=2000 dataset.split_seed=0`. No pixel is read here, so that
a file that breaks or is repaired moves no other sample into another fold.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.errors import UserError

__all__ = ["carve", "slice_of"]

Ints = NDArray[np.int64]


def carve(labels: Tensor, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Return sorted indices of the rest and of the carved part; each class with two samples or more is in both.

    `purpose` names the part, test or val: each has its own draw. Raises UserError for a fraction outside (0, 1)
    and if no class can be divided.
    """
    if not 0 < fraction < 1:
        key = f"dataset.{purpose}_fraction"
        raise UserError(f"{key}={fraction}: must lie between 0 and 1, such as {key}=0.1")
    counts = torch.bincount(labels).numpy()
    low, high = np.minimum(1, counts // 2), np.maximum(counts - 1, 0)
    quota = _allocate(counts, round(len(labels) * fraction), low, high)
    chosen = _stratified(labels, quota, seed, purpose)
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    if not len(chosen):
        raise UserError(f"no class has two samples to divide between train and {purpose}; add images")
    return torch.from_numpy(rest), torch.from_numpy(chosen)


def slice_of(labels: Tensor, limit: int, classes: int, seed: int) -> Tensor:
    """Return sorted indices of `limit` samples; a larger slice contains the smaller one.

    Raises UserError if `limit` is too small.
    """
    if limit < 2 * classes:
        raise UserError(
            f"dataset.limit={limit}: {classes} classes need two images each, "
            f"one to train and one to validate; type dataset.limit={2 * classes} or more, or 0 for all"
        )
    counts = torch.bincount(labels).numpy()
    quota = _allocate(counts, min(limit, len(labels)), np.minimum(2, counts), counts)
    return torch.from_numpy(_stratified(labels, quota, seed, "limit"))


def _allocate(counts: Ints, total: int, low: Ints, high: Ints) -> Ints:
    """Divide `total` samples in proportion to `counts` by largest remainder, each class within low..high.

    If both are impossible, the bounds take precedence over the total. Ties go to the lower class number.
    """
    samples = counts.sum()
    exact = counts * total  # in units of 1 / samples, so that remainders compare exactly
    quota: Ints = np.clip(exact // samples, low, high)
    total = min(max(total, int(low.sum())), int(high.sum()))
    while (missing := total - int(quota.sum())) != 0:
        step = 1 if missing > 0 else -1
        free = quota < high if step > 0 else quota > low
        quota[np.argmax(np.where(free, step * (exact - quota * samples), -np.inf))] += step
    return quota


def _stratified(labels: Tensor, quota: Ints, seed: int, purpose: str) -> Ints:
    """Return sorted indices of `quota[label]` random samples of every label.

    Samples are drawn by sorting 64-bit keys of PCG64, a bit stream that NumPy keeps the same in all versions
    (NEP 19), which it does not promise for `permutation`. A larger quota contains the smaller one.
    """
    stream = np.random.SeedSequence([seed, *purpose.encode()])
    keys = np.random.PCG64(stream).random_raw(len(labels))
    order = np.lexsort((keys, labels.numpy()))
    ends = np.cumsum(np.bincount(labels.numpy(), minlength=len(quota)))
    starts = np.concatenate([[0], ends[:-1]])
    parts = [order[start : start + size] for start, size in zip(starts, quota, strict=True)]
    return np.sort(np.concatenate(parts))
