"""Images for a page, as they are stored on disk or in an array (`dlrun train`, `dlrun suspects`, D11).

A page with them must still open, so they are bounded: at most MOST images and MORE of single classes and pairs, the
longer side at most SIDE pixels, all together at most ROOM bytes. Small ones are PNG and exact, larger ones JPEG.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dlrun.analysis import errors
from dlrun.data.decoding import VERSION, decoded
from dlrun.data.headers import header
from dlrun.data.images import Streamed, files_of
from dlrun.data.splits import Data, Split

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["by_id", "originals", "pixels", "worst"]

MOST, MORE = 24, 12
LARGE = 256  # pixels of a side
SIDE = 1600  # pixels: more than a phone or a page shows, enough to look into a detail
EXACT = 256  # pixels of the longer side up to which an image is a PNG
ROOM = 6_000_000  # bytes of all images; base64 makes 8 MB of them
QUALITY = 85  # of a JPEG: the eye sees no difference


def originals(split: Split, rows: Tensor, taken: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the images of a split numbered by `rows` as encoded files: their bytes, and where each ends.

    `taken` are the same images (N, H, W, C) as the network gets them, shown in place of a file that is gone.
    """
    files = _files(split, rows, taken, SIDE)
    return {"originals": np.frombuffer(b"".join(files), np.uint8), "ends": np.cumsum([len(file) for file in files])}


def worst(split: Split, logits: Tensor, labels: Tensor) -> dict[str, NDArray[Any]]:
    """Return the worst errors of a split with logits (N, K) and labels (N,), as a showcase stores them.

    They are the worst of all, and those of the classes and pairs that are confused most. `images` are those that the
    network gets, 8 bits, for one picture of all; of more than LARGE pixels they are averaged. `originals` are those
    that are stored, as encoded files for a page.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    rows = torch.from_numpy(errors.picked(logits.numpy(), labels.numpy(), MOST, MORE))
    images = pixels(split, rows)
    stored = originals(split, rows, images.numpy())
    if (by := -(-max(images.shape[1:3]) // LARGE)) > 1 and images.numel():
        smaller = F.avg_pool2d(images.permute(0, 3, 1, 2).float(), by, ceil_mode=True)
        images = smaller.permute(0, 2, 3, 1).to(torch.uint8)
    return {"rows": rows.numpy(), "images": images.numpy(), "losses": loss[rows].numpy()} | stored


def pixels(split: Split, rows: Tensor) -> Tensor:
    """Return the images of a split numbered by `rows` as the network gets them, (N, H, W, C), 8 bits to look at."""
    found = split.images.take(rows)
    if found.dtype != torch.uint8 and found.numel():
        found = (found - found.min()) * (255 / max(float(found.max() - found.min()), 1e-30))
    return found.to(torch.uint8).cpu()


def by_id(data: Data, ids: Sequence[str], side: int) -> dict[str, bytes]:
    """Return images of train and validation as encoded files by their ids; those of other ids are left out."""
    found: dict[str, bytes] = {}
    for split in (data.train, data.val):
        numbers = {name: number for number, name in enumerate(split.ids)}
        names = [name for name in ids if name in numbers]
        rows = torch.tensor([numbers[name] for name in names], dtype=torch.int64)
        found |= zip(names, _files(split, rows, pixels(split, rows).numpy(), side), strict=True)
    return found


def _files(split: Split, rows: Tensor, taken: NDArray[np.uint8], side: int) -> list[bytes]:
    """The images as files whose longer side is at most `side` pixels; smaller if all have too many bytes."""
    files = list[bytes]()
    while rows.numel():
        files = [_encoded(image, side) for image in _stored(split, rows, taken, side)]
        if sum(map(len, files)) <= ROOM or side <= EXACT:
            break
        side //= 2
    return files


def _stored(split: Split, rows: Tensor, taken: NDArray[np.uint8], side: int) -> Iterator[Picture]:
    from PIL import Image

    source = files_of(split.images)
    for number, pixels in zip(rows.tolist(), taken, strict=True):
        found = None if source is None else _displayed(source, number, side)
        shown = pixels if found is None else found
        yield Image.fromarray(shown[..., 0] if shown.shape[-1] < 3 else np.ascontiguousarray(shown[..., :3]))


def _displayed(source: Streamed, number: int, side: int) -> NDArray[np.uint8] | None:
    """A file's pixels (H, W, C) upright in sRGB, the longer side at most `side`; None if it is gone or damaged."""
    path = source.files[number]
    if (about := header(path)) is None:
        return None
    scale = min(1.0, side / max(about.height, about.width))
    height, width = (max(1, round(scale * length)) for length in (about.height, about.width))
    try:
        how = replace(source.recipe, resize="squash", decode="fast", decoder=VERSION)
        found = decoded(path, (height, width, source.shape[2]), how)
    except Exception:  # moved or damaged since; Pillow raises a dozen kinds
        return None
    if found.dtype != np.uint8:
        found = (found - found.min()) * (255 / max(float(found.max() - found.min()), 1e-30))
    return found.astype(np.uint8)


def _encoded(image: Picture, side: int) -> bytes:
    """The bytes of an image whose longer side is at most `side` pixels."""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
