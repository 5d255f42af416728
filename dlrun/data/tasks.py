"""Several labels per image: `dlrun train dataset=table dataset.csv=t.csv 'dataset.targets=[species,age_group]'` (M11).

With `dataset.multilabel=true` one column holds a set of classes per image, and every class is a task: no or yes.

A split keeps one whole number per image, a code for the class of every task, so that whatever counts, compares, divides
and stores labels works as with one target. The network has one output, the logits of all tasks side by side. `Tasks`
divides both. Codes begin above the numbers of the logits: taken for a class number, a code is out of range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.errors import UserError

__all__ = ["BETWEEN", "EMPTY", "Tasks"]

BETWEEN, EMPTY = "|", "-"  # of the classes of a set, and a set without one, in a table

MOST = 2**31 - 1  # as a run stores labels
SET = ("no", "yes")  # the classes of a task of a set


@dataclass(frozen=True)
class Tasks:
    """Names of the tasks (T) and the classes of each. Raises UserError for more combinations than a code holds.

    Of `sets` each task has one logit, that of yes; the logit of no is 0.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    sets: bool = False

    def __post_init__(self) -> None:
        if self.sets and self._end > MOST:
            raise UserError(f"dataset.multilabel=true: expected 30 classes or fewer, found {len(self.names)}")
        if self._end > MOST:
            sizes = " × ".join(map(str, self.sizes))
            raise UserError(
                f"dataset.targets: {sizes} combinations of classes; expected fewer than 2^31, omit a column"
            )

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each task."""
        return [len(one) for one in self.classes]

    @property
    def outputs(self) -> list[str]:
        """What each logit stands for (K,), task by task: species=cat; of sets the class."""
        if self.sets:
            return list(self.names)
        pairs = zip(self.names, self.classes, strict=True)
        return [f"{name}={label}" for name, labels in pairs for label in labels]

    @property
    def _end(self) -> int:
        return sum(self.sizes) + math.prod(self.sizes)

    def codes(self, columns: NDArray[np.int64]) -> Tensor:
        """Return one int64 code per image (N,) for class numbers (N, T)."""
        found = np.zeros(len(columns), dtype=np.int64)
        for task, size in enumerate(self.sizes):
            found = found * size + columns[:, task]
        return torch.from_numpy(found + sum(self.sizes))

    def columns(self, labels: Tensor) -> Tensor:
        """Return the class numbers (N, T) that codes (N,) stand for."""
        rest, found = labels - sum(self.sizes), list[Tensor]()
        for size in reversed(self.sizes):
            found.append(rest % size)
            rest = rest // size
        return torch.stack(found[::-1], 1)

    def split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (N, K_t) of each task."""
        if self.sets:
            return tuple(torch.stack([torch.zeros_like(one), one], 1) for one in logits.unbind(1))
        return torch.split(logits, self.sizes, 1)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the share of tasks whose most probable class is right, for each image (N,); labels are codes."""
        parts = zip(self.split(logits), self.columns(labels).unbind(1), strict=True)
        return torch.stack([part.argmax(1) == label for part, label in parts], 1).float().mean(1)

    def counts(self, labels: Tensor) -> list[list[int]]:
        """Return the number of images of each class, by task; labels are codes."""
        found = zip(self.columns(labels).unbind(1), self.sizes, strict=True)
        return [torch.bincount(column, minlength=size).tolist() for column, size in found]

    def counted(self, labels: Tensor) -> list[int]:
        """Return the number of images that each logit stands for (K,)."""
        return [n for counts in self.counts(labels) for n in (counts[1:] if self.sets else counts)]

    def word(self, label: int) -> str:
        """Return what a code stands for: cat, young."""
        numbers = self.columns(torch.tensor([label]))[0].tolist()
        if self.sets:
            return self.chosen(numbers)
        return ", ".join(labels[number] for labels, number in zip(self.classes, numbers, strict=True))

    def chosen(self, numbers: Sequence[int]) -> str:
        """Return the names of a set as a table has them, from whether each class is in it (C,): cat|dog."""
        return BETWEEN.join(name for name, there in zip(self.names, numbers, strict=True) if there) or EMPTY

    def record(self) -> dict[str, list[str]]:
        """Return the classes of each task by its name, for result.json."""
        return {name: list(labels) for name, labels in zip(self.names, self.classes, strict=True)}

    def about(self) -> dict[str, Any]:
        """Return what a run records of its tasks among its data."""
        return {"tasks": self.record()} | ({"multilabel": True} if self.sets else {})

    @classmethod
    def of(cls, record: Mapping[str, Sequence[Any]], sets: bool = False) -> Tasks:
        """Return the tasks that a run recorded."""
        return cls(tuple(record), tuple(tuple(map(str, labels)) for labels in record.values()), sets)

    @classmethod
    def of_sets(cls, classes: Sequence[str]) -> Tasks:
        """Return the tasks of sets of classes. Raises UserError for one class alone, and for more than 30."""
        if len(classes) < 2:
            raise UserError(f"dataset.multilabel=true: expected two classes or more, found {len(classes)}")
        return cls(tuple(classes), (SET,) * len(classes), sets=True)
