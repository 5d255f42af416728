"""Features of images, computed once for all epochs, runs and workers (`dlrun train model.freeze=backbone`, M3).

They lie in the cache of decoded images (dlrun/data/cache.py), in packs of their own: one row of float32 per image,
under a key of its content. The name of a pack is a hash of all else that determines them, such as weights and
preprocessing. As for images, nothing in the cache is trusted: digests of rows are recomputed, and a few rows are
computed again and compared. The same bound holds, and what was not used for the longest time leaves first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.data.cache import Cache
from dlrun.data.cache_files import locked, make_room
from dlrun.data.images import InMemory, mark
from dlrun.data.packs import Found, Pack

__all__ = ["Compute", "features_of"]

# yields numbers of images and their features (M, F), float32, at least for the images asked for
Compute = Callable[[NDArray[np.int64]], Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]]
COMPARED = 8  # images whose cached features are computed again: code of a model may have changed
_reported: set[str] = set()


def features_of(
    cache: Cache | None,
    about: Mapping[str, Any],
    keys: Sequence[bytes] | None,
    shape: tuple[int, int],
    compute: Compute,
) -> InMemory:
    """Return the features of images, of a shape (N, F), as images (N, 1, 1, F), from the cache if it has them.

    `about` is everything that determines them besides the content of an image, whose key is in `keys` (16 bytes each).
    Without cache or keys, and, with a one-line message, if the cache cannot store them, they are held in memory.
    """
    count, size = shape
    if cache is None or not keys or count * size * 4 > cache.gigabytes * 1e9:
        return _held(shape, compute)
    name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]
    pack = Pack(cache.folder, name, (1, 1, size), np.dtype(np.float32))
    try:
        found = _intact(pack, keys, compute)
        if len(found.missing):
            cache.folder.mkdir(parents=True, exist_ok=True)
            with locked(cache.folder / f"{name}.lock", "computing features"):
                found = _intact(pack, keys, compute)  # the process before may have computed all
                if len(found.missing):
                    found = _completed(cache, pack, keys, found, compute)
        with suppress(OSError):
            os.utime(pack.index)
        return InMemory(found.pixels, torch.from_numpy(found.rows))
    except OSError as error:
        why = f"{error.filename or cache.folder}: {error.strerror or error}"
        if why not in _reported:
            _reported.add(why)
            print(f"dlrun: features are computed without being cached ({why})", file=sys.stderr)
    return _held(shape, compute)


def _held(shape: tuple[int, int], compute: Compute) -> InMemory:
    out = np.empty(shape, np.float32)
    for numbers, values in compute(np.arange(len(out))):
        out[numbers] = values
    return InMemory(torch.from_numpy(out[:, None, None]))


def _intact(pack: Pack, keys: Sequence[bytes], compute: Compute) -> Found:
    """What a pack has of these images; nothing if features computed now differ from those that it has."""
    found = pack.find(keys)
    found.verify(pack.data, 1)
    if found.damaged and pack.name not in _reported:
        _reported.add(pack.name)
        print(f"dlrun: {pack.data}: damaged or cut short; features missing there are computed again", file=sys.stderr)
    there = np.flatnonzero(found.rows >= 0)
    some = there[np.linspace(0, len(there) - 1, min(COMPARED, len(there))).astype(int)]
    wanted = set(some.tolist())
    for numbers, values in islice(compute(some), 1) if len(some) else ():  # the first batch with one of them
        for number, value in zip(numbers.tolist(), values, strict=True):
            if number in wanted and not _alike(found.pixels.numpy()[found.rows[number], 0, 0], value):
                found.forget()
                pack.remove()
                return pack.find(keys)
    return found


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether features are the same up to rounding, which another batch or number of threads may change."""
    # two batch sizes in bfloat16 on an accelerator: kernels that add up in another order round layer after layer
    return bool(np.abs(one - other).max() <= 3e-2 * np.abs(other).max() + 1e-12)


def _completed(cache: Cache, pack: Pack, keys: Sequence[bytes], found: Found, compute: Compute) -> Found:
    """Compute what a pack lacks, and append it as it comes. Raises OSError."""
    if not make_room(cache.folder, cache.gigabytes, len(found.missing) * pack.row_bytes, pack.name):
        raise OSError(None, f"running processes use what fills dataset.cache_gb={cache.gigabytes:g}", str(cache.folder))
    missing = {keys[number] for number in found.missing.tolist()}
    with pack.writer() as out:
        for numbers, values in compute(found.missing):
            rows = [row for row, number in enumerate(numbers.tolist()) if keys[number] in missing]
            if rows:
                new = [keys[numbers[row]] for row in rows]
                pixels = np.ascontiguousarray(values[rows])[:, None, None]
                out.append(new, pixels, mark(pixels).digests)
                missing.difference_update(new)
    whole = pack.find(keys)
    if len(whole.missing):
        raise OSError(None, "was changed by another program", str(pack.data))
    return whole
