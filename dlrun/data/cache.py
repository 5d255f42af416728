"""Image files decoded once for all epochs, runs and workers: `dlrun train dataset=image_folder dataset.cache=auto`.

An entry is named by a hash of every file's path, size and times (of change and of inode change, which no copy can
keep) and of the shape, since reading those costs a thousandth of reading the files: a folder that changed has
another entry. It holds raw uint8 pixels, which processes map into memory and share, and beside them a digest of each
image and the reasons of those that cannot be read. Nothing in it is trusted: all digests are computed anew, and files
that could not be read are tried again, or the entry is built again. It may be deleted at any time.

Pixels that a dataset has in memory go through it where the workers of a sweep are to hold them once; such an entry is
named by a hash of what it holds, and held against that to the last bit.
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
TOLD = 2000  # images: fewer are decoded in a moment and take no disk worth a word
PART = 1 << 20  # bytes that are compared at a time
CHUNK = 256  # images whose digests one task computes


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images that keeps to `gigabytes` (1e9 bytes), the longest unused leaving first."""

    folder: Path
    gigabytes: float

    def decoded(self, images: Streamed, workers: int = 0) -> tuple[InMemory, dict[int, str]] | None:
        """All images, mapped from the disk, and by number why some could not be read (their pixels are 0).

        None where they are more than the bound, and, said in one line, where the disk is full or may not be written.
        Raises UserError for whole images of different sizes.
        """
        if not len(images) or len(images) * int(np.prod(images.shape)) > self.gigabytes * 1e9:
            return None
        opened, build = (
            partial(_opened, images=images, workers=workers),
            partial(_build, images=images, workers=workers),
        )
        return self._kept(_key(images), opened, build)

    def shared(self, pixels: Tensor) -> Tensor:
        """The same pixels mapped from the disk, where all processes of this machine that ask for them hold them once.

        As they are where they are more than the bound, and, said in one line, where the disk is full.
        """
        array = pixels.numpy()
        if not array.size or array.nbytes > self.gigabytes * 1e9:
            return pixels
        array = np.ascontiguousarray(array)
        total = hashlib.sha256(f"{VERSION} {array.dtype} {array.shape}".encode())
        total.update(array.data.cast("B"))
        found = self._kept(total.hexdigest()[:32], partial(_mapped, array=array), partial(_store, array=array))
        return pixels if found is None else found

    def _kept(self, key: str, opened: Callable[[Path], T | None], build: Callable[[Path], None]) -> T | None:
        """What `opened` makes of an entry, which `build` writes where there is none."""
        entry = self.folder / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(entry):
                found = opened(entry)
                if found is None:
                    build(entry)
                    self._make_room(entry)
                    found = opened(entry)
            return found
        except OSError as error:
            why = f"{error.filename or self.folder}: {error.strerror or error}"
            print(f"dlrun: no cache of decoded images ({why}); dataset.cache= names another folder", file=sys.stderr)
            return None

    def _make_room(self, kept: Path) -> None:
        entries = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        sizes = {path: _size(path.with_suffix(".pixels")) for path in entries}
        for path in entries:
            if sum(sizes.values()) <= self.gigabytes * 1e9:
                return
            if path.stem != kept.name:
                path.unlink(missing_ok=True)  # who has the pixels mapped keeps them until it ends
                path.with_suffix(".pixels").unlink(missing_ok=True)
                del sizes[path]


def cache_at(place: str, gigabytes: float) -> Cache | None:
    """The cache that `dataset.cache` means: auto ($DLRUN_CACHE or ~/.cache/dlrun), none, or a folder."""
    if place == "none":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = (os.environ.get("DLRUN_CACHE") or f"{home}/dlrun") if place == "auto" else place
    return Cache(Path(folder).expanduser(), gigabytes)


def _key(images: Streamed) -> str:
    total = hashlib.sha256(f"{VERSION} {images.shape} {images.resize}".encode())
    for path in images.files:
        try:
            stat = path.stat()
            about = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError:
            about = (-1, 0, 0)  # told as a file that cannot be read
        total.update(f"\0{os.path.abspath(path)}\0{about}".encode(errors="surrogateescape"))
    return total.hexdigest()[:32]


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """One process at a time looks at an entry, so that of many that start together one decodes."""
    with open(entry.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(entry: Path, images: Streamed, workers: int) -> None:
    temporary = entry.with_suffix(".tmp")  # what a killed process left is written over: the entry is ours alone
    bad: dict[int, str] = {}
    digests: list[bytes] = []
    try:
        with open(temporary, "wb") as file:
            # a full disk must be an error here: in mapped memory it would be a signal
            for first, part in parts(images, keep=True, workers=workers):
                assert part.pixels is not None
                file.write(part.pixels.data)
                digests += mark(part.pixels).digests
                bad.update({first + row: reason for row, reason in part.bad.items()})
            file.flush()
            os.fsync(file.fileno())
        _enter(entry, temporary, {"key": entry.name, "digests": b"".join(digests).hex(), "bad": bad})
    finally:
        temporary.unlink(missing_ok=True)
    if len(images) > TOLD:
        size = len(images) * int(np.prod(images.shape)) / 1e6
        said = f"decoded {len(images):,} images into {entry}.pixels ({size:,.0f} MB, to delete whenever you like)"
        print(f"dlrun: {said}; later runs take them from there", file=sys.stderr)


def _enter(entry: Path, temporary: Path, about: dict[str, Any]) -> None:
    """Let whole pixels become an entry, which is one once its .json is there."""
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
    """The pixels of an entry, or None where they are not the same to the last bit."""
    path = entry.with_suffix(".pixels")
    if _size(path) != array.nbytes or not entry.with_suffix(".json").exists():
        return None
    pixels = np.memmap(path, dtype=array.dtype, mode="c", shape=array.shape)
    # as bytes, since nan is not itself; in parts, which need no memory worth a word
    ours, theirs = (each.reshape(-1).view(np.uint8) for each in (array, pixels))
    if not all(np.array_equal(ours[at : at + PART], theirs[at : at + PART]) for at in range(0, len(ours), PART)):
        return None
    os.utime(entry.with_suffix(".json"))
    return torch.from_numpy(pixels)


def _opened(entry: Path, images: Streamed, workers: int) -> tuple[InMemory, dict[int, str]] | None:
    """What an entry holds, or None if that is not to the last bit what decoding gave when it was built."""
    count, shape = len(images), images.shape
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        about = json.loads(entry.with_suffix(".json").read_bytes())
        digests, bad = bytes.fromhex(about["digests"]), {int(k): str(v) for k, v in about["bad"].items()}
        path = entry.with_suffix(".pixels")
        if about["key"] != entry.name or len(digests) != 16 * count or _size(path) != count * int(np.prod(shape)):
            return None
        # copy on write: torch wants memory that it could write to, and pages nobody writes to stay shared
        pixels = np.memmap(path, dtype=np.uint8, mode="c", shape=(count, *shape))
        if not _intact(pixels, digests, workers) or any(_readable(images, number) for number in bad):
            return None
        os.utime(entry.with_suffix(".json"))
        return InMemory(torch.from_numpy(pixels)), bad
    return None


def _intact(pixels: NDArray[np.uint8], digests: bytes, workers: int) -> bool:
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
