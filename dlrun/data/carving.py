"""Which samples go into which fold: stratified, and decided only by keys, labels and a seed (D4, D10).

`dlrun train dataset.val_fraction=0.1 dataset.limit=2000 dataset.split_seed=0 dataset.split=content`.

With keys, such as digests of the images, each sample is assigned by its own key: adding, removing or renaming one moves
no other, and equal keys stay together. A fold of share f of n samples then has n·f samples in the mean with a standard
deviation of sqrt(n·f·(1 − f)), in each class as well: 100 ± 9 of 1,000 at f = 0.1. A class with two keys or more
that would be missing on one side lends that side the sample nearest to it, which returns when the class has others
there: a matter of classes of a few dozen samples at most (0.9^50 = 0.005).

Without keys, samples are drawn by their position in the dataset, with exact numbers: the rule for datasets that never
change, and for runs of versions before 0.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.errors import UserError

__all__ = ["Keys", "carve", "fold_of", "slice_of"]

Ints = NDArray[np.int64]
Keys = Sequence[bytes] | None


def carve(labels: Tensor, fraction: float, seed: int, purpose: str, keys: Keys = None) -> tuple[Tensor, Tensor]:
    """Return sorted indices of the rest and of the carved part; each class with two samples or more is in both.

    `purpose` names the part, test or val: each has its own draw. Raises UserError for a fraction outside (0, 1)
    and if no class can be divided.
    """
    if not 0 < fraction < 1:
        key = f"dataset.{purpose}_fraction"
        raise UserError(f"{key}={fraction}: must lie between 0 and 1, such as {key}=0.1")
    if keys is not None:
        into = _below(_drawn(keys, seed, purpose), labels.numpy(), fraction)
        rest, chosen = np.flatnonzero(~into), np.flatnonzero(into)
    else:
        counts = torch.bincount(labels).numpy()
        low, high = np.minimum(1, counts // 2), np.maximum(counts - 1, 0)
        quota = _allocate(counts, round(len(labels) * fraction), low, high)
        chosen = _stratified(labels, quota, _positions(len(labels), seed, purpose))
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
    if not len(chosen):
        raise UserError(f"no class has two samples to divide between train and {purpose}; add images")
    return torch.from_numpy(rest), torch.from_numpy(chosen)


def fold_of(labels: Tensor, folds: int, seed: int, keys: Keys = None) -> Tensor:
    """Return the fold of each sample (N,), 0 to `folds` - 1; -1 for the only sample of a class, which always trains.

    With keys each fold has a share of 1 / `folds` in the mean, and a class that would be missing from a fold is divided
    by rank. Without keys the folds of a class differ by one sample at most.
    """
    numbers = labels.numpy()
    if keys is None:
        return torch.from_numpy(_dealt(numbers, _positions(len(labels), seed, "val"), folds))
    drawn = _drawn(keys, seed, "val")
    found = np.minimum((drawn * folds).astype(np.int64), folds - 1)
    for mine in _by_class(numbers):
        values = np.unique(drawn[mine])
        if len(values) < 2:
            found[mine] = -1
        elif len(np.unique(found[mine])) < min(folds, len(values)):
            found[mine] = np.searchsorted(values, drawn[mine]) * folds // len(values)
    return torch.from_numpy(found)


def slice_of(labels: Tensor, limit: int, classes: int, seed: int, keys: Keys = None) -> Tensor:
    """Return sorted indices of `limit` samples; a larger slice contains the smaller one.

    With keys an added sample replaces another one at most. Raises UserError if `limit` is too small.
    """
    if limit < 2 * classes:
        raise UserError(
            f"dataset.limit={limit}: {classes} classes need two images each, "
            f"one to train and one to validate; type dataset.limit={2 * classes} or more, or 0 for all"
        )
    counts = torch.bincount(labels).numpy()
    quota = _allocate(counts, min(limit, len(labels)), np.minimum(2, counts), counts)
    drawn = _positions(len(labels), seed, "limit") if keys is None else _drawn(keys, seed, "limit")
    return torch.from_numpy(_stratified(labels, quota, drawn))


def _drawn(keys: Sequence[bytes], seed: int, purpose: str) -> NDArray[np.float64]:
    """A number from 0 to below 1 for each key, which follows from the key, the seed and the purpose alone."""
    start = blake2b(f"{purpose} {seed}\0".encode(), digest_size=8)

    def number(key: bytes) -> bytes:
        total = start.copy()
        total.update(key)
        return total.digest()

    whole = np.frombuffer(b"".join(map(number, keys)), dtype=">u8")
    return (whole >> np.uint64(11)).astype(np.float64) / 2.0**53


def _below(drawn: NDArray[np.float64], labels: Ints, fraction: float) -> NDArray[np.bool_]:
    """Whether each number is below the fraction; of a class with two numbers or more, some are and some are not.

    Of several tasks, labels (N, T), that holds for the classes of each; if it cannot, train has each class.
    """
    into = drawn < fraction
    if labels.ndim > 1:
        for column in labels.T:
            into = into | _below(drawn, column, fraction)
        for column in labels.T:
            for mine in _by_class(column):
                if into[mine].all():
                    into &= drawn != drawn[mine].max()
        return into
    for mine in _by_class(labels):
        values = np.unique(drawn[mine])
        if len(values) < 2:
            into[mine] = False  # a single image trains
        elif values[0] >= fraction:
            into |= drawn == values[0]  # with its copies under other labels
        elif values[-1] < fraction:
            into &= drawn != values[-1]
    return into


def _by_class(labels: Ints) -> Iterator[Ints]:
    """The indices of the samples of each class that has some."""
    order = np.argsort(labels, kind="stable")
    yield from (part for part in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(part))


def _dealt(labels: Ints, drawn: NDArray[np.uint64], folds: int) -> Ints:
    """Deal the samples of each class in their drawn order to the folds in turn, on from where the last class ended."""
    found = np.full(len(labels), -1, dtype=np.int64)
    first = 0
    for mine in _by_class(labels):
        if len(mine) > 1:
            found[mine[np.argsort(drawn[mine], kind="stable")]] = (first + np.arange(len(mine))) % folds
            first += len(mine)
    return found


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


def _positions(count: int, seed: int, purpose: str) -> NDArray[np.uint64]:
    """A number for each position in the dataset.

    64-bit keys of PCG64, a bit stream that NumPy keeps the same in all versions (NEP 19), which it does not promise for
    `permutation`.
    """
    return np.random.PCG64(np.random.SeedSequence([seed, *purpose.encode()])).random_raw(count)


def _stratified(labels: Tensor, quota: Ints, drawn: NDArray[np.generic]) -> Ints:
    """Return sorted indices of the `quota[label]` samples of every label with the smallest numbers.

    A larger quota contains the smaller one.
    """
    order = np.lexsort((drawn, labels.numpy()))
    ends = np.cumsum(np.bincount(labels.numpy(), minlength=len(quota)))
    starts = np.concatenate([[0], ends[:-1]])
    parts = [order[start : start + size] for start, size in zip(starts, quota, strict=True)]
    return np.sort(np.concatenate(parts))
