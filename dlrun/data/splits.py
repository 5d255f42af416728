"""From what a dataset holds to what a run trains on: splits carved, channels measured.

Every verb that reads data comes through `prepare`; its keys stand in `dataset:` of `conf/train.yaml`, as in
`dlrun train dataset=cifar10 dataset.val_fraction=0.1 dataset.limit=2000` (D3, D4, D10).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.config import UserError
from dlrun.data.images import Images, InMemory, Streamed, load, read

__all__ = ["Data", "Raw", "Split", "prepare"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images, their int64 labels (N,), and a name for every sample that outlives reordering."""

    images: Images
    labels: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Split:
        """The samples numbered by an int64 index, renumbered from 0; pixels are shared."""
        ids = [self.ids[number] for number in index.tolist()]
        return Split(self.images.subset(index), self.labels[index], ids)


@dataclass(frozen=True)
class Raw:
    """What a dataset holds: `test` is read when called, and None where the dataset has no test split."""

    train: Split
    test: Callable[[], Split] | None
    classes: list[str]
    val: Split | None = None


@dataclass(frozen=True)
class Data:
    """What a run works on; mean and std a channel over `train`, in raw units; `test()` reads that split."""

    train: Split
    val: Split
    classes: list[str]
    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    test: Callable[[], Split]
    split_seed: int
    val_fraction: float | None

    def record(self) -> dict[str, Any]:
        """What a run writes down about its data (D4), as JSON types; a fold on disk has no `val_fraction`."""
        counts = np.bincount(self.train.labels.numpy(), minlength=len(self.classes))
        return {
            "train": len(self.train),
            "val": len(self.val),
            "shape": list(self.shape),
            "classes": self.classes,
            "train_counts": counts.tolist(),
            "mean": self.mean,
            "std": self.std,
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction,
            "val_sha256": hashlib.sha256("\n".join(self.val.ids).encode()).hexdigest(),
        }


def prepare(
    raw: Raw,
    *,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    limit: int = 0,
    memory_gb: float = 4.0,
    workers: int = 0,
) -> Data:
    """Carve test (where there is none), then `limit`, then val (where there is none), and measure train.

    All carving is stratified and follows `split_seed` alone, so that the seeds of an ensemble share a fold.
    Image files that fit into `memory_gb` (1e9 bytes) decoded are held in memory, others stream from disk.
    Raises UserError for a fraction outside (0, 1), too small a limit, and a class without training samples.
    """
    train, read_test, val = raw.train, raw.test, raw.val
    if split_seed < 0:
        raise UserError(f"dataset.split_seed={split_seed}: must be 0 or more")
    _require_samples(train, raw.classes)
    if read_test is None:
        rest, chosen = _carve(train, _fraction("test_fraction", test_fraction), split_seed, "test")
        carved = train.subset(chosen)
        train, read_test = train.subset(rest), lambda: carved
    if limit:
        train = train.subset(_limit(train, limit, len(raw.classes), split_seed))
    if val is None:
        rest, chosen = _carve(train, _fraction("val_fraction", val_fraction), split_seed, "val")
        whole = _hold([train], memory_gb, workers)[
            0
        ]  # before it is divided: both folds then share one tensor
        train, val = whole.subset(rest), whole.subset(chosen)
    else:
        train, val = _hold([train, val], memory_gb, workers)
    shape = train.images.shape
    _require_shape("validation", val, shape)

    def test() -> Split:
        split = _hold([read_test()], memory_gb, workers)[0]
        _require_shape("test", split, shape)
        return split

    mean, std = _moments(train, workers)
    fraction = val_fraction if raw.val is None else None
    return Data(train, val, raw.classes, shape, mean, std, test, split_seed, fraction)


def _fraction(key: str, value: float) -> float:
    if not 0 < value < 1:
        raise UserError(f"dataset.{key}={value}: must lie between 0 and 1, such as dataset.{key}=0.1")
    return value


def _require_samples(train: Split, classes: list[str]) -> None:
    counts = np.bincount(train.labels.numpy(), minlength=len(classes))
    if len(classes) < 2:
        raise UserError(f"the training split has one class ({classes[0]!r}); a classifier needs two or more")
    if not counts.all():
        empty = ", ".join(repr(classes[label]) for label in np.flatnonzero(counts == 0)[:10])
        raise UserError(
            f"the training split has no sample of class {empty}; classes count from 0 without gaps"
        )


def _require_shape(name: str, split: Split, shape: tuple[int, int, int]) -> None:
    if split.images.shape != shape:
        raise UserError(
            f"{name} images have (height, width, channels) {split.images.shape}, training images {shape}; "
            "image folders get one size with dataset.image_size=64"
        )


def _hold(splits: list[Split], memory_gb: float, workers: int) -> list[Split]:
    """The splits with their files decoded into memory, if all of them fit."""
    size = sum(len(split) * int(np.prod(split.images.shape)) for split in splits)
    if size > memory_gb * 1e9:
        return splits
    return [
        replace(split, images=load(split.images, workers)) if isinstance(split.images, Streamed) else split
        for split in splits
    ]


def _carve(split: Split, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of the carved part; each class with two samples or more is in both."""
    counts = torch.bincount(split.labels).numpy()
    low, high = np.minimum(1, counts // 2), counts - 1
    quota = _allocate(counts, round(len(split) * fraction), low, high)
    chosen = _stratified(split.labels, quota, seed, purpose)
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    if not len(chosen):
        raise UserError(f"no class has two samples to divide between train and {purpose}; add images")
    return torch.from_numpy(rest), torch.from_numpy(chosen)


def _limit(split: Split, limit: int, classes: int, seed: int) -> Tensor:
    if limit < 2 * classes:
        raise UserError(
            f"dataset.limit={limit}: {classes} classes need two images each, "
            f"one to train and one to validate; dataset.limit={2 * classes} or more, or 0 for all"
        )
    counts = torch.bincount(split.labels).numpy()
    quota = _allocate(counts, min(limit, len(split)), np.minimum(2, counts), counts)
    return torch.from_numpy(_stratified(split.labels, quota, seed, "limit"))


def _allocate(counts: Ints, total: int, low: Ints, high: Ints) -> Ints:
    """`total` samples divided in proportion to `counts` by largest remainder, each class within low..high.

    The bounds win over the total where both cannot be had. Ties go to the lower class number.
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
    """Sorted indices of `quota[label]` random samples of every label.

    Samples are drawn by sorting 64-bit keys of PCG64, a bit stream that NumPy keeps the same in all versions
    (NEP 19), which it does not promise for `permutation`. A larger quota holds the smaller one.
    """
    stream = np.random.SeedSequence([seed, *purpose.encode()])
    keys = np.random.PCG64(stream).random_raw(len(labels))
    order = np.lexsort((keys, labels.numpy()))
    ends = np.cumsum(np.bincount(labels.numpy(), minlength=len(quota)))
    starts = np.concatenate([[0], ends[:-1]])
    parts = [order[start : start + size] for start, size in zip(starts, quota, strict=True)]
    return np.sort(np.concatenate(parts))


def _moments(split: Split, workers: int) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation a channel, in raw units; of a constant channel 1 (D3).

    uint8 is summed in integers, so that the result is exact and the same for any number of threads.
    Floats are merged chunk by chunk in float64 (Chan, Golub and LeVeque 1979).
    """
    chunks = torch.split(torch.arange(len(split)), max(1, 2_000_000 // int(np.prod(split.images.shape))))
    batches = (batch.numpy() for batch in read(split.images, chunks, workers))
    channels = split.images.shape[2]
    count = len(split) * split.images.shape[0] * split.images.shape[1]
    if not isinstance(split.images, InMemory) or split.images.pixels.dtype == torch.uint8:
        sums = squares = np.zeros(channels, dtype=np.int64)
        for batch in batches:
            flat = batch.reshape(len(batch), -1)
            sums = sums + _by_channel(flat.sum(0, dtype=np.int64), channels)
            squares = squares + _by_channel(np.square(flat, dtype=np.uint16).sum(0, dtype=np.int64), channels)
        pairs = [(int(s), int(q)) for s, q in zip(sums, squares, strict=True)]
        mean = [s / count for s, _ in pairs]
        variance = [(q * count - s * s) / count**2 for s, q in pairs]
    else:
        mean, variance = _float_moments(batches, channels, split.ids)
    return mean, [v**0.5 if v > 0 else 1.0 for v in variance]


def _by_channel(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    result: NDArray[Any] = pixels.reshape(-1, channels).sum(0)
    return result


def _float_moments(
    batches: Iterable[NDArray[Any]], channels: int, ids: list[str]
) -> tuple[list[float], list[float]]:
    count, seen, mean, spread = 0, 0, np.zeros(channels), np.zeros(channels)
    for batch in batches:
        finite = np.isfinite(batch).all(axis=(1, 2, 3))
        if not finite.all():
            name = ids[seen + int(np.argmin(finite))]
            raise UserError(f"training image {name} holds a value that is not finite (nan or inf); remove it")
        seen += len(batch)
        flat = batch.reshape(-1, channels).astype(np.float64)
        here = flat.mean(0)
        share = len(flat) / (count + len(flat))
        spread = spread + ((flat - here) ** 2).sum(0) + (here - mean) ** 2 * count * share
        mean, count = mean + (here - mean) * share, count + len(flat)
    return mean.tolist(), (spread / count).tolist()
