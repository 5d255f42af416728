"""Where pixels come from: one tensor in memory, or image files decoded on demand by threads.

Reached by every verb that reads data, `dlrun train dataset=image_folder dataset.root=photos`. A source has
`shape` (H, W, C), a length, `take(index)` and `subset(index)`; images are (N, H, W, C), uint8 or float32,
because a permuted NHWC batch already has the channels-last strides that convolutions like.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dlrun.config import UserError

__all__ = ["Images", "InMemory", "Streamed", "load", "read"]

AHEAD = 2  # batches that are decoded while the current one is in use
PART = 64  # files in one task of `load`: enough to make the hand-over between threads cheap


class Images(Protocol):
    """A numbered set of images that all have one shape (H, W, C)."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """The images numbered by an int64 index (B,), as a new tensor (B, H, W, C)."""

    def subset(self, index: Tensor) -> Images:
        """The images numbered by an int64 index, renumbered from 0; no pixel is copied."""


@dataclass(frozen=True)
class InMemory:
    """Images in one uint8 or float32 tensor (N, H, W, C); `rows` picks those that belong to this set."""

    pixels: Tensor
    rows: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.pixels.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.pixels if self.rows is None else self.rows)

    def take(self, index: Tensor) -> Tensor:
        return self.pixels.index_select(0, index if self.rows is None else self.rows[index])

    def subset(self, index: Tensor) -> InMemory:
        return InMemory(self.pixels, index if self.rows is None else self.rows[index])

    def to(self, device: torch.device) -> InMemory:
        """The same images on a device; the rows of other splits stay behind."""
        return InMemory((self.pixels if self.rows is None else self.pixels[self.rows]).to(device))


@dataclass(frozen=True)
class Streamed:
    """Image files decoded when they are asked for, uint8 (B, H, W, C) with C 1 (gray) or 3 (RGB).

    `resize`: the shorter side is resized to H (bilinear, antialiased) and the centre H × W cut out, as
    torchvision's Resize and CenterCrop do; without it a file of another size is an error.
    Raises UserError that names a file which cannot be read or has another size.
    """

    files: Sequence[Path]
    shape: tuple[int, int, int]
    resize: bool

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: Tensor) -> Tensor:
        # NumPy, not torch: a torch operation inside a thread would start one more set of compute threads
        out = np.empty((len(index), *self.shape), dtype=np.uint8)
        for row, number in enumerate(index.tolist()):
            out[row] = self._decode(self.files[number])
        return torch.from_numpy(out)

    def subset(self, index: Tensor) -> Streamed:
        return Streamed([self.files[number] for number in index.tolist()], self.shape, self.resize)

    def _decode(self, path: Path) -> np.ndarray[Any, Any]:
        from PIL import Image

        height, width, channels = self.shape
        try:
            with Image.open(path) as file:
                image = _eight_bits(file).convert("RGB" if channels == 3 else "L")
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read as an image ({reason}); repair or remove it") from error
        if image.size != (width, height):
            if not self.resize:
                found, expected = "×".join(map(str, image.size)), f"{width}×{height}"
                raise UserError(
                    f"{path}: is {found} pixels, the first image is {expected}; "
                    "give all one size with dataset.image_size=64"
                )
            image = _resize(image, height)
        return np.asarray(image).reshape(self.shape)


def _eight_bits(image: Any) -> Any:
    """Palettes resolved with their transparency and 16-bit gray scaled to 8, which `convert` gets wrong."""
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    # older Pillow opens a 16-bit PNG as 32-bit integers
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image


def _resize(image: Any, side: int) -> Any:
    from PIL import Image

    width, height = image.size
    shorter = min(width, height)
    if shorter != side:
        width, height = int(side * width / shorter), int(side * height / shorter)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def read(images: Images, order: Iterable[Tensor], workers: int = 0) -> Generator[Tensor]:
    """The images of each int64 index in `order`, in that order, decoding ahead by threads where it pays.

    `workers` threads (0: one a core, at most 16). Closing the iterator, or an exception in it, ends them.
    """
    if not isinstance(images, Streamed):
        yield from map(images.take, order)
        return
    count = workers or _cores()
    pending: deque[list[Future[Tensor]]] = deque()
    order = iter(order)
    with _threads(count) as pool:

        def ask(batches: int) -> None:
            for index in islice(order, batches):
                parts = torch.split(index, max(1, -(-len(index) // count)))
                pending.append([pool.submit(images.take, part) for part in parts])

        ask(1 + AHEAD)
        while pending:
            # NumPy again: torch's compute threads and the decoding threads would fight for the cores
            yield torch.from_numpy(np.concatenate([part.result().numpy() for part in pending.popleft()]))
            ask(1)


def load(images: Streamed, workers: int = 0) -> InMemory:
    """All files decoded once into one uint8 tensor (N, H, W, C), with a bar where a person waits for it."""
    pixels = np.empty((len(images), *images.shape), dtype=np.uint8)
    parts = torch.split(torch.arange(len(images)), PART * (workers or _cores()))
    batches: Iterable[Tensor] = read(images, parts, workers)
    if len(images) > 2000 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        batches = track(batches, "Decoding images", len(parts), console=console, transient=True)
    for part, batch in zip(parts, batches, strict=True):
        pixels[part.numpy()] = batch.numpy()
    return InMemory(torch.from_numpy(pixels))


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="dlrun-decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    # the cores that this process may use, which in a container are fewer than the machine has
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, available or 1)
