"""Train, validation and test of a dataset by one rule: fresh, or as a run recorded them (D4, D10).

`dlrun train dataset.split=content dataset.split_seed=0 dataset.folds=5 dataset.fold=0`; dlrun/data/carving.py draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dlrun.data.carving import Keys, carve, fold_of, slice_of
from dlrun.data.changes import Rows, found_again
from dlrun.data.groups import carve_groups, fold_of_groups
from dlrun.data.identity import keys_of
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.data.splits import Split
    from dlrun.data.tasks import Tasks

__all__ = ["Divided", "Rule", "divide", "recover", "recover_test"]

HOW = ("content", "name", "position")


class Divided(NamedTuple):
    """The three splits; `test` is None if the dataset has a test split of its own, which is read later."""

    train: Split
    val: Split
    test: Split | None


@dataclass(frozen=True)
class Rule:
    """How folds are made: the keys of `dataset` with these names. Raises UserError for values that cannot be."""

    split: str
    split_seed: int
    test_seed: int
    val_fraction: float
    test_fraction: float
    limit: int
    folds: int
    fold: int
    on_bad: str = "error"
    tasks: Tasks | None = None  # of several labels per image

    def __post_init__(self) -> None:
        for name in ("split_seed", "test_seed"):
            if getattr(self, name) < 0:
                raise UserError(f"dataset.{name}={getattr(self, name)}: must be 0 or more")
        if self.on_bad not in ("error", "drop"):
            raise UserError(f"dataset.on_bad={self.on_bad}: must be error or drop")
        if self.split not in HOW:
            raise UserError(f"dataset.split={self.split}: must be one of {', '.join(HOW)}")
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"dataset.folds={self.folds}: must be 2 or more, or 0 for one validation split")
        if not 0 <= self.fold < max(self.folds, 1):
            expected = f"0 to {self.folds - 1}" if self.folds else "0; dataset.folds=5 makes five folds"
            raise UserError(f"dataset.fold={self.fold}: must be {expected}")

    def first(self, split: Split) -> Tensor:
        """The labels (N,), of several tasks those of the first, which is divided evenly."""
        return split.labels if self.tasks is None else self.tasks.columns(split.labels)[:, 0]

    def keys(self, split: Split) -> Keys:
        """One key per sample, which decides its fold; None if its position does."""
        if self.split == "position":
            return None
        if self.split == "name" or split.digests is None:
            return [name.encode(errors="surrogateescape") for name in split.ids]
        return keys_of(split.digests)


def divide(train: Split, val: Split | None, own_test: bool, rule: Rule, known: Callable[[Split], Split]) -> Divided:
    """Carve test (if there is none), then `limit`, then val (if there is none).

    `known` adds digests to a split that lacks them. With val_fraction 0 and without folds val is empty. Raises
    UserError for a fraction outside (0, 1), too small a limit, and folds of a dataset with its own validation split.
    """
    if rule.split == "content":
        train = known(train)
    keys, test = rule.keys(train), None
    number = torch.arange(len(train))
    if not own_test:
        number, chosen = _carved(train, rule, rule.test_fraction, rule.test_seed, "test", keys)
        test = train.subset(chosen)
    if rule.limit:
        strata = rule.first(train)
        kept = slice_of(strata[number], rule.limit, int(strata.max()) + 1, rule.split_seed, _of(keys, number))
        number = number[kept]
    used, keys = train.subset(number), _of(keys, number)
    if val is not None:
        if rule.folds:
            what = "the dataset has a validation split of its own"
            raise UserError(f"dataset.folds={rule.folds}: {what}; omit dataset.folds, or merge that split into train")
        return Divided(known(used), known(val), None if test is None else known(test))
    if rule.folds:
        fold = _folds(used, rule, keys)
        rest, chosen = ((fold != rule.fold).nonzero().flatten(), (fold == rule.fold).nonzero().flatten())
        if not len(chosen):
            raise UserError(f"dataset.fold={rule.fold}: the fold has no image; use fewer than {rule.folds} folds")
    elif rule.val_fraction == 0:
        rest, chosen = torch.arange(len(used)), torch.zeros(0, dtype=torch.int64)
    else:
        rest, chosen = _carved(used, rule, rule.val_fraction, rule.split_seed, "val", keys)
    return Divided(known(used.subset(rest)), known(used.subset(chosen)), None if test is None else known(test))


def _carved(split: Split, rule: Rule, fraction: float, seed: int, purpose: str, keys: Keys) -> tuple[Tensor, Tensor]:
    if split.groups is not None:
        return carve_groups(rule.first(split), split.groups, fraction, seed, purpose)
    if rule.tasks is not None and keys is not None:
        return carve(rule.tasks.columns(split.labels), fraction, seed, purpose, keys)
    return carve(rule.first(split), fraction, seed, purpose, keys)


def _folds(split: Split, rule: Rule, keys: Keys) -> Tensor:
    if split.groups is not None:
        return fold_of_groups(rule.first(split), split.groups, rule.folds, rule.split_seed)
    return fold_of(rule.first(split), rule.folds, rule.split_seed, keys)


def _of(keys: Keys, index: Tensor) -> Keys:
    return None if keys is None else [keys[n] for n in index.tolist()]


def recover(
    train: Split, val: Split | None, own_test: bool, recorded: Rows, known: Callable[[Split], Split]
) -> Divided:
    """Return the splits that a run recorded, in their order and under their names, from a dataset that has more.

    A test split of the dataset's own is recovered by `recover_test`. Raises UserError if an image is missing.
    """
    train = known(train)
    own = train if val is None else known(val)
    test = None if own_test else _recovered(train, recorded, "test")
    return Divided(_recovered(train, recorded, "train"), _recovered(own, recorded, "val"), test)


def recover_test(read: Callable[[], Split], recorded: Rows | None, known: Callable[[Split], Split]) -> Split:
    """Return the test split of the dataset's own as a run recorded it; as it is, if the run did not get that far."""
    if recorded is None or not recorded.of("test").ids:
        return read()
    return _recovered(known(read()), recorded, "test")


def _recovered(source: Split, recorded: Rows, name: str) -> Split:
    rows = recorded.of(name)
    index = torch.from_numpy(found_again(source, rows, name))
    return replace(source.subset(index), labels=torch.from_numpy(rows.labels.copy()), ids=rows.ids)
