"""Where the images of tar files lie, kept in the cache: later starts read no header (`dlrun train dataset=shards`, D4).

A table per folder in dataset.cache, beside the decoded images and within dataset.cache_gb; of each tar a line, which is
used as long as path, size, both times and inode are the same. The table may be damaged or of anybody: each line has a
digest, and what does not fit the tar is not used. webdataset itself writes no list of the members of a tar.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from dlrun.data.cache import UNSETTLED, Cache
from dlrun.data.cache_files import keep
from dlrun.data.listing import MOST, SUFFIXES, Account
from dlrun.data.members import Shard, TarMember
from dlrun.data.packs import MARK, SIZE, stored
from dlrun.data.tars import LABELS, LONGEST, Sample, samples

__all__ = ["TarLists"]

HEAD = MARK + b"members 1\n"
OTHERS = 1000  # lines of other tars that a table may keep, besides twice as many as there are tars
BEGINNING = 4 * SIZE + 2  # bytes of a line before its list: two digests


class TarLists:
    """The samples of some tars: those of the table, or else read from the tars. `close` keeps what is new."""

    def __init__(self, store: Cache | None, paths: Sequence[Path]) -> None:
        self._store, self._count = store, len(paths)
        top = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
        name = sha256(HEAD + top.encode(errors="surrogateescape")).hexdigest()[: 2 * SIZE]
        self._table = None if store is None else store.folder / f"{name}.members"
        self._known = {} if self._table is None else _read(self._table)
        self._used: dict[bytes, bytes] = {}
        self._read_anew = False

    def samples(self, path: Path, account: Account) -> list[Sample]:
        """Return the samples of a tar in their order; what is left out is added to the account.

        Raises UserError as `tars.samples` does.
        """
        shard, about = _stat(path)
        if shard is not None and (line := self._known.get(about)) is not None:
            try:
                found, left = _parsed(line, shard)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                pass  # damaged, or not ours
            else:
                self._used[about] = line
                account.join(left, path)
                return found
        left = Account()
        found = [*samples(path, left)]
        account.join(left, path)
        if shard is not None and self._store is not None and _settled(path, about):
            self._used[about], self._read_anew = _line(about, found, left), True
        return found

    def close(self) -> None:
        """Write the table, if a tar had to be read."""
        if self._store is None or self._table is None or not self._read_anew:
            return
        others = {key: line for key, line in self._known.items() if key not in self._used}
        rows = self._used | (others if len(others) <= 2 * self._count + OTHERS else {})
        keep(self._table, self._store.gigabytes, HEAD + b"".join(rows.values()), "writing lists of tars")


def _read(table: Path) -> dict[bytes, bytes]:
    with suppress(OSError):
        whole = stored(table)
        if whole.startswith(HEAD):
            lines = whole[len(HEAD) :].splitlines(keepends=True)
            return {line[: 2 * SIZE]: line for line in lines if line.endswith(b"\n")}
    return {}


def _stat(path: Path) -> tuple[Shard | None, bytes]:
    """A tar, and a digest of what tells that it is the same; None if it cannot be asked, which reading it reports."""
    try:
        stat = os.stat(path)
    except OSError:
        return None, b""
    about = f"{os.path.abspath(path)}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    digest = blake2b(about.encode(errors="surrogateescape"), digest_size=SIZE).hexdigest()
    return Shard.of(path, stat), digest.encode()


def _settled(path: Path, about: bytes) -> bool:
    """Whether a tar has not changed while or just before it was read."""
    with suppress(OSError):
        return os.stat(path).st_ctime < time.time() - UNSETTLED and _stat(path)[1] == about
    return False


def _line(about: bytes, found: Sequence[Sample], left: Account) -> bytes:
    rows = [
        [
            one.key,
            {ending: [file.inside, file.start, file.size] for ending, file in one.images.items()},
            {ending: text.decode("latin-1") for ending, text in one.labels.items()},
            one.bad,
        ]
        for one in found
    ]
    text = json.dumps([rows, left.counts, left.paths], separators=(",", ":")).encode()
    return about + b" " + _digest(text) + b" " + text + b"\n"


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=SIZE).hexdigest().encode()


def _parsed(line: bytes, shard: Shard) -> tuple[list[Sample], Account]:
    """What a line says of a tar. Raises an error, of several kinds, for a line that none of ours can be."""
    text = line[BEGINNING:-1]
    if line[2 * SIZE + 1 : BEGINNING - 1] != _digest(text) or len(text) > 4 * shard.size:
        raise ValueError("damaged")
    rows, counts, paths = json.loads(text)
    left = Account()
    for reason, count in counts.items():
        names = [str(name) for name in paths.get(reason, ())[:MOST]]
        if not (type(count) is int and count > 0 and len(names) == min(count, MOST)):
            raise ValueError("no count")
        left.counts[str(reason)], left.paths[str(reason)] = count, names
    return [_sample(row, shard) for row in rows], left


def _sample(row: Any, shard: Shard) -> Sample:
    key, images, labels, bad = row
    for ending, text in labels.items():
        if ending not in LABELS or len(text) > LONGEST:
            raise ValueError("no label")
    made = {ending: _member(ending, shard, *place) for ending, place in images.items()}
    return Sample(str(key), made, {ending: text.encode("latin-1") for ending, text in labels.items()}, str(bad))


def _member(ending: str, shard: Shard, inside: str, start: int, size: int) -> TarMember:
    apart = inside.startswith("/") or ".." in inside.split("/") or f".{ending.rpartition('.')[2]}" not in SUFFIXES
    if apart or type(start) is not int or type(size) is not int or not 0 <= start <= start + size <= shard.size:
        raise ValueError("no member")
    return TarMember(shard, inside, start, size)
