"""The content of every image, as a digest of 128 bits: folds follow it, and later commands compare with it (D4).

`dlrun train dataset=image_folder dataset.root=photos dataset.split=content`. A file's digest is that of its bytes, an
array's image that of its pixels. Digests of files are kept beside the decoded images (dlrun/data/cache.py), in a table
per folder, and trusted as long as path, size, both times and inode of a file are the same: a later start reads no file
again. The bound of the cache counts the tables.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.cache import UNSETTLED, Cache
from dlrun.data.cache_files import keep
from dlrun.data.images import PASSING, Images, Streamed, run_ahead, threads_for
from dlrun.data.members import File
from dlrun.data.packs import MARK, SIZE, content_of, keys_of, stored, top_of
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["SIZE", "Digests", "contents", "joined", "keys_of", "overall", "weighted"]

Digests = NDArray[np.uint8]  # (N, SIZE)
HEAD = MARK + b"hashes 2\n"
FILES = 64  # per task: enough to make the hand-over between threads cheap
OTHERS = 100_000  # rows of other files that a table may keep


def contents(images: Images, ids: Sequence[str], store: Cache | None = None, workers: int = 0) -> Digests:
    """Return the digests of all images (N, 16), in their order; one that cannot be read has a digest of its id."""
    if not isinstance(images, Streamed):
        marks = images.marks
        assert marks is not None  # only files lack them
        return joined(marks.digests)
    stats = [_stat(path) for path in images.files]
    table = None if store is None or not len(images) else _table(store, images.files)
    known = {} if table is None else _read(table)
    found = [known.get(about) for about in stats]
    missing = [number for number, digest in enumerate(found) if digest is None]
    parts = [missing[start : start + FILES] for start in range(0, len(missing), FILES)]
    groups = ([partial(_hashed, images.files, ids, part)] for part in parts)
    for part, (digests,) in zip(parts, run_ahead(groups, workers or threads_for(images)), strict=True):
        for number, digest in zip(part, digests, strict=True):
            found[number] = digest
    if table is not None and missing and store is not None:
        _keep(table, store, known, images.files, stats, found)
    return joined(found)


def overall(classes: Sequence[str], splits: Sequence[tuple[str, Digests, NDArray[np.int64]]]) -> str:
    """Return one SHA-256 over classes, folds, and every image with its label; order and names of images are left out.

    `splits` have a name, digests (N, 16) and labels (N,).
    """
    total = sha256("\0".join(classes).encode(errors="surrogateescape"))
    for name, digests, labels in splits:
        total.update(f"\0{name} {len(labels)}\0".encode())
        rows = np.concatenate([digests, labels.astype(">i8")[:, None].view(np.uint8).reshape(-1, 8)], axis=1)
        total.update(np.sort(np.ascontiguousarray(rows).view(f"S{SIZE + 8}").reshape(-1)).tobytes())
    return total.hexdigest()


def weighted(digests: Digests, weights: Tensor | None) -> Digests:
    """Return digests (N, 16) of images with their weights (N,); the same without weights."""
    if weights is None:
        return digests
    pairs = zip(keys_of(digests), weights.numpy().astype(">f4"), strict=True)
    return joined([blake2b(key + weight.tobytes(), digest_size=SIZE).digest() for key, weight in pairs])


def joined(digests: Sequence[bytes | None]) -> Digests:
    """Return digests as rows (N, 16); 0 for a missing one."""
    joined = b"".join(digest or bytes(SIZE) for digest in digests)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, SIZE)


def _hashed(files: Sequence[File], ids: Sequence[str], numbers: Sequence[int]) -> list[bytes]:
    return [_file(files[number], ids[number]) for number in numbers]


def _file(path: File, name: str) -> bytes:
    try:
        return content_of(path)
    except OSError as error:
        if error.errno in PASSING:
            raise UserError(f"{path}: cannot be read now ({error.strerror}); try again", Exit.FAILED) from error
        # decoding reports it; its place must not depend on how it fails
        return blake2b(f"unreadable {name}".encode(errors="surrogateescape"), digest_size=SIZE).digest()


def _stat(path: File) -> bytes:
    """A digest of what tells that a file is the same; empty if it cannot be asked."""
    try:
        stat = path.stat()
    except OSError:
        return b""
    about = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return blake2b(f"{os.path.abspath(path)}\0{about}".encode(errors="surrogateescape"), digest_size=SIZE).digest()


def _table(store: Cache, files: Sequence[File]) -> Path:
    """The table of the folder that contains all of these files."""
    top = top_of(files).encode(errors="surrogateescape")
    return store.folder / f"{sha256(HEAD + top).hexdigest()[:32]}.hashes"


def _read(table: Path) -> dict[bytes, bytes]:
    with suppress(OSError, ValueError):
        whole = stored(table)
        if whole.startswith(HEAD) and (len(whole) - len(HEAD)) % (2 * SIZE) == 0:
            pairs = keys_of(np.frombuffer(whole, dtype=np.uint8, offset=len(HEAD)))
            return dict(zip(pairs[::2], pairs[1::2], strict=True))
    return {}


def _keep(
    table: Path,
    store: Cache,
    known: dict[bytes, bytes],
    files: Sequence[File],
    stats: Sequence[bytes],
    found: Sequence[bytes | None],
) -> None:
    """Write the table again, with the rows of other files as long as they are not many more than these."""
    new = dict(_settled(files, stats, found, known))
    rows = known | new if len(known) <= 2 * len(files) + OTHERS else new
    whole = HEAD + b"".join(about + digest for about, digest in rows.items())
    if rows:
        keep(table, store.gigabytes, whole, "writing digests")


def _settled(
    files: Sequence[File], stats: Sequence[bytes], found: Sequence[bytes | None], known: dict[bytes, bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of files that have not changed while or just before they were read."""
    now = time.time()
    for path, about, digest in zip(files, stats, found, strict=True):
        if not about or digest is None:
            continue
        if about in known:
            yield about, digest
            continue
        with suppress(OSError):
            if path.stat().st_ctime < now - UNSETTLED and _stat(path) == about:
                yield about, digest
