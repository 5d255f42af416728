"""Colours of 16 bits keep all their levels, whatever part of the range they use."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dlrun.data import prepare
from dlrun.data.decoding import Decoding, decoded
from dlrun.data.files import image_folder
from support.photos import KEYS

KINDS = {2: 3, 6: 4}  # colour types of PNG and their channels


def png(path: Path, values: NDArray[np.uint16], chunks: bytes = b"") -> None:
    """Write a PNG of 16 bits, which Pillow cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = next(number for number, count in KINDS.items() if count == channels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(path: Path, values: NDArray[np.uint16], order: str) -> None:
    """Write an uncompressed TIFF of 16 bits; order `<` or `>` of the bytes."""
    height, width, channels = values.shape
    content = values.astype(f"{order}u2").tobytes()
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, None), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, None), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(content))]
    bits = 8 + 2 + 12 * len(entries) + 4
    start = bits + 6
    found = b""
    for tag, kind, count, value in entries:
        place = value if value is not None else (bits if tag == 258 else start)
        stored = struct.pack(f"{order}HH", place, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", place)
        found += struct.pack(f"{order}HHI", tag, kind, count) + stored
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    shape = struct.pack(f"{order}3H", 16, 16, 16)
    path.write_bytes(head + struct.pack(f"{order}H", len(entries)) + found + bytes(4) + shape + content)


def levels(top: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint16]:
    values = np.random.default_rng(seed).integers(0, top + 1, (12, 10, channels), dtype=np.uint16)
    values[0, 0] = top
    return values


NATURAL = Decoding(resize="none", held="uint16", whites={"uint16": 4095.0})


@pytest.mark.parametrize("kind", ["png", "tiff <", "tiff >"])
def test_every_level_is_kept(tmp_path: Path, kind: str) -> None:
    values = levels(4095)
    path = tmp_path / f"a.{kind[:4].strip()}"
    png(path, values) if kind == "png" else tiff(path, values, kind[-1])
    found = decoded(path, (12, 10, 3), NATURAL)
    assert found.dtype == np.uint16
    assert np.array_equal(found, values)
    gray = decoded(path, (12, 10, 1), NATURAL)[..., 0]
    assert np.abs(gray - values @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


def test_transparent_ones_lie_on_the_ground(tmp_path: Path) -> None:
    values = levels(4095, 4)
    values[..., 3] = 65535
    values[:6, :, 3] = 0
    png(tmp_path / "a.png", values)
    found = decoded(tmp_path / "a.png", (12, 10, 3), NATURAL)
    assert (found[:6] == 4095).all()
    assert np.array_equal(found[6:], values[6:, :, :3])
    hidden = levels(4095)
    hidden[:3] = (7, 8, 9)
    png(tmp_path / "b.png", hidden, chunk(b"tRNS", struct.pack(">3H", 7, 8, 9)))
    found = decoded(tmp_path / "b.png", (12, 10, 3), NATURAL)
    assert (found[:3] == 4095).all()
    assert np.array_equal(found[3:], hidden[3:])


def test_a_folder_of_twelve_bits_is_measured_and_trains_at_its_range(tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        png(path, levels(4095, seed=number))
    data = prepare(image_folder(str(tmp_path)), **KEYS)
    assert data.train.images.take(torch.tensor([0])).max() == 4095
    assert data.units.record()["white"] == 4095
    assert all(1900 < mean < 2200 for mean in data.mean)
    resized = prepare(image_folder(str(tmp_path), image_size=[5, 6], resize="squash"), **KEYS)
    assert resized.shape == (5, 6, 3)
    assert all(1900 < mean < 2200 for mean in resized.mean)


def test_among_images_of_eight_bits_the_same_picture_has_the_same_pixels(tmp_path: Path) -> None:
    picture = levels(255).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "eight.png")
    png(tmp_path / "sixteen.png", picture.astype(np.uint16) * 257)
    how = Decoding(resize="none", held="uint8")
    assert np.array_equal(decoded(tmp_path / "eight.png", (12, 10, 3), how), picture)
    assert np.array_equal(decoded(tmp_path / "sixteen.png", (12, 10, 3), how), picture)
