"""Samples that cannot be used, and the error that names them (`dlrun train dataset.on_bad=drop`, D1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.data.classes import NAMELESS
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.data.splits import Split
    from dlrun.data.tasks import Tasks

__all__ = ["Bad", "BadData", "bad_labels", "labelled", "require_any", "require_samples", "require_shape", "without"]


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
            shown += f"; also {others}{more}: {len(bad)} of {total} samples cannot be used"
        super().__init__(f"{shown}; repair or remove, or omit with dataset.on_bad=drop")
        self.bad = bad


def bad_labels(split: Split, name: str, classes: int | Tasks) -> list[Bad]:
    """Return the samples of a split called `name` whose label is not in 0 to classes - 1; of several tasks none."""
    if not isinstance(classes, int):
        return []  # their codes were made of known classes
    labels, wrong = split.labels, (split.labels < 0) | (split.labels >= classes)
    numbers = wrong.nonzero().flatten().tolist()
    return [Bad(split.ids[n], name, f"has label {int(labels[n])}, expected 0 to {classes - 1}") for n in numbers]


def labelled(name: str, split: Split, classes: int | Tasks, bad: list[Bad]) -> Split:
    """The samples whose label is in range; the others are added to `bad`."""
    found = bad_labels(split, name, classes)
    if not found or not isinstance(classes, int):
        return split
    bad += found
    return split.subset(((split.labels >= 0) & (split.labels < classes)).nonzero().flatten())


def without(name: str, split: Split, reasons: dict[int, str], bad: list[Bad]) -> Split:
    """Return the split without the samples in `reasons`, which are added to `bad`."""
    if not reasons:
        return split
    bad += [Bad(split.ids[number], name, reason) for number, reason in reasons.items()]
    return split.subset(torch.tensor([n for n in range(len(split)) if n not in reasons], dtype=torch.int64))


def require_samples(train: Split, classes: list[str], bad: list[Bad] | None = None, tasks: Tasks | None = None) -> None:
    """Raise UserError for one class with a name, and for a class without a sample; bad samples are reported first."""
    if bad:
        return
    if tasks is not None:
        for name, labels, column in zip(tasks.names, tasks.classes, tasks.columns(train.labels).unbind(1), strict=True):
            _require_classes(column.numpy(), labels, f" by {name}")
    else:
        _require_classes(train.labels.numpy(), classes)


def _require_classes(labels: NDArray[np.int64], classes: Sequence[str], what: str = "") -> None:
    """Raise UserError for one class with a name, and for a class without a sample among the labels (N,)."""
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2 and [*classes] != [NAMELESS]:
        raise UserError(f"the training split has one class{what} ({classes[0]!r}); expected two or more")
    if not counts.all():
        empty = ", ".join(repr(classes[label]) for label in np.flatnonzero(counts == 0)[:10])
        raise UserError(f"the training split has no usable sample of class {empty}{what}; add some to each")


def require_any(name: str, split: Split) -> None:
    """Raise UserError for an empty split."""
    if not len(split):
        raise UserError(f"the {name} split has no usable sample; repair or add some")


def require_shape(name: str, split: Split, shape: tuple[int, int, int]) -> None:
    """Raise UserError for images of another shape than (H, W, C) `shape`."""
    if split.images.shape != shape:
        raise UserError(
            f"{name} images have (height, width, channels) {split.images.shape}, training images {shape}; "
            "resize image folders with dataset.image_size=64"
        )
