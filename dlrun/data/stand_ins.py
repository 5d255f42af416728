"""Training images in place of those that cannot be read (`dlrun train dataset.audit=0.01 dataset.on_bad=drop`, D1).

The next readable image of the same class, as timm's loader takes the next one of all. So batches keep their size, and
which image it is follows from the files alone: a resumed run, and any number of processes, take the same ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dlrun.data.bad import Bad
from dlrun.data.members import File

__all__ = ["StandIns"]


class StandIns:
    """The files of a training split (N,), and which of them could not be read, as far as that is known."""

    def __init__(self, files: Sequence[File], ids: Sequence[str], labels: NDArray[np.int64]) -> None:
        self._files, self._ids = files, ids
        order = np.argsort(labels, kind="stable")
        self._next = np.empty(len(labels), dtype=np.int64)  # in its class, after whose last comes the first
        for part in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            self._next[part] = np.roll(part, -1)
        self._reasons: dict[int, str] = {}  # the threads that decode add to it

    def after(self, number: int, reason: str) -> Iterator[tuple[int, File]]:
        """Note why an image cannot be read, and yield the others of its class that may be, in their order."""
        if not self._reasons:
            what = "the next image of its class takes its place (dataset.on_bad=drop); others are counted at the end"
            print(f"dlrun: {self._files[number]}: {reason}; {what}", file=sys.stderr)
        self.note(number, reason)
        other = int(self._next[number])
        while other != number:
            if other not in self._reasons:
                yield other, self._files[other]
            other = int(self._next[other])

    def note(self, number: int, reason: str) -> None:
        """Note why an image cannot be read."""
        self._reasons.setdefault(number, reason)

    @property
    def found(self) -> list[tuple[int, str]]:
        """The numbers of the images that could not be read so far, and why."""
        return sorted({**self._reasons}.items())

    @property
    def bad(self) -> list[Bad]:
        """The same with their ids."""
        return [Bad(self._ids[number], "train", reason) for number, reason in self.found]
