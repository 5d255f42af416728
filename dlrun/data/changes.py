"""What differs between the images that a run recorded and those that are there now (`dlrun resume`, D4).

Images are told apart by content and name: the same content under another name was renamed, other content under the same
name changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrun.data.identity import SIZE, Digests, keys_of
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.data.splits import Split

__all__ = ["Changes", "Rows", "changes", "found_again"]

NAMED = 3  # names of each kind in a message


@dataclass(frozen=True)
class Rows:
    """Every image that a run uses: id, digest (N, 16), label (N,) and the name of its split (N,), in their order."""

    ids: list[str]
    digests: Digests
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]

    @classmethod
    def joined(cls, splits: Mapping[str, Split]) -> Rows | None:
        """Return the rows of some splits; None if one lacks digests."""
        parts = [split.digests for split in splits.values()]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts) or not parts:
            return None
        return cls(
            [name for split in splits.values() for name in split.ids],
            np.concatenate(whole),
            np.concatenate([split.labels.numpy() for split in splits.values()]),
            np.repeat(np.array([*splits]), [len(split) for split in splits.values()]),
        )

    @classmethod
    def read(cls, arrays: Mapping[str, Any]) -> Rows | None:
        """Return the rows of the arrays that `arrays` gives; None if they are missing or damaged."""
        try:
            ids = arrays["ids"].tobytes().decode(errors="surrogateescape").split("\0")
            digests, labels, splits = (arrays[name] for name in ("digests", "labels", "splits"))
        except (KeyError, AttributeError):
            return None
        kinds = (digests.dtype, labels.dtype.kind, splits.dtype.kind) == (np.uint8, "i", "U")
        if not kinds or digests.shape != (len(ids), SIZE) or not labels.shape == splits.shape == (len(ids),):
            return None
        return cls(ids, digests, labels.astype(np.int64), splits.astype(str))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the rows as arrays without pickles, small once compressed."""
        text = "\0".join(self.ids).encode(errors="surrogateescape")
        ids = np.frombuffer(text, dtype=np.uint8)
        return {"ids": ids, "digests": self.digests, "labels": self.labels.astype(np.int32), "splits": self.splits}

    def of(self, split: str) -> Rows:
        """Return the rows of one split."""
        here = np.flatnonzero(self.splits == split)
        ids = [self.ids[n] for n in here.tolist()]
        return Rows(ids, self.digests[here], self.labels[here], self.splits[here])


@dataclass
class Changes:
    """The names of the images of each kind; `renamed` as "old → new"; `classes` says how the class names differ."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    classes: str = ""

    def __bool__(self) -> bool:
        return bool(self.classes or any(names for _, names in self.kinds()))

    @property
    def recoverable(self) -> bool:
        """Whether everything that was recorded is still there."""
        return not (self.classes or self.removed or self.changed or self.relabelled)

    def kinds(self) -> list[tuple[str, list[str]]]:
        """Return the kinds in the order of the message, those without an image too."""
        return [
            ("added", self.added),
            ("removed", self.removed),
            ("changed", self.changed),
            ("renamed", self.renamed),
            ("with another label", self.relabelled),
            ("in another split", self.moved),
        ]

    def __str__(self) -> str:
        said = [f"{len(names)} {what} ({_some(names)})" for what, names in self.kinds() if names]
        return "; ".join([*([self.classes] if self.classes else []), *said])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def changes(before: Rows, now: Rows, classes: Sequence[str], classes_now: Sequence[str]) -> Changes:
    """Return what became of the images of `before`, with the class names of both.

    Of several images with the same content those that kept their name are matched first.
    """
    found = Changes()
    if list(classes) != list(classes_now):
        gone, new = (_missing(a, b) for a, b in ((classes, classes_now), (classes_now, classes)))
        found.classes = f"classes: {gone or 'none'} gone, {new or 'none'} new"
    old, new_keys = keys_of(before.digests), keys_of(now.digests)
    there = {(name, key): n for n, (name, key) in enumerate(zip(now.ids, new_keys, strict=True))}
    left: list[int] = []
    pairs: list[tuple[int, int]] = []
    for number, pair in enumerate(zip(before.ids, old, strict=True)):
        match = there.pop(pair, None)
        if match is None:
            left.append(number)
        else:
            pairs.append((number, match))
    by_key: defaultdict[bytes, list[int]] = defaultdict(list)
    for (_, key), n in reversed(there.items()):
        by_key[key].append(n)
    unmatched = []
    for number in left:
        if candidates := by_key[old[number]]:
            n = candidates.pop()
            pairs.append((number, n))
            del there[now.ids[n], new_keys[n]]
            found.renamed.append(f"{before.ids[number]} → {now.ids[n]}")
        else:
            unmatched.append(number)
    by_name = {name: (name, key) for name, key in there}
    for number in unmatched:
        name = before.ids[number]
        if name in by_name:
            del there[by_name[name]]
            found.changed.append(name)
        else:
            found.removed.append(name)
    found.added += [name for name, _ in there]
    names, names_now = _names(before, classes), _names(now, classes_now)
    found.relabelled += [before.ids[a] for a, b in pairs if names[a] != names_now[b]]
    found.moved += [before.ids[a] for a, b in pairs if before.splits[a] != now.splits[b]]
    return found


def _missing(some: Sequence[str], others: Sequence[str]) -> str:
    return _some([repr(name) for name in some if name not in set(others)])


def _names(rows: Rows, classes: Sequence[str]) -> list[str]:
    return [classes[label] if 0 <= label < len(classes) else str(label) for label in rows.labels.tolist()]


def found_again(source: Split, rows: Rows, name: str) -> NDArray[np.int64]:
    """Return the number in `source`, which has digests, of each row; by name and content, else by content.

    Raises UserError if an image is missing or has another label.
    """
    assert source.digests is not None
    keys = keys_of(source.digests)
    exact = {pair: n for n, pair in enumerate(zip(source.ids, keys, strict=True))}
    free: defaultdict[bytes, list[int]] = defaultdict(list)
    wanted = [*zip(rows.ids, keys_of(rows.digests), strict=True)]
    taken = {exact[pair] for pair in wanted if pair in exact}
    for n in range(len(keys) - 1, -1, -1):
        if n not in taken:
            free[keys[n]].append(n)
    index = []
    for row, pair in enumerate(wanted):
        number = exact.get(pair)
        if number is None:
            if not free[pair[1]]:
                raise UserError(f"{pair[0]}: the image of the run's {name} split is gone or has changed; restore it")
            number = free[pair[1]].pop()
        if int(source.labels[number]) != int(rows.labels[row]):
            raise UserError(f"{source.ids[number]}: the image had another label when the run began; restore it")
        index.append(number)
    return np.array(index, dtype=np.int64)
