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
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.bad import Bad, BadData, bad_labels, labelled, require_any, require_samples, require_shape
from dlrun.data.cache import cache_at
from dlrun.data.changes import Rows
from dlrun.data.first_pass import FirstPass
from dlrun.data.folds import Rule, divide, recover, recover_test
from dlrun.data.headers import alike, levelled
from dlrun.data.identity import Digests, contents, overall, weighted
from dlrun.data.images import Images, files_of
from dlrun.data.listing import Account
from dlrun.data.raw import merged, none_of, shared
from dlrun.data.stand_ins import StandIns
from dlrun.data.tasks import Tasks
from dlrun.data.units import Units, decoding_of, measured

if TYPE_CHECKING:
    from dlrun.data.audit import Audit

__all__ = ["Bad", "BadData", "Data", "HeldOut", "Raw", "Split", "bad_labels", "prepare"]


@dataclass(frozen=True)
class Split:
    """Images, their int64 labels (N,), and an id per sample that survives reordering.

    `digests` (N, 16) are those of dlrun/data/identity.py. Samples of one of `groups` (N,), such as the images of a
    patient, are never divided between folds. `weights` (N,): how much each sample counts in the training loss.
    """

    images: Images
    labels: Tensor
    ids: list[str]
    digests: Digests | None = None
    groups: NDArray[np.str_] | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Split:
        """The samples numbered by an int64 index, renumbered from 0; pixels are shared."""
        ids, rows = [self.ids[number] for number in index.tolist()], index.numpy()
        digests, groups = (None if part is None else part[rows] for part in (self.digests, self.groups))
        weights = None if self.weights is None else self.weights[index]
        return Split(self.images.subset(index), self.labels[index], ids, digests, groups, weights)


@dataclass(frozen=True)
class Raw:
    """The splits of a dataset: `test` is read when called, and None if the dataset has no test split.

    `notes`: one line each on how the files were read, for the screen and the log. `bad`: samples omitted already.
    """

    train: Split
    test: Callable[[], Split] | None
    classes: list[str]
    val: Split | None = None
    notes: tuple[str, ...] = ()
    bad: tuple[Bad, ...] = ()
    account: Account | None = None  # of the files that were read and left out
    tasks: Tasks | None = None  # of several labels per image; then `classes` are what the logits stand for


class HeldOut(NamedTuple):
    """The test split as it was read, and the samples of it that dataset.on_bad=drop omitted."""

    split: Split
    dropped: tuple[Bad, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Those of the split, as of train and val."""
        return self.split.ids


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
    held: Split | None = None  # the test split as it was carved, not scanned yet; None if the dataset has its own
    split: str = "position"  # what decided the folds
    folds: int = 0
    fold: int = 0
    notes: tuple[str, ...] = ()  # those of Raw
    account: Account | None = None  # of the files that were read and left out
    tasks: Tasks | None = None  # those of Raw
    read_share: float = 1.0  # of image files that were read before training (dataset.audit)
    own: tuple[list[float], list[float]] | None = None  # of `train`, if other mean and std normalise

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

    @property
    def stand_ins(self) -> StandIns | None:
        """What is taken in place of training images that cannot be read; None if these stop training."""
        files = files_of(self.train.images)
        return files.stand_ins[0] if files is not None and files.stand_ins else None

    @property
    def counts(self) -> list[int]:
        """Number of training images of each of `classes`."""
        if self.tasks is not None:
            return self.tasks.counted(self.train.labels)
        return np.bincount(self.train.labels.numpy(), minlength=len(self.classes)).tolist()  # type: ignore[no-any-return]

    def word(self, label: int) -> str:
        """Return the name of a label, or its number if it is none."""
        known = self.classes if self.tasks is None else []
        return self.tasks.word(label) if self.tasks else known[label] if 0 <= label < len(known) else str(label)

    def record(self, *, final: bool = False) -> dict[str, Any]:
        """Return a run's record of its data (D4), as JSON types; a fold on disk has no `val_fraction`.

        Without `final` it has nothing about the test split, even if that was read.
        """
        splits, dropped = {"train": self.train, "val": self.val}, self.dropped
        if final:
            splits["test"], more = self.test()
            dropped += more
        return {
            **{name: len(split) for name, split in splits.items()},
            "shape": list(self.shape),
            "classes": self.classes,
            **({"train_counts": self.counts} if self.tasks is None else self.tasks.about()),
            **({"left_out": self.account.record()} if self.account else {}),
            "dropped": {name: sum(item.split == name for item in dropped) for name in splits},
            **({"replaced": len(self.stand_ins.found)} if self.stand_ins else {}),
            "balance": self.balance,
            "mean": self.mean,
            "std": self.std,
            **({"train_mean": self.own[0], "train_std": self.own[1]} if self.own else {}),
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction,
            "units": self.units.record(),
            **decoding_of(self.train.images, self.units),
            "split": self.split,
            **({} if self.read_share == 1 else {"audit": self.read_share}),
            **self._fold(),
            **self._weights(),
            "identity": self.identity("train", "val"),
            **({"test_identity": self.identity("test")} if final else {}),
            "val_sha256": hashlib.sha256("\n".join(self.val.ids).encode()).hexdigest(),
            "content_sha256": _content(self.train, self.val),
        }

    def rows(self, *, final: bool = False) -> Rows | None:
        """Return every image by name, content, label and split; None for datasets that never change.

        Without `final` a test split of the dataset's own is not part of it, and images of a carved one that cannot be
        used are.
        """
        splits = {"train": self.train, "val": self.val}
        if final or self.held is not None:
            splits["test"] = self.test().split if final or self.held is None else self.held
        return Rows.joined(splits)

    def _weights(self) -> dict[str, Any]:
        """The range of the weights of the training samples, if they have some."""
        found = self.train.weights
        return {} if found is None else {"weights": [float(found.min()), float(found.max())]}

    def _fold(self) -> dict[str, Any]:
        """Which fold validates, and the hash of all images that the folds divide."""
        if not self.folds:
            return {}
        return {"folds": self.folds, "fold": self.fold, "folds_identity": self.identity("train", "val", merged=True)}

    def identity(self, *names: str, merged: bool = False) -> str:
        """Return one hash over classes, and content, labels and weights of these splits, without order and names.

        With `merged` it does not matter which of the splits an image is in.
        """
        splits = [self.test().split if n == "test" else getattr(self, n) for n in names]
        digests = [contents(s.images, s.ids) if s.digests is None else s.digests for s in splits]
        digests = [weighted(d, s.weights) for d, s in zip(digests, splits, strict=True)]
        labels = [s.labels.numpy() for s in splits]
        if merged:
            return overall(self.classes, [("all", np.concatenate(digests), np.concatenate(labels))])
        return overall(self.classes, [*zip(names, digests, labels, strict=True)])


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
    split: str = "content",
    test_seed: int = 0,
    folds: int = 0,
    fold: int = 0,
    recorded: Rows | None = None,
    fit_all: bool = False,
    audit: float = 1.0,
) -> Data:
    """Carve test (if there is none), then `limit`, then val (if there is none), and measure train.

    By `split` the fold of a sample follows from its content, its name or its position, and `split_seed`, for test
    `test_seed`; seeds of an ensemble share them. With `folds` validation is number `fold` of them instead of
    `val_fraction`; `recorded` splits are those of a run. With `fit_all`, or `val_fraction` 0 and no validation split,
    all images but those of test train, and val is empty.

    Bad samples are found afterwards (bad labels before): with `on_bad` error all are reported, with drop each is
    omitted from its fold, and no other sample moves. Test is scanned when it is read. Image files come from a `cache`
    of at most `cache_gb` (1e9 bytes), or from memory if they fit into `memory_gb`; see FirstPass, and for `audit`. With
    `share` processes share one copy of datasets in memory. Raises UserError for what cannot be divided so.
    """
    if fit_all:
        raw, val_fraction, folds, fold = merged(raw), 0.0, 0, 0
    rule = Rule(split, split_seed, test_seed, val_fraction, test_fraction, limit, folds, fold, on_bad, raw.tasks)
    look = FirstPass(cache_at(cache, cache_gb), memory_gb, workers, on_bad, audit)
    raw = shared(raw, look.store) if share and look.store is not None else raw
    classes, bad = raw.tasks or len(raw.classes), list[Bad]()
    train, read_test, total = labelled("train", raw.train, classes, bad), raw.test, len(raw.train)
    val = None if raw.val is None else labelled("val", raw.val, classes, bad)
    require_samples(train, raw.classes, bad, raw.tasks)
    known = partial(look.known, lazily=split == "position")
    how = partial(recover, recorded=recorded) if recorded else partial(divide, rule=rule)
    train, val, held = how(train, val, own_test=read_test is not None, known=known)
    train = replace(train, images=levelled(train.images, workers))
    test = partial(_alike, partial(recover_test, read_test, recorded, known) if read_test else held, train)
    require_shape("validation", val := _alike(val, train), shape := train.images.shape)
    keep, validated = look.fits(train, val), len(val) > 0
    train, mean, std = look.scanned("train", train, keep, bad)
    val = look.scanned("val", val, keep, bad)[0] if validated else none_of(train)
    if bad and on_bad == "error":
        raise BadData(bad, total)
    require_samples(train, raw.classes, tasks=raw.tasks)
    require_any("val", val if validated else train)
    notes, dropped = (*raw.notes, *look.note(train=train, val=val)), (*raw.bad, *bad)
    drawn = (val_fraction if raw.val is None and not folds else None, dropped, balance, held, split, folds, fold, notes)
    read = _reader(test, known, classes, shape, look)
    return Data(train, val, raw.classes, shape, mean, std, read, split_seed, *drawn, raw.account, raw.tasks, audit)


def _alike(split: Split | Callable[[], Split] | None, train: Split) -> Split:
    """A split, read now if it is given by a function, whose files are decoded as those of train are."""
    split = split() if callable(split) else split
    assert split is not None  # a dataset without a test split has a carved one
    return replace(split, images=alike(split.images, train.images))


def _reader(
    read: Callable[[], Split],
    known: Callable[[Split], Split],
    classes: int | Tasks,
    shape: tuple[int, int, int],
    look: FirstPass,
) -> Callable[[], HeldOut]:
    """A function that reads the test split once, and treats its bad samples like those of train."""

    @cache
    def test() -> HeldOut:
        found: list[Bad] = []
        whole = read()
        split = known(labelled("test", whole, classes, found))
        require_shape("test", split, shape)
        split, *_ = look.scanned("test", split, look.fits(split), found)
        if found and look.on_bad == "error":
            raise BadData(found, len(whole))
        require_any("test", split)
        return HeldOut(split, tuple(found))

    return test
