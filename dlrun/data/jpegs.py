"""JPEGs decoded on the device that trains, a batch at a time (`dlrun train dataset=shards dataset.jpeg=device`, D1).

torchvision.io decodes them: with NVJPEG on CUDA, and with libjpeg on a processor, by the same lines. Threads read the
files meanwhile. What is no usual JPEG, or does not decode there, is decoded as ever (dlrun/data/images.py), which also
names a damaged file. The pixels of an image depend on its file and the kind of device, not on the images beside it.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dlrun.data.decoding import to_srgb, turn_of
from dlrun.data.images import Streamed, decoders, run_ahead
from dlrun.data.resizing import DECODER, placed
from dlrun.errors import UserError, first_line
from dlrun.vocabulary import Exit

__all__ = ["AUTO", "DEVICE", "PROCESSOR", "NoRoom", "asked", "broken", "read_on", "refused", "unasked"]

KEY = "jpeg"
AUTO, DEVICE, PROCESSOR = "auto", "device", "processor"  # its values
# pixels that are decoded at once, 50 MB; of a larger image the usual decoder needs less memory, as it decodes a half
# or a quarter of each side
AT_ONCE = 1 << 24
BEGIN, END = b"\xff\xd8", b"\xff\xd9"
STORED_RGB = [ord(letter) for letter in "RGB"]  # components of a JPEG whose colours are not those of JFIF
NO_ROOM = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
ALLOCATOR_FAILURE = ": 5"  # of NVJPEG, at the end of what torchvision says


class NoRoom(UserError):
    """The memory of the device ran out while images were decoded there."""


class _Encoded(NamedTuple):
    """The bytes of a JPEG that is decoded on the device, its number, and its (width, height)."""

    number: int
    content: NDArray[np.uint8]
    size: tuple[int, int]


def asked(dataset: Mapping[str, Any]) -> str:
    """Return dataset.jpeg; without the key, as in a run of an older version, what it was before there was one."""
    return str(dataset.get(KEY, PROCESSOR)) if _own(dataset) else PROCESSOR


def unasked(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `dataset` without dataset.jpeg, which decides nothing about what is read."""
    return {key: value for key, value in dataset.items() if key != KEY or not _own(dataset)}


def _own(dataset: Mapping[str, Any]) -> bool:
    return str(dataset.get("_target_", "")).startswith("dlrun.")  # a key of others is theirs


def refused(images: Streamed) -> str:
    """Return the keys that would have to be others for images to be decoded on a device, or ""."""
    how, channels = images.recipe, images.shape[2]
    if how.decoder != DECODER:
        return f"needs dataset.decoder={DECODER}, found {how.decoder}"
    if channels != 3:
        return f"needs dataset.channels=3, found {channels}"
    if how.resize != "none" and (how.resize == "letterbox" or how.interpolation != "bilinear"):
        found = f"{how.resize} and {how.interpolation}"
        return f"needs dataset.resize=crop or squash, and dataset.interpolation=bilinear, found {found}"
    return "" if how.held == "uint8" else f"needs images of 8 bits, found {how.held}"


@lru_cache
def broken(device: torch.device) -> str:
    """Return why torchvision cannot decode on a device, such as without NVJPEG or with an old driver, or ""."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(buffer, "JPEG")
    try:
        _torchvision([np.frombuffer(bytearray(buffer.getvalue()), np.uint8)], device)
    except Exception as error:  # of many kinds, by what is missing
        return first_line(error)[:160]
    return ""


def read_on(images: Streamed, order: Iterable[Tensor], device: torch.device, workers: int = 0) -> Generator[Tensor]:
    """Yield the images of each int64 index in `order` (B, H, W, C), uint8, on CUDA or else on the processor.

    `workers` threads (0: one per core, at most 16) read two batches ahead. Raises NoRoom, and UserError if the device
    cannot decode, or for a file that cannot be read.
    """
    where = device if device.type == "cuda" else torch.device("cpu")
    if why := broken(where):
        what = f"torchvision cannot decode on {where} ({why}); resume where it can, or start again with"
        raise UserError(f"dataset.jpeg={DEVICE}: {what} dataset.jpeg={PROCESSOR}", Exit.FAILED)
    count = workers or decoders()

    def parts(index: Tensor) -> Iterator[Any]:
        return (partial(_looked, images, part.tolist()) for part in torch.split(index, max(1, -(-len(index) // count))))

    for found in run_ahead(map(parts, order), count):
        with _beside(where) as out:
            out.append(_batch(images, [one for part in found for one in part], where))
        yield out[0]


def _looked(images: Streamed, numbers: Sequence[int]) -> list[_Encoded | NDArray[Any]]:
    """What a thread makes of images: the bytes of those for the device, the pixels of others. NumPy, see `take`."""
    return [_encoded(images, number) or _usual(images, number) for number in numbers]


def _usual(images: Streamed, number: int) -> NDArray[Any]:
    return images.take(torch.tensor([number])).numpy()[0]  # type: ignore[no-any-return]


def _encoded(images: Streamed, number: int) -> _Encoded | None:
    """The bytes of a whole JPEG whose stored colours are those it shows, upright; None for any other file."""
    try:
        content = bytearray(images.files[number].read_bytes())
        if not content.startswith(BEGIN) or not content.endswith(END):
            return None  # a device may decode what is cut without a word
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "JPEG" or image.mode != "RGB" or not _as_stored(image):
                return None
            size = image.size
    except Exception:  # as in `decoded`; the usual decoder says why
        return None
    height, width, _ = images.shape
    how = images.recipe
    if size[0] * size[1] > min(AT_ONCE, how.max_pixels):
        return None
    if size != (width, height) and placed(size, height, width, how) is None:
        return None
    return _Encoded(number, np.frombuffer(content, np.uint8), size)


def _as_stored(image: Any) -> bool:
    """Whether a JPEG is shown without being turned, and without another colour space than that of JFIF."""
    if turn_of(image) is not None:
        return False
    profile = image.info.get("icc_profile") or b""
    if profile and to_srgb(profile, "RGB", "RGB") is not None:
        return False
    return image.info.get("adobe_transform") != 0 and [layer[0] for layer in image.layer] != STORED_RGB


def _batch(images: Streamed, found: Sequence[_Encoded | NDArray[Any]], device: torch.device) -> Tensor:
    """The images of a batch (B, H, W, C) on a device."""
    out = torch.empty((len(found), *images.shape), dtype=torch.uint8, device=device)
    pieces: list[list[int]] = [[]]
    pixels = 0
    for row, one in enumerate(found):
        if not isinstance(one, _Encoded):
            out[row] = torch.from_numpy(np.array(one))
            continue
        pixels += one.size[0] * one.size[1]
        if pixels > AT_ONCE and pieces[-1]:
            pixels = one.size[0] * one.size[1]
            pieces.append([])
        pieces[-1].append(row)
    for piece in pieces:
        encoded = [one for row in piece if isinstance(one := found[row], _Encoded)]
        for row, one, decoded in zip(piece, encoded, _decoded([one.content for one in encoded], device), strict=True):
            if decoded is None or decoded.shape != (3, one.size[1], one.size[0]):
                out[row] = torch.from_numpy(np.array(_usual(images, one.number)))
            else:
                out[row] = _fitted(decoded, images)
    return out


def _decoded(contents: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor | None]:
    """The pixels (3, h, w) of JPEGs, None for one that the device does not decode. Raises NoRoom."""
    if not contents:
        return []
    try:
        return [*_torchvision(contents, device)]
    except RuntimeError as error:  # without partial results
        _must_have_room(error)
        return [None] if len(contents) == 1 else [found for one in contents for found in _decoded([one], device)]


def _torchvision(contents: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type == "cuda":
        # NVJPEG writes on a stream of its own, into memory that earlier work on this one may still read
        torch.cuda.current_stream(device).synchronize()
    found: list[Tensor] = decode_jpeg([torch.from_numpy(one) for one in contents], ImageReadMode.RGB, device)
    return found


def _fitted(pixels: Tensor, images: Streamed) -> Tensor:
    """The pixels (3, h, w) of an image as (H, W, 3), resized with floats: CUDA has no kernel for bytes."""
    height, width, _ = images.shape
    place = placed((pixels.shape[2], pixels.shape[1]), height, width, images.recipe)
    if pixels.shape[1:] == (height, width) or place is None:
        return pixels.permute(1, 2, 0)
    rows, columns, top, left = place
    made = F.interpolate(pixels[None].float(), (rows, columns), mode="bilinear", antialias=True)[0]
    cut = made[:, top : top + height, left : left + width]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def _must_have_room(error: RuntimeError) -> None:
    """Raise NoRoom if an error says that memory ran out."""
    line = first_line(error)
    if any(word in line.lower() for word in NO_ROOM) or line.endswith(ALLOCATOR_FAILURE):
        what = f"no memory is left to decode images; free some and resume, or start again with dataset.jpeg={PROCESSOR}"
        raise NoRoom(f"dataset.jpeg={DEVICE}: {what}", Exit.FAILED) from error


@contextmanager
def _beside(device: torch.device) -> Iterator[list[Tensor]]:
    """Work on a stream of its own beside training; the training stream waits for what is put into the list."""
    out: list[Tensor] = []
    try:
        if device.type != "cuda":
            yield out
            return
        with torch.cuda.stream(_stream(device)):
            yield out
    except RuntimeError as error:
        _must_have_room(error)
        raise
    current = torch.cuda.current_stream(device)
    current.wait_stream(_stream(device))
    for made in out:
        made.record_stream(current)


@lru_cache
def _stream(device: torch.device) -> Any:
    # one for all epochs: memory that a stream has freed is kept for its own next use
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
