"""From a dataset to the data of a run: splits carved, bad samples found, channels measured.

Every verb that reads data calls `prepare`; its keys are in `dataset:` of `conf/train.yaml`, as in
`dlrun train dataset=cifar10 dataset.val_fraction=0.1 dataset.limit=2000 dataset.on_bad=drop` (D1, D3, D4,
D10).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlrun.data.cache import Cache, cache_at
from dlrun.data.carving import carve, slice_of
from dlrun.data.headers import alike, levelled
from dlrun.data.images import Images, InMemory, Streamed
from dlrun.data.scan import scan
from dlrun.data.units import Units, decoding_of, measured
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.data.audit import Audit

__all__ = ["Bad", "BadData", "Data", "HeldOut", "Raw", "Split", "bad_labels", "prepare"]


@dataclass(frozen=True)
class Split:
    """Images, their int64 labels (N,), and an id per sample that survives reordering."""

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
    """The splits of a dataset: `test` is read when called, and None if the dataset has no test split."""

    train: Split
    test: Callable[[], Split] | None
    classes: list[str]
    val: Split | None = None


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used: its id, the split it belongs to, and why (D1)."""

    id: str
    split: str
    reason: str


class BadData(UserError):
    """Unusable samples with dataset.on_bad=error; `bad` lists all of them, the message the first ten."""

    def __init__(self, bad: list[Bad], total: int) -> None:
        first, others = bad[0], ", ".join(item.id for item in bad[1:10])
        shown = f"{first.id}: {first.reason}"
        if others:
            more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
            shown += f"; so are {others}{more}: {len(bad)} of {total} samples cannot be used"
        super().__init__(f"{shown}; repair or remove, or omit with dataset.on_bad=drop")
        self.bad = bad


class HeldOut(NamedTuple):
    """The test split as it was read, and the samples of it that dataset.on_bad=drop omitted."""

    split: Split
    dropped: tuple[Bad, ...] = ()


@dataclass(frozen=True)
class Data:
    """The data of a run; mean and std per channel of `train`, in raw units; `test()` reads that split once.

    `dropped` lists the samples of train and val that dataset.on_bad=drop omitted. `balance`: training batches draw all
    classes equally often (D6).
    """

    train: Split
    val: Split
    classes: list[str]
    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    test: Callable[[], HeldOut]
    split_seed: int
    val_fraction: float | None
    dropped: tuple[Bad, ...] = ()
    balance: bool = False

    @cached_property
    def audit(self) -> Audit:
        """The comparison of all samples; made at first use, which reads the test split, and kept with the data."""
        from dlrun.data.audit import audit  # which imports this module

        return audit(self)

    @cached_property
    def units(self) -> Units:
        """Type, range and white level of the training images."""
        return measured(self.train.images)

    @property
    def audited(self) -> Audit | None:
        """The audit if it was made; None if the test split may still be unread."""
        return vars(self).get("audit")

    def record(self, *, final: bool = False) -> dict[str, Any]:
        """Return a run's record of its data (D4), as JSON types; a fold on disk has no `val_fraction`.

        Without `final` it has nothing about the test split, even if that was read.
        """
        counts = np.bincount(self.train.labels.numpy(), minlength=len(self.classes))
        splits, dropped = {"train": self.train, "val": self.val}, self.dropped
        if final:
            splits["test"], more = self.test()
            dropped += more
        return {
            **{name: len(split) for name, split in splits.items()},
            "shape": list(self.shape),
            "classes": self.classes,
            "train_counts": counts.tolist(),
            "dropped": {name: sum(item.split == name for item in dropped) for name in splits},
            "balance": self.balance,
            "mean": self.mean,
            "std": self.std,
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction,
            "units": self.units.record(),
            **decoding_of(self.train.images, self.units),
            "val_sha256": hashlib.sha256("\n".join(self.val.ids).encode()).hexdigest(),
            "content_sha256": _content(self.train, self.val),
        }


def _content(*splits: Split) -> str | None:
    """A hash of the pixels and labels of all samples in their order; None for files not decoded yet."""
    total = hashlib.sha256()
    for split in splits:
        if split.images.marks is None:
            return None
        total.update(b"".join(split.images.marks.digests))
        total.update(split.labels.numpy().tobytes())
    return total.hexdigest()


def prepare(
    raw: Raw,
    *,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    limit: int = 0,
    memory_gb: float = 4.0,
    workers: int = 0,
    on_bad: str = "error",
    balance: bool = False,
    cache: str = "none",
    cache_gb: float = 20.0,
    share: bool = False,
) -> Data:
    """Carve test (if there is none), then `limit`, then val (if there is none), and measure train.

    All carving is stratified and depends only on labels and `split_seed`, so that the seeds of an ensemble
    share a fold. Bad samples are found afterwards (bad labels before, since they belong to no class): with
    `on_bad` error all are reported, with drop each is omitted from its fold, and no other sample moves. Test
    is scanned when it is read. Image files come from a `cache` (auto, none or a folder) of at most `cache_gb`
    (1e9 bytes); without a cache, splits that fit into `memory_gb` are held in memory, others are streamed.
    With `share` datasets in memory go through the cache too, so that processes share one copy. Raises
    UserError for a fraction outside (0, 1), too small a limit, and a class without training samples.
    """
    if split_seed < 0:
        raise UserError(f"dataset.split_seed={split_seed}: must be 0 or more")
    if on_bad not in ("error", "drop"):
        raise UserError(f"dataset.on_bad={on_bad}: must be error or drop")
    store = cache_at(cache, cache_gb)
    if share and store is not None:
        raw = _shared(raw, store)
    classes, bad = len(raw.classes), list[Bad]()
    train, read_test, total = _labelled("train", raw.train, classes, bad), raw.test, len(raw.train)
    val = None if raw.val is None else _labelled("val", raw.val, classes, bad)
    if not bad:  # otherwise bad samples are reported first
        _require_samples(train, raw.classes)
    if read_test is None:
        rest, chosen = carve(train.labels, test_fraction, split_seed, "test")
        carved = train.subset(chosen)
        train, read_test = train.subset(rest), lambda: carved
    if limit:
        train = train.subset(slice_of(train.labels, limit, classes, split_seed))
    if val is None:
        rest, chosen = carve(train.labels, val_fraction, split_seed, "val")
        train, val = train.subset(rest), train.subset(chosen)
    train = replace(train, images=levelled(train.images, workers))
    val, read_test, shape = _alike(val, train), partial(_alike, read_test, train), train.images.shape
    _require_shape("validation", val, shape)
    keep = _fits(memory_gb, train, val)
    train, mean, std = _scanned("train", train, keep, workers, bad, store)
    val, *_ = _scanned("val", val, keep, workers, bad, store)
    if bad and on_bad == "error":
        raise BadData(bad, total)
    _require_samples(train, raw.classes)
    _require_any("val", val)

    test = _reader(read_test, classes, shape, memory_gb, workers, on_bad, store)
    fraction = val_fraction if raw.val is None else None
    return Data(train, val, raw.classes, shape, mean, std, test, split_seed, fraction, tuple(bad), balance)


def _alike(split: Split | Callable[[], Split], train: Split) -> Split:
    """A split, read now if it is given by a function, whose files are decoded as those of train are."""
    split = split() if callable(split) else split
    return replace(split, images=alike(split.images, train.images))


def _shared(raw: Raw, store: Cache) -> Raw:
    """The same, with splits in memory mapped from the cache; before carving, while each split has all its pixels."""

    def mapped(split: Split) -> Split:
        if not isinstance(split.images, InMemory):
            return split
        return replace(split, images=replace(split.images, pixels=store.shared(split.images.pixels)))

    test = raw.test
    return replace(
        raw,
        train=mapped(raw.train),
        val=None if raw.val is None else mapped(raw.val),
        test=None if test is None else lambda: mapped(test()),
    )


def _reader(
    read: Callable[[], Split],
    classes: int,
    shape: tuple[int, int, int],
    memory_gb: float,
    workers: int,
    on_bad: str,
    store: Cache | None,
) -> Callable[[], HeldOut]:
    """A function that reads the test split once, and treats its bad samples like those of train."""

    @cache
    def test() -> HeldOut:
        found: list[Bad] = []
        whole = read()
        split = _labelled("test", whole, classes, found)
        _require_shape("test", split, shape)
        split, *_ = _scanned("test", split, _fits(memory_gb, split), workers, found, store)
        if found and on_bad == "error":
            raise BadData(found, len(whole))
        _require_any("test", split)
        return HeldOut(split, tuple(found))

    return test


def bad_labels(split: Split, name: str, classes: int) -> list[Bad]:
    """Return the samples of a split called `name` whose label is not in 0 to classes - 1."""
    labels, wrong = split.labels, (split.labels < 0) | (split.labels >= classes)
    numbers = wrong.nonzero().flatten().tolist()
    return [Bad(split.ids[n], name, f"has label {int(labels[n])}, expected 0 to {classes - 1}") for n in numbers]


def _labelled(name: str, split: Split, classes: int, bad: list[Bad]) -> Split:
    """The samples whose label is in range; the others are added to `bad`."""
    found = bad_labels(split, name, classes)
    if not found:
        return split
    bad += found
    return split.subset(((split.labels >= 0) & (split.labels < classes)).nonzero().flatten())


def _scanned(
    name: str, split: Split, keep: bool, workers: int, bad: list[Bad], store: Cache | None
) -> tuple[Split, list[float], list[float]]:
    """The samples with usable pixels, mean and std of their channels; the others are added to `bad`."""
    if store is not None and isinstance(split.images, Streamed):
        held = store.decoded(split.images, workers)
        if held is not None:
            split = _without(name, replace(split, images=held[0]), held[1], bad)
    found = scan(split.images, keep=keep, workers=workers)
    return _without(name, replace(split, images=found.images), found.bad, bad), found.mean, found.std


def _without(name: str, split: Split, reasons: dict[int, str], bad: list[Bad]) -> Split:
    """The split without the samples in `reasons`, which are added to `bad`."""
    if not reasons:
        return split
    bad += [Bad(split.ids[number], name, reason) for number, reason in reasons.items()]
    return split.subset(torch.tensor([n for n in range(len(split)) if n not in reasons], dtype=torch.int64))


def _fits(memory_gb: float, *splits: Split) -> bool:
    """Whether the splits, if they are files, may be held in memory."""
    files = [split.images for split in splits if isinstance(split.images, Streamed)]
    return sum(images.nbytes for images in files) <= memory_gb * 1e9


def _require_samples(train: Split, classes: list[str]) -> None:
    counts = np.bincount(train.labels.numpy(), minlength=len(classes))
    if len(classes) < 2:
        raise UserError(f"the training split has one class ({classes[0]!r}); expected two or more")
    if not counts.all():
        empty = ", ".join(repr(classes[label]) for label in np.flatnonzero(counts == 0)[:10])
        raise UserError(f"the training split has no usable sample of class {empty}; add some to each")


def _require_any(name: str, split: Split) -> None:
    if not len(split):
        raise UserError(f"the {name} split has no usable sample; repair or add some")


def _require_shape(name: str, split: Split, shape: tuple[int, int, int]) -> None:
    if split.images.shape != shape:
        raise UserError(
            f"{name} images have (height, width, channels) {split.images.shape}, training images {shape}; "
            "resize image folders with dataset.image_size=64"
        )
