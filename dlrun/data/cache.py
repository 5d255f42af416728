"""Image files decoded once for all epochs, runs and workers: `dlrun train dataset=image_folder dataset.cache=auto`.

Every image is an entry of its own, in the pack (dlrun/data/packs.py) of its dataset, shape and `Decoding`, under the
digest of its file's content: other splits, seeds and limits find it again, and only new content is decoded. Nothing in
the cache is trusted: all digests of pixels are recomputed, what differs is decoded again, and unreadable files are
retried. It may be deleted at any time.

The bound counts all files that dlrun keeps here, those of earlier versions as well; nothing else in the folder is
counted or deleted, and no pack that a process uses.

Datasets that are in memory go through it if the workers of a sweep share one copy; such a pack is named by a hash of
its content, and compared with it bit by bit.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.cache_files import alone, locked, make_room
from dlrun.data.images import InMemory, Streamed
from dlrun.data.members import File
from dlrun.data.packs import SIZE, VERSION, Found, Pack, content_of, keys_of, top_of
from dlrun.data.scan import Scan, Sums, moments, parts, scan, sums_of
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["UNSETTLED", "Cache", "cache_at"]

REPORTED = 2000  # images: fewer decode in a moment and take little disk, so no message
PART = 1 << 20  # bytes compared at a time
STARTED = time.time()
_reported: set[str] = set()  # why images are not cached, and packs that were damaged
# seconds for which a changed file is not trusted: within one tick of its clock it may change twice
UNSETTLED = 1.0


@dataclass(frozen=True)
class Cache:
    """A folder of at most `gigabytes` (1e9 bytes) of decoded images; the least recently used are deleted first."""

    folder: Path
    gigabytes: float

    def decoded(self, images: Streamed, digests: NDArray[np.uint8], workers: int = 0) -> Scan | Streamed:
        """Return all images mapped from disk, with what a scan finds; pixels of those that are bad are arbitrary.

        `digests` (N, 16) are those of the files' contents. What cannot be stored is decoded at every use: then, with a
        one-line message, files are returned, whose pixels are cached in part. Raises UserError for intact images of
        different sizes, and for a file that changes while it is read.
        """
        if not len(images) or images.nbytes > self.gigabytes * 1e9:
            return images
        pack, keys, bad = _pack(self.folder, images), keys_of(digests), dict[int, str]()
        found = pack.find(keys)
        try:
            if not len(found.missing):
                found.verify(pack.data, workers)
            if len(found.missing):
                self.folder.mkdir(parents=True, exist_ok=True)
                with locked(self.folder / f"{pack.name}.lock", f"decoding images of {_place(images)}"):
                    found = pack.find(keys)
                    found.verify(pack.data, workers)
                    _report_damage(found, pack)
                    if len(found.missing):  # the process before may have decoded all
                        self._require_room(pack, found)
                        found, bad = _build(pack, images, keys, found, workers)
            with suppress(OSError):
                os.utime(pack.index)
        except OSError as error:
            return self._in_part(pack, images, keys, error, workers)
        held = InMemory(found.pixels, torch.from_numpy(found.rows.clip(0)), images, known=found.marks)
        if held.pixels.dtype == torch.uint8:  # whose sums are the same in any order
            return Scan(held, bad, *moments(found.sums, images.shape[2]))
        good = torch.from_numpy(np.flatnonzero(found.rows >= 0))
        return replace(scan(held.subset(good), keep=False, workers=workers), images=held, bad=bad)

    def _in_part(self, pack: Pack, images: Streamed, keys: Sequence[bytes], error: OSError, workers: int) -> Streamed:
        """The files, with the pixels of those that are cached, after an error kept others from being stored."""
        found = pack.find(keys)
        with suppress(OSError):
            found.verify(pack.data, workers)
        reason = f"{self.folder}: {error.strerror or error}"
        if reason not in _reported:  # the splits are read one after the other, and each meets it at another file
            _reported.add(reason)
            why = f"{error.filename or self.folder}: {error.strerror or error}"
            some = f"{len(found.missing):,} of {len(images):,} images are decoded without being cached ({why})"
            print(f"dlrun: {some}; choose another folder with dataset.cache=FOLDER", file=sys.stderr)
        return replace(images, cached=(found.pixels.numpy(), found.rows))

    def shared(self, pixels: Tensor) -> Tensor:
        """Return the same pixels mapped from disk, one copy for all processes of this machine that use them.

        Returns `pixels` itself if they exceed the limit, or, with a one-line message, if the disk is full.
        """
        array = pixels.numpy()
        if not array.size or array.nbytes > self.gigabytes * 1e9:
            return pixels
        array = np.ascontiguousarray(array)
        total = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        total.update(array.data.cast("B"))
        height, width, channels = array.shape[1:]
        pack = Pack(self.folder, total.hexdigest()[:32], (height, width, channels), array.dtype)
        if (mapped := _mapped(pack, array)) is not None:
            return mapped
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / f"{pack.name}.lock", "sharing a dataset"):
                mapped = _mapped(pack, array)
                if mapped is None and make_room(self.folder, self.gigabytes, array.nbytes, pack.name):
                    pack.remove()
                    _store(pack, array)
                    mapped = _mapped(pack, array)
            return pixels if mapped is None else mapped
        except OSError as error:
            why = f"{error.filename or self.folder}: {error.strerror or error}"
            print(f"dlrun: pixels are not shared between processes ({why})", file=sys.stderr)
            return pixels

    def _require_room(self, pack: Pack, found: Found) -> None:
        """Make room for the missing images; if rows of a pack that nobody uses are in the way, it is made anew.

        Raises OSError if there is none.
        """
        if make_room(self.folder, self.gigabytes, len(found.missing) * pack.row_bytes, pack.name):
            return
        found.forget()
        with alone(pack.data) as free:
            freed = pack.data.stat().st_size if free and pack.data.exists() else 0
            needed = len(found.rows) * pack.row_bytes - freed
            if not freed or not make_room(self.folder, self.gigabytes, needed, pack.name):
                full = f"running processes use what fills dataset.cache_gb={self.gigabytes:g}"
                raise OSError(None, full, str(self.folder))
            pack.remove()


def cache_at(place: str, gigabytes: float) -> Cache | None:
    """Return the cache for a value of `dataset.cache`: auto ($DLRUN_CACHE or ~/.cache/dlrun), none, or a folder."""
    if place == "none":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = (os.environ.get("DLRUN_CACHE") or f"{home}/dlrun") if place == "auto" else place
    return Cache(Path(folder).expanduser(), gigabytes)


def _pack(folder: Path, images: Streamed) -> Pack:
    """The pack of a dataset, shape and recipe."""
    about = f"{VERSION} {images.shape} {images.recipe} {_place(images)}"
    name = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:32]
    return Pack(folder, name, images.shape, images.dtype)


def _place(images: Streamed) -> str:
    """The folder of a dataset, whose splits share a pack."""
    return top_of(images.files) if images.root is None else os.path.abspath(images.root)


def _build(
    pack: Pack, images: Streamed, keys: Sequence[bytes], found: Found, workers: int
) -> tuple[Found, dict[int, str]]:
    """Decode the images that are missing; return all of them, and why some could not be read."""
    first = {keys[n]: n for n in reversed(found.missing.tolist())}  # copies are decoded once
    numbers = sorted(first.values())
    made: dict[bytes, tuple[bytes, bool]] = {}
    bad, sums = dict[bytes, str](), list[Sums]()
    with pack.writer() as out:
        for start, part in parts(images.subset(torch.tensor(numbers)), keep=True, workers=workers):
            assert part.pixels is not None
            assert part.marks is not None
            sums.append(part.sums)
            these = numbers[start : start + len(part.pixels)]
            bad.update({keys[these[row]]: reason for row, reason in part.bad.items()})
            good = [row for row in range(len(these)) if row not in part.bad]
            if not good:
                continue
            for row in good:
                _require_unchanged(images.files[these[row]], keys[these[row]])
            pixels, new = part.pixels[good] if part.bad else part.pixels, [keys[these[row]] for row in good]
            marks = part.marks.subset(torch.tensor(good))
            out.append(new, pixels, marks.digests)
            made.update(zip(new, zip(marks.digests, marks.constant.tolist(), strict=True), strict=True))
    whole = pack.find(keys)
    if any(keys[number] not in bad for number in whole.missing.tolist()):
        raise OSError(None, "was changed by another program", str(pack.data))
    for number, key in enumerate(keys):
        digest = made.get(key, (found.marks.digests[number], bool(found.marks.constant[number])))
        whole.marks.digests[number], whole.marks.constant[number] = digest
    copies = [n for n in found.missing.tolist() if keys[n] in made and first[keys[n]] != n]
    whole.sums = [*found.sums, *sums, sums_of(whole.pixels.numpy()[whole.rows[copies]])]
    if len(made) > REPORTED:
        size = len(made) * pack.row_bytes / 1e6
        message = f"cached {len(made):,} decoded images in {pack.data} ({size:,.0f} MB) for later runs"
        print(f"dlrun: {message}; you can delete it at any time", file=sys.stderr)
    return whole, {number: bad[keys[number]] for number in whole.missing.tolist()}


def _require_unchanged(path: File, key: bytes) -> None:
    """Raise UserError for a file whose content is no longer that of its digest, which was computed after STARTED."""
    with suppress(OSError):
        if path.stat().st_ctime >= STARTED - UNSETTLED and content_of(path) != key:
            what = "changed while it was being read"
            raise UserError(f"{path}: {what}; start again when nothing writes to this folder", Exit.FAILED)


def _report_damage(found: Found, pack: Pack) -> None:
    if found.damaged and str(pack.data) not in _reported:
        _reported.add(str(pack.data))
        print(f"dlrun: {pack.data}: damaged or cut short; images missing there are decoded again", file=sys.stderr)


def _store(pack: Pack, array: NDArray[Any]) -> None:
    with pack.writer() as out:
        for start, keys in _numbered(array):
            out.append(keys, array[start : start + len(keys)], [bytes(SIZE)] * len(keys))


def _numbered(array: NDArray[Any]) -> Iterator[tuple[int, list[bytes]]]:
    """Parts of an array, as the number of the first image and a key for each."""
    size = max(1, PART // max(1, array[0].nbytes))
    for start in range(0, len(array), size):
        yield start, [number.to_bytes(SIZE, "big") for number in range(start, min(len(array), start + size))]


def _mapped(pack: Pack, array: NDArray[Any]) -> Tensor | None:
    """Return the images of a pack, or None if any bit differs from `array`."""
    found = pack.find([key for _, keys in _numbered(array) for key in keys])
    if not np.array_equal(found.rows, np.arange(len(array))):
        return None
    # as bytes, since nan does not equal itself; in parts, to need little memory
    ours, theirs = (each.reshape(-1).view(np.uint8) for each in (array, found.pixels.numpy()))
    if not all(np.array_equal(ours[at : at + PART], theirs[at : at + PART]) for at in range(0, len(ours), PART)):
        return None
    with suppress(OSError):
        os.utime(pack.index)
    return found.pixels
