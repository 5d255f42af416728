"""Sources of pixels: one tensor in memory, or image files decoded on demand by threads.

Reached by every verb that reads data, `dlrun train dataset=image_folder dataset.root=photos`. A source has
`shape` (H, W, C), a length, `take(index)` and `subset(index)`; images are (N, H, W, C), uint8 or float32,
because a permuted NHWC batch already has the channels-last strides that convolutions prefer. Pixels of 16 bits are held
as uint16 and taken as float32.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.cores import cores
from dlrun.data.decoding import Decoding, OtherSize, decoded
from dlrun.data.fitting import fitted
from dlrun.data.mapped import require_whole
from dlrun.data.members import File
from dlrun.data.resizing import DECODER, resized
from dlrun.data.stand_ins import StandIns
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["PASSING", "Images", "InMemory", "Marks", "Streamed", "Unreadable", "files_of", "mark", "read"]
__all__ += ["decoders", "run_ahead", "threads_for"]

SMALL = 5_000  # mean bytes of files
AHEAD = 2  # batches decoded while the current one is in use
# errors of the system, not of the file: reaching a limit must not drop an image
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
T = TypeVar("T")


class Unreadable(UserError):
    """A file that is not an intact image; `reason` gives the cause without the path."""

    def __init__(self, path: File, reason: str) -> None:
        super().__init__(f"{path}: {reason}; repair or remove it, or omit it with dataset.on_bad=drop")
        self.reason = reason


@dataclass(frozen=True)
class Marks:
    """A 128-bit digest of the pixels of each image (D2), and whether all its pixels are the same (D1)."""

    digests: list[bytes]
    constant: NDArray[np.bool_]

    def subset(self, index: Tensor) -> Marks:
        """The marks of the images numbered by an int64 index."""
        return Marks([self.digests[number] for number in index.tolist()], self.constant[index.numpy()])


def mark(pixels: NDArray[Any]) -> Marks:
    """Return the marks of images (N, H, W, C), as the network gets them: files are already resized."""
    # C-contiguous, since the digest reads memory in order
    digests = [blake2b(image, digest_size=16).digest() for image in np.ascontiguousarray(pixels)]
    height, width, channels = pixels.shape[1:]
    flat, middle = pixels.reshape(len(pixels), height * width, channels), height * width // 2
    constant = ((flat[:, 0] == flat[:, -1]) & (flat[:, 0] == flat[:, middle])).all(1)
    for number in np.flatnonzero(constant):  # only these few need a full comparison
        constant[number] = (flat[number] == flat[number, 0]).all()
    return Marks(digests, constant)


class Images(Protocol):
    """A numbered set of images that all have one shape (H, W, C)."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """The images numbered by an int64 index (B,), as a new tensor (B, H, W, C)."""

    def subset(self, index: Tensor) -> Images:
        """The images numbered by an int64 index, renumbered from 0; no pixel is copied."""

    @property
    def marks(self) -> Marks | None:
        """The marks of all images; None if computing them would decode files again."""


@dataclass(frozen=True)
class InMemory:
    """Images in one uint8, uint16 or float32 tensor (N, H, W, C); `rows` selects those of this set.

    `source`: the files they were decoded from, if any, and `known` their marks, numbered as the images are. `mapped`:
    they lie in a user's file.
    """

    pixels: Tensor
    rows: Tensor | None = None
    source: Streamed | None = None
    mapped: bool = False
    known: Marks | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.pixels.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.pixels if self.rows is None else self.rows)

    def take(self, index: Tensor) -> Tensor:
        require_whole(self.pixels.data_ptr())
        rows = index if self.rows is None else self.rows[index]
        if self.pixels.dtype == torch.uint16:  # for which torch has few operations
            return torch.from_numpy(self.pixels.numpy()[rows.numpy()].astype(np.float32))
        return self.pixels.index_select(0, rows)

    def subset(self, index: Tensor) -> InMemory:
        source = None if self.source is None else self.source.subset(index)
        known = None if self.known is None else self.known.subset(index)
        rows = index if self.rows is None else self.rows[index]
        return InMemory(self.pixels, rows, source, self.mapped, known)

    @cached_property
    def marks(self) -> Marks:
        if self.known is not None:
            return self.known
        rows, pixels = torch.arange(len(self)) if self.rows is None else self.rows, self.pixels.numpy()
        found = [mark(pixels[part.numpy()]) for part in torch.split(rows, 1024)]
        digests = [digest for part in found for digest in part.digests]
        return Marks(digests, np.concatenate([part.constant for part in found]))

    def to(self, device: torch.device) -> InMemory:
        """Return the same images on a device, as they are taken, without the rows of other splits."""
        require_whole(self.pixels.data_ptr())
        if self.pixels.dtype == torch.uint16:
            return InMemory(self.take(torch.arange(len(self))).to(device))
        return InMemory((self.pixels if self.rows is None else self.pixels[self.rows]).to(device))


@dataclass(frozen=True)
class Streamed:
    """Image files decoded on demand, (B, H, W, C) with C 1 (gray) or 3 (RGB), as `decoding` says.

    Without `resize` a file of another size is an error. Datasets have a `root`, by which the cache knows them.
    `cached`: pixels (M, H, W, C), and by image its row there, -1 for those that have to be decoded. `stand_ins`: what
    is taken in place of a file that cannot be read, and by image its number there. Raises UserError that names a file
    which cannot be read or has another size.
    """

    files: Sequence[File]
    shape: tuple[int, int, int]
    resize: bool
    marks: Marks | None = None
    decoding: Decoding = field(default_factory=Decoding)
    root: Path | None = None
    cached: tuple[NDArray[Any], NDArray[np.int64]] | None = None
    stand_ins: tuple[StandIns, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which `decode` returns pixels and memory and cache hold them."""
        return np.dtype(self.decoding.dtype)

    @property
    def nbytes(self) -> int:
        """The bytes that all pixels take in memory or in the cache."""
        return len(self.files) * int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def recipe(self) -> Decoding:
        """All that determines the pixels besides file and shape: part of the key of a cached image."""
        return self.decoding if self.resize else replace(self.decoding, resize="none")

    def take(self, index: Tensor) -> Tensor:
        # NumPy, not torch: a torch operation inside a thread would start one more set of compute threads
        taken = np.dtype(np.float32) if self.dtype == np.uint16 else self.dtype
        out = np.empty((len(index), *self.shape), dtype=taken)
        for row, number in enumerate(index.tolist()):
            try:
                out[row] = self.decode(number)
            except Unreadable as error:
                out[row] = self._in_place_of(number, error)
        return torch.from_numpy(out)

    def subset(self, index: Tensor) -> Streamed:
        files = [self.files[number] for number in index.tolist()]
        cached = self.cached and (self.cached[0], self.cached[1][index.numpy()])
        others = self.stand_ins and (self.stand_ins[0], self.stand_ins[1][index.numpy()])
        marks = self.marks and self.marks.subset(index)
        return replace(self, files=files, marks=marks, cached=cached, stand_ins=others)

    def decode(self, number: int) -> NDArray[Any]:
        """Return one image (H, W, C). Raises Unreadable, and UserError for an intact image of another size."""
        if self.cached is not None and (row := self.cached[1][number]) >= 0:
            require_whole(self.cached[0].__array_interface__["data"][0])
            pixels: NDArray[Any] = self.cached[0][row]
            return pixels
        return self._decoded(self.files[number])

    def _in_place_of(self, number: int, error: Unreadable) -> NDArray[Any]:
        """The image that is taken in place of one that cannot be read. Raises its error if there is none."""
        if self.stand_ins is not None:
            known, numbers = self.stand_ins
            for other, file in known.after(int(numbers[number]), error.reason):
                try:
                    return self._decoded(file)
                except Unreadable as another:
                    known.note(other, another.reason)
        raise error

    def _decoded(self, path: File) -> NDArray[Any]:
        height, width, _ = self.shape
        try:
            return decoded(path, self.shape, self.recipe, resized if self.decoding.decoder == DECODER else fitted)
        except OtherSize as error:
            found, expected = "×".join(map(str, error.found)), f"{width}×{height}"
            raise UserError(
                f"{path}: expected {expected} pixels like the first image, found {found}; "
                "resize all with dataset.image_size=64"
            ) from None
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
            reason = _reason(path, error)
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in PASSING:
                raise UserError(f"{path}: cannot be read now ({reason}); try again", Exit.FAILED) from error
            raise Unreadable(path, f"cannot be read as an image ({reason})") from error


def files_of(images: Images) -> Streamed | None:
    """Return the files that images are decoded from; None for a dataset that is in memory from the start."""
    return images if isinstance(images, Streamed) else getattr(images, "source", None)


def _reason(path: File, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        gone = isinstance(error, FileNotFoundError) and path.is_symlink()
        return f"a link to {os.readlink(path)}, which does not exist" if gone else error.strerror
    if path.stat().st_size == 0:
        return "the file is empty"
    text = " ".join(str(error).split())
    # Pillow repeats the path
    return "no image format is recognised" if text.startswith("cannot identify") else text or type(error).__name__


def read(images: Images, order: Iterable[Tensor], workers: int = 0) -> Generator[Tensor]:
    """Yield the images of each int64 index in `order`, in that order; threads decode files ahead.

    `workers` threads (0: one per core, at most 16). Closing the iterator, or an exception in it, ends them.
    """
    if not isinstance(images, Streamed):
        yield from map(images.take, order)
        return
    count = workers or decoders()

    def parts(index: Tensor) -> Iterator[Callable[[], Tensor]]:
        return (partial(images.take, part) for part in torch.split(index, max(1, -(-len(index) // count))))

    for batch in run_ahead(map(parts, order), count):
        # NumPy again: torch's compute threads and the decoding threads would compete for the cores
        yield torch.from_numpy(np.concatenate([part.numpy() for part in batch]))


def run_ahead(groups: Iterable[Iterable[Callable[[], T]]], workers: int = 0) -> Generator[list[T]]:
    """Yield the results of each group of tasks in order, while the next two groups are being computed.

    `workers` threads (0: one per core, at most 16). Closing the iterator, or an exception in it, ends them.
    """
    pending: deque[list[Future[T]]] = deque()
    groups = iter(groups)
    with _threads(workers or decoders()) as pool:

        def submit(count: int) -> None:
            for group in islice(groups, count):
                pending.append([pool.submit(task) for task in group])

        submit(1 + AHEAD)
        while pending:
            yield [task.result() for task in pending.popleft()]
            submit(1)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="dlrun-decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def decoders() -> int:
    """Return the number of threads that decode large files: one for each core, at most 16."""
    return min(16, cores())


def threads_for(images: Images) -> int:
    """Return how many threads read the files of these images best.

    One for small files: of each, more time is spent in Python than in the decoder, so threads wait for each other. Of
    50,000 files of 2.5 KB, one thread takes 11.9 s of processor time, and two 15.7 s, in the same wall time.
    """
    files = images.files[:: max(1, len(images) // 32)] if isinstance(images, Streamed) else []
    sizes = [path.stat().st_size for path in files if path.exists()]
    return 1 if sizes and sum(sizes) < SMALL * len(sizes) else decoders()
