"""Image files decoded once for all epochs, runs and workers: `dlrun train dataset=image_folder dataset.cache=auto`.

The name of an entry is a hash of the shape and of every file's path, size and times (of change and of inode change,
which no copy preserves), since reading those costs a thousandth of reading the files: a folder that changed gets a new
entry. It holds raw pixels, which processes map into memory and share, one digest per image, and the reasons why
files could not be read. Nothing in it is trusted: all digests are recomputed and unreadable files are retried; if
anything differs, the entry is rebuilt. It may be deleted at any time.

Datasets that are in memory go through it if the workers of a sweep share one copy; such an entry is named by a hash of
its content, and compared with it bit by bit.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.images import InMemory, Streamed, Unreadable, mark, run_ahead
from dlrun.data.scan import parts

__all__ = ["Cache", "cache_at"]

T = TypeVar("T")
VERSION = 1
REPORTED = 2000  # images: fewer decode in a moment and take little disk, so no message
PART = 1 << 20  # bytes compared at a time
CHUNK = 256  # images per task that computes digests


@dataclass(frozen=True)
class Cache:
    """A folder of at most `gigabytes` (1e9 bytes) of decoded images; the least recently used are deleted first."""

    folder: Path
    gigabytes: float

    def decoded(self, images: Streamed, workers: int = 0) -> tuple[InMemory, dict[int, str]] | None:
        """Return all images, mapped from disk, and by number why some could not be read (their pixels are 0).

        None if they exceed the limit, or, with a one-line message, if the disk is full or not writable. Raises
        UserError for intact images of different sizes.
        """
        if not len(images) or images.nbytes > self.gigabytes * 1e9:
            return None
        opened, build = (
            partial(_opened, images=images, workers=workers),
            partial(_build, images=images, workers=workers),
        )
        return self._opened_or_built(_key(images), opened, build)

    def shared(self, pixels: Tensor) -> Tensor:
        """Return the same pixels mapped from disk, one copy for all processes of this machine that use them.

        Returns `pixels` itself if they exceed the limit, or, with a one-line message, if the disk is full.
        """
        array = pixels.numpy()
        if not array.size or array.nbytes > self.gigabytes * 1e9:
            return pixels
        array = np.ascontiguousarray(array)
        total = hashlib.sha256(f"{VERSION} {array.dtype} {array.shape}".encode())
        total.update(array.data.cast("B"))
        key, opened, build = total.hexdigest()[:32], partial(_mapped, array=array), partial(_store, array=array)
        found = self._opened_or_built(key, opened, build)
        return pixels if found is None else found

    def _opened_or_built(self, key: str, opened: Callable[[Path], T | None], build: Callable[[Path], None]) -> T | None:
        """Return what `opened` reads from an entry; `build` writes it if it is missing or wrong."""
        entry = self.folder / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(entry):
                found = opened(entry)
                if found is None:
                    build(entry)
                    self._make_room(entry)
                    found = opened(entry)
            return found
        except OSError as error:
            why = f"{error.filename or self.folder}: {error.strerror or error}"
            message = f"dlrun: decoded images are not cached ({why}); choose another folder with dataset.cache=FOLDER"
            print(message, file=sys.stderr)
            return None

    def _make_room(self, newest: Path) -> None:
        entries = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        sizes = {path: _size(path.with_suffix(".pixels")) for path in entries}
        for path in entries:
            if sum(sizes.values()) <= self.gigabytes * 1e9:
                return
            if path.stem != newest.name:
                path.unlink(missing_ok=True)  # processes that have the pixels mapped keep them
                path.with_suffix(".pixels").unlink(missing_ok=True)
                del sizes[path]


def cache_at(place: str, gigabytes: float) -> Cache | None:
    """Return the cache for a value of `dataset.cache`: auto ($DLRUN_CACHE or ~/.cache/dlrun), none, or a folder."""
    if place == "none":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = (os.environ.get("DLRUN_CACHE") or f"{home}/dlrun") if place == "auto" else place
    return Cache(Path(folder).expanduser(), gigabytes)


def _key(images: Streamed) -> str:
    total = hashlib.sha256(f"{VERSION} {images.shape} {images.recipe}".encode())
    for path in images.files:
        try:
            stat = path.stat()
            about = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError:
            about = (-1, 0, 0)  # decoding reports the file as unreadable
        total.update(f"\0{os.path.abspath(path)}\0{about}".encode(errors="surrogateescape"))
    return total.hexdigest()[:32]


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Lock an entry, so that only one of many processes that start together decodes."""
    with open(entry.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(entry: Path, images: Streamed, workers: int) -> None:
    temporary = entry.with_suffix(".tmp")  # overwrites the leftovers of a killed process: we hold the lock
    bad: dict[int, str] = {}
    digests: list[bytes] = []
    try:
        with open(temporary, "wb") as file:
            # written, not mapped: a full disk is an error here, in mapped memory it would be a signal
            for first, part in parts(images, keep=True, workers=workers):
                assert part.pixels is not None
                file.write(part.pixels.data.cast("B"))
                digests += mark(part.pixels).digests
                bad.update({first + row: reason for row, reason in part.bad.items()})
            file.flush()
            os.fsync(file.fileno())
        _enter(entry, temporary, {"key": entry.name, "digests": b"".join(digests).hex(), "bad": bad})
    finally:
        temporary.unlink(missing_ok=True)
    if len(images) > REPORTED:
        size = images.nbytes / 1e6
        message = f"cached {len(images):,} decoded images in {entry}.pixels ({size:,.0f} MB) for later runs"
        print(f"dlrun: {message}; you can delete it at any time", file=sys.stderr)


def _enter(entry: Path, temporary: Path, about: dict[str, Any]) -> None:
    """Publish complete pixels as an entry, which exists once its .json does."""
    entry.with_suffix(".json").unlink(missing_ok=True)
    os.replace(temporary, entry.with_suffix(".pixels"))
    temporary.write_text(json.dumps(about))
    os.replace(temporary, entry.with_suffix(".json"))


def _store(entry: Path, array: NDArray[Any]) -> None:
    temporary = entry.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(array.data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        _enter(entry, temporary, {"key": entry.name})
    finally:
        temporary.unlink(missing_ok=True)


def _mapped(entry: Path, array: NDArray[Any]) -> Tensor | None:
    """Return the pixels of an entry, or None if any bit differs from `array`."""
    path = entry.with_suffix(".pixels")
    if _size(path) != array.nbytes or not entry.with_suffix(".json").exists():
        return None
    pixels = np.memmap(path, dtype=array.dtype, mode="c", shape=array.shape)
    # as bytes, since nan does not equal itself; in parts, to need little memory
    ours, theirs = (each.reshape(-1).view(np.uint8) for each in (array, pixels))
    if not all(np.array_equal(ours[at : at + PART], theirs[at : at + PART]) for at in range(0, len(ours), PART)):
        return None
    os.utime(entry.with_suffix(".json"))
    return torch.from_numpy(pixels)


def _opened(entry: Path, images: Streamed, workers: int) -> tuple[InMemory, dict[int, str]] | None:
    """Return the content of an entry, or None if any bit differs from what decoding gave when it was built."""
    count, shape = len(images), images.shape
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        about = json.loads(entry.with_suffix(".json").read_bytes())
        digests, bad = bytes.fromhex(about["digests"]), {int(k): str(v) for k, v in about["bad"].items()}
        path = entry.with_suffix(".pixels")
        if about["key"] != entry.name or len(digests) != 16 * count or _size(path) != images.nbytes:
            return None
        # copy on write: torch wants writable memory, and pages that are never written stay shared
        pixels = np.memmap(path, dtype=images.dtype, mode="c", shape=(count, *shape))
        if not _intact(pixels, digests, workers) or any(_readable(images, number) for number in bad):
            return None
        os.utime(entry.with_suffix(".json"))
        return InMemory(torch.from_numpy(pixels), source=images), bad
    return None


def _intact(pixels: NDArray[Any], digests: bytes, workers: int) -> bool:
    def same(first: int) -> bool:
        found = mark(pixels[first : first + CHUNK]).digests
        return b"".join(found) == digests[16 * first : 16 * (first + CHUNK)]

    groups = ([partial(same, first)] for first in range(0, len(pixels), CHUNK))
    return all(all(group) for group in run_ahead(groups, workers))


def _readable(images: Streamed, number: int) -> bool:
    with suppress(Unreadable):
        images.decode(number)
        return True
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
