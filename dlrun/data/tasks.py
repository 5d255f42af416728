"""Several labels per image: `dlrun train dataset=table dataset.csv=t.csv 'dataset.targets=[species,age_group]'` (M11).

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

__all__ = ["Tasks"]

MOST = 2**31 - 1  # as a run stores labels


@dataclass(frozen=True)
class Tasks:
    """Names of the tasks (T) and the classes of each. Raises UserError for more combinations than a code holds."""

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
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
        """What each logit stands for (K,), task by task: species=cat."""
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
        return torch.split(logits, self.sizes, 1)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the share of tasks whose most probable class is right, for each image (N,); labels are codes."""
        parts = zip(self.split(logits), self.columns(labels).unbind(1), strict=True)
        return torch.stack([part.argmax(1) == label for part, label in parts], 1).float().mean(1)

    def counts(self, labels: Tensor) -> list[list[int]]:
        """Return the number of images of each class, by task; labels are codes."""
        found = zip(self.columns(labels).unbind(1), self.sizes, strict=True)
        return [torch.bincount(column, minlength=size).tolist() for column, size in found]

    def known(self, labels: Tensor) -> Tensor:
        """Return which labels (N,) are codes of these tasks."""
        return (labels >= sum(self.sizes)) & (labels < self._end)

    def word(self, label: int) -> str:
        """Return what a code stands for: cat, young."""
        numbers = self.columns(torch.tensor([label]))[0].tolist()
        return ", ".join(labels[number] for labels, number in zip(self.classes, numbers, strict=True))

    def record(self) -> dict[str, list[str]]:
        """Return the classes of each task by its name, for result.json."""
        return {name: list(labels) for name, labels in zip(self.names, self.classes, strict=True)}

    @classmethod
    def of(cls, record: Mapping[str, Sequence[Any]]) -> Tasks:
        """Return the tasks that a run recorded."""
        return cls(tuple(record), tuple(tuple(map(str, labels)) for labels in record.values()))
