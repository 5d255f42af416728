"""A pack: decoded images of one dataset in one file, to which new ones are appended (`dlrun train dataset.cache=auto`).

`<name>.pack` is a header and rows of raw pixels, which processes map into memory and share; `<name>.index` a header and
one record per image: a key (the digest of its file's content), the digest of its pixels, its row. The record is written
after the row, and neither is written again: a killed build leaves at most rows without a record. A row counts only if
it lies inside the file and its pixels have the digest of its record.

A process holds a shared lock on a pack while it has it mapped. Whoever deletes a pack holds an exclusive one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.images import Marks, mark, run_ahead
from dlrun.data.mapped import register
from dlrun.data.members import File, Member
from dlrun.data.scan import Sums, sums_of

__all__ = [
    "MARK",
    "SIZE",
    "VERSION",
    "Found",
    "Pack",
    "Writer",
    "content_of",
    "keys_of",
    "stored",
    "top_of",
    "unlinked",
]

SIZE = 16  # bytes of a digest
MARK = b"dlrun "  # the first bytes of all files of a cache
VERSION = 2  # 1: one entry per set of files
HEAD = 4096  # bytes before the first row
INDEX = 1 << 30  # bytes of an index: the records of 26 million images
CHUNK = 256  # images per task that computes digests
FIRST, BLOCK = 1 << 16, 1 << 20  # bytes read at a time: most files end in the first
_maps: WeakValueDictionary[tuple[int, int], np.memmap[Any, Any]] = WeakValueDictionary()  # by device and inode
RECORD = np.dtype([("key", f"V{SIZE}"), ("pixels", f"V{SIZE}"), ("row", "<u8")])


def content_of(path: File) -> bytes:
    """Return the digest of a file's bytes. Raises OSError."""
    if isinstance(path, Member):
        return blake2b(path.read_bytes(), digest_size=SIZE).digest()
    total = blake2b(digest_size=SIZE)
    with open(path, "rb", buffering=0) as file:
        total.update(chunk := file.read(FIRST))
        while len(chunk) >= FIRST:
            total.update(chunk := file.read(BLOCK))
    return total.digest()


def unlinked(path: str, flags: int) -> int:
    """Open a regular file of a cache; no link is followed. Raises OSError, for a link, a pipe or a device too."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a file", path)
    return handle


def stored(path: Path) -> bytes:
    """Return the content of a file of a cache, opened by `unlinked`; nothing if it is too large for one."""
    with open(path, "rb", opener=unlinked) as file:
        return file.read() if os.fstat(file.fileno()).st_size <= INDEX else b""


def keys_of(digests: NDArray[np.uint8]) -> list[bytes]:
    """Return the rows of digests (N, SIZE) as keys."""
    whole = np.ascontiguousarray(digests).tobytes()
    return [whole[start : start + SIZE] for start in range(0, len(whole), SIZE)]


def top_of(files: Sequence[File]) -> str:
    """Return the folder that contains all of these files."""
    # of sorted paths the first and the last have no more in common than all
    return os.path.commonpath((os.path.abspath(min(files)), os.path.abspath(max(files))))


@dataclass
class Found:
    """What a pack has of the images asked for: `pixels` (M, H, W, C), and by image its row there, -1 if missing.

    `marks` and `sums` are those of the rows found intact, once `verify` has run; `damaged` is the number of the others.
    """

    pixels: Tensor
    rows: NDArray[np.int64]
    digests: NDArray[np.void]  # of the records
    marks: Marks
    damaged: int = 0
    sums: list[Sums] = field(default_factory=list)

    @property
    def missing(self) -> NDArray[np.int64]:
        """The numbers of the images without a row."""
        return np.flatnonzero(self.rows < 0)

    def forget(self) -> None:
        """Unmap the pack, and so unlock it."""
        self.pixels, self.rows = self.pixels.new_empty((0, *self.pixels.shape[1:])), np.full(len(self.rows), -1)
        self.sums = []

    def verify(self, data: Path, workers: int) -> None:
        """Compare the pixels of all rows with their digests, and forget rows that differ.

        They are read from the file `data`, not from the mapping, whose pages would count as memory of this process.
        """
        there = np.flatnonzero(self.rows >= 0)
        there = there[np.argsort(self.rows[there], kind="stable")]  # the disk is read in order
        parts = [there[start : start + CHUNK] for start in range(0, len(there), CHUNK)]
        if not parts:
            return
        with open(data, "rb", buffering=0, opener=unlinked) as file:
            groups = ([partial(self._looked_at, file.fileno(), part)] for part in parts)
            for part, ((digests, constant, same, sums),) in zip(parts, run_ahead(groups, workers), strict=True):
                for number, digest in zip(part.tolist(), digests, strict=True):
                    self.marks.digests[number] = digest
                self.marks.constant[part] = constant
                self.rows[part[~same]] = -1
                self.damaged += int((~same).sum())
                self.sums.append(sums)

    def _looked_at(self, file: int, part: NDArray[np.int64]) -> tuple[list[bytes], NDArray[np.bool_], Any, Sums]:
        pixels = _pixels(file, self.rows[part], self.pixels)
        marks = mark(pixels)
        same = np.frombuffer(b"".join(marks.digests), dtype=f"V{SIZE}") == self.digests[part]
        counted = pixels if same.all() else pixels[same]
        return marks.digests, marks.constant, same, sums_of(counted if counted.dtype == np.uint8 else counted[:0])


@dataclass(frozen=True)
class Pack:
    """The pack `name` of a folder, for images of a shape (H, W, C) and type."""

    folder: Path
    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def data(self) -> Path:
        """The file of the pixels."""
        return self.folder / f"{self.name}.pack"

    @property
    def index(self) -> Path:
        """The file of the records."""
        return self.folder / f"{self.name}.index"

    @property
    def row_bytes(self) -> int:
        """The bytes of one image."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def find(self, keys: Sequence[bytes]) -> Found:
        """Return what the pack has of the images with these keys; nothing if it is not intact. Nothing is verified."""
        count = len(keys)
        marks = Marks([b""] * count, np.zeros(count, dtype=bool))
        nothing = np.empty((0, *self.shape), self.dtype)
        found = Found(torch.from_numpy(nothing), np.full(count, -1), np.zeros(count, f"V{SIZE}"), marks)
        with suppress(OSError), open(self.data, "rb", opener=unlinked) as file:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_SH)
            stat = os.fstat(file.fileno())
            if not stat.st_nlink:
                return found  # deleted before it was locked
            records = self._records(file.read(HEAD))
            if records is None or not len(records):
                found.damaged = count if records is None and stat.st_size > HEAD else 0
                return found
            place = {key: n for n, key in enumerate(records["key"].tolist())}  # the last of each
            number = np.array([place.get(key, -1) for key in keys], dtype=np.int64)
            rows = np.where(number < 0, -1, records["row"][number].astype(np.int64))
            beyond = rows >= (stat.st_size - HEAD) // self.row_bytes
            found.damaged, rows[beyond] = int(beyond.sum()), -1
            found.rows, found.digests = rows, records["pixels"][number]
            if rows.max(initial=-1) >= 0:
                found.pixels = self._mapped(file, stat)
        return found

    def _mapped(self, file: IO[bytes], stat: os.stat_result) -> Tensor:
        """All rows of the file; mapped once, since each mapping counts as memory."""
        key, rows = (stat.st_dev, stat.st_ino), (stat.st_size - HEAD) // self.row_bytes
        known = _maps.get(key)
        if known is None or len(known) < rows:
            # copy on write: torch wants writable memory, and pages that are never written stay shared. The mapping has
            # a duplicate of the file's descriptor, and with it the lock
            known = np.memmap(file, dtype=self.dtype, mode="c", offset=HEAD, shape=(rows, *self.shape))
            _maps[key] = known
            register(known)
        return torch.from_numpy(known)

    def _records(self, head: bytes) -> NDArray[np.void] | None:
        """The records of the index that belongs to the pack with this header; None if there is none."""
        own, whole = self._generation(head), b""
        with suppress(FileNotFoundError):
            whole = stored(self.index)
        if own is None or len(head) < HEAD or whole[: len(own)] != own:
            return None
        count = (len(whole) - len(own)) // RECORD.itemsize  # the last may be a part, of a killed process
        return np.frombuffer(whole, dtype=RECORD, count=count, offset=len(own))

    def _generation(self, head: bytes) -> bytes | None:
        """The first bytes of an index for the pack with this header; None if that is no intact header."""
        with suppress(ValueError, KeyError, TypeError):
            about = json.loads(head.removeprefix(MARK + b"pack ").rstrip(b"\0"))
            if [about["version"], about["shape"], about["dtype"]] == [VERSION, list(self.shape), self.dtype.str]:
                return MARK + b"index " + bytes.fromhex(about["generation"])
        return None

    def writer(self) -> Writer:
        """Open the pack to append images; it is made anew if it is not intact. Raises OSError."""
        with suppress(FileNotFoundError), open(self.data, "rb", opener=unlinked) as file:
            head = file.read(HEAD)
            if self._records(head) is not None:
                return Writer(self, len(self._generation(head) or b""))
        self.remove()
        about = {"version": VERSION, "shape": self.shape, "dtype": self.dtype.str, "generation": secrets.token_hex(16)}
        head = MARK + b"pack " + json.dumps(about).encode()
        own = self._generation(head)
        assert own is not None
        with open(self.data, "xb") as file, open(self.index, "xb") as index:
            file.write(head.ljust(HEAD, b"\0"))
            index.write(own)
        return Writer(self, len(own))

    def remove(self) -> None:
        """Delete the files; processes that have the pixels mapped keep them."""
        self.data.unlink(missing_ok=True)
        self.index.unlink(missing_ok=True)


class Writer:
    """Appends to a pack, for the one process that holds the lock of its name; a context manager."""

    def __init__(self, pack: Pack, start: int) -> None:
        self._pack = pack
        self._data: IO[bytes] = open(pack.data, "r+b", buffering=0, opener=unlinked)  # noqa: SIM115
        self._index: IO[bytes] = open(pack.index, "r+b", buffering=0, opener=unlinked)  # noqa: SIM115
        with suppress(OSError):
            fcntl.flock(self._data, fcntl.LOCK_SH)
        # a process may have any row mapped that lies inside the file, so none is written again
        self._row = -(-(self._data.seek(0, os.SEEK_END) - HEAD) // pack.row_bytes)
        whole = self._index.seek(0, os.SEEK_END) - start
        self._index.truncate(self._index.seek(start + whole // RECORD.itemsize * RECORD.itemsize))

    def append(self, keys: Sequence[bytes], pixels: NDArray[Any], digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Write images (N, H, W, C) and return their rows; a later process finds them from now on. Raises OSError."""
        rows = np.arange(self._row, self._row + len(keys))
        self._data.seek(HEAD + self._row * self._pack.row_bytes)
        # written, not mapped: a full disk is an error here, in mapped memory it would be a signal
        _write(self._data, np.ascontiguousarray(pixels).data.cast("B"))
        end = self._index.tell()
        try:
            _write(self._index, np.array([*zip(keys, digests, rows, strict=True)], dtype=RECORD).tobytes())
        except BaseException:
            self._index.truncate(end)
            raise
        self._row += len(keys)
        return rows

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._data, self._index:
            if kind is None:
                os.fsync(self._data.fileno())
            else:
                with suppress(OSError):
                    self._data.truncate(HEAD + self._row * self._pack.row_bytes)


def _pixels(file: int, rows: NDArray[np.int64], like: Tensor) -> NDArray[Any]:
    """Rows of a pack (N, H, W, C), in ascending order; what the file lacks is 0."""
    out = np.zeros((len(rows), *like.shape[1:]), like.numpy().dtype)
    size = out[0].nbytes
    ends = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]  # of neighbours
    for start, end in pairwise(ends):
        os.preadv(file, [out[start:end].data.cast("B")], HEAD + int(rows[start]) * size)
    return out


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]
