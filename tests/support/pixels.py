"""Image files of every kind that people have, each with the pixels that a viewer shows, computed by hand.

All have HEIGHT × WIDTH pixels once they stand upright.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, features

HEIGHT, WIDTH = 16, 24
Pixels = NDArray[Any]


def scene() -> Pixels:
    """A picture without any symmetry: smooth, so that lossy formats keep it, with colours and full range."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red, green = 255 * x / (WIDTH - 1), 255 * y / (HEIGHT - 1)
    return np.rint(np.stack([red, green, (red + 255 - green) / 2], -1)).astype(np.uint8)


SCENE = scene()
GRAY = SCENE[..., 0]
DISK = (np.add.outer((np.arange(HEIGHT) - 8) ** 2, (np.arange(WIDTH) - 10) ** 2) < 30).astype(np.uint8)
HIDDEN = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ALPHA = np.rint(255 * np.linspace(0, 1, WIDTH)).astype(np.uint8)[None].repeat(HEIGHT, 0)
# what is stored, of what shall be seen, for each value of the EXIF orientation
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def gray(pixels: Pixels) -> Pixels:
    return pixels[..., None].repeat(3, -1)


def on(ground: float, colours: Pixels, alpha: Pixels) -> Pixels:
    """Colours (H, W, 3) over a gray ground."""
    share = alpha[..., None] / 255
    return np.asarray(colours * share + ground * (1 - share))


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def linear_profile(space: str) -> bytes:
    """An ICC profile (version 2.1) of linear values with the primaries of sRGB: RGB or GRAY."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    straight = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0100, 0)
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == "RGB":
        tags |= {b"rXYZ": xyz(0.43607, 0.22249, 0.01392), b"gXYZ": xyz(0.38515, 0.71687, 0.09708)}
        tags |= {b"bXYZ": xyz(0.14307, 0.06061, 0.7141), b"rTRC": straight, b"gTRC": straight, b"bTRC": straight}
    else:
        tags[b"kTRC"] = straight
    at, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(content), len(data))
        content += data
    head = struct.pack(
        ">I4sI4s4s4s", at + len(content), b"\0" * 4, 0x02100000, b"mntr", space.ljust(4).encode(), b"XYZ "
    )
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + number(0.9642) + number(1) + number(0.8249)
    return head.ljust(128, b"\0") + table + content


def encoded(linear: Pixels) -> Pixels:
    """Linear values 0 to 255 in sRGB (IEC 61966-2-1)."""
    share = linear / 255
    return np.asarray(255 * np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055))


def _turned(turn: int, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image(STORED[turn](SCENE)).save(path, exif=_exif(turn), **options)

    return write


def _saved(pixels: Pixels, mode: str = "", **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        made = image(pixels)
        (made.convert(mode) if mode else made).save(path, **options)

    return write


def _palette(path: Path, **options: Any) -> None:
    made = image(DISK).convert("P")
    made.putpalette([0, 90, 0, 40, 0, 200])
    made.save(path, **options)


def _text_chunk(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "nothing")
    image(SCENE).save(path, pnginfo=info)


def _frames(path: Path, **options: Any) -> None:
    rest = [image(255 - SCENE), image(np.zeros_like(SCENE))]
    image(SCENE).save(path, save_all=True, append_images=rest, duration=50, **options)


def _mpo(path: Path) -> None:
    image(SCENE).save(path, "MPO", save_all=True, append_images=[image(255 - SCENE)], quality=100, subsampling=0)


def _rgba(hidden: Pixels, alpha: Pixels) -> Pixels:
    return np.concatenate([np.where(alpha[..., None] > 0, SCENE, hidden), alpha[..., None]], -1).astype(np.uint8)


def _la(path: Path) -> None:
    Image.merge("LA", (image(GRAY), image(ALPHA))).save(path)


def _clear_gray(path: Path) -> None:
    image(np.where(DISK, 7, 200).astype(np.uint8)).save(path, transparency=7)


def _clear_rgb(path: Path) -> None:
    image(np.where(DISK[..., None], np.uint8([1, 2, 3]), np.uint8([9, 90, 200]))).save(path, transparency=(1, 2, 3))


LOSSLESS = {"quality": 100, "subsampling": 0}
OPAQUE = DISK * np.uint8(255)
Row = tuple[Callable[[Path], None], Pixels, float]
# name: how to write it, what it shows on white, the largest mean difference of a value
FILES: dict[str, Row] = {
    "rgb.png": (_saved(SCENE), SCENE, 0),
    "comment.png": (_text_chunk, SCENE, 0),
    "rgb.bmp": (_saved(SCENE), SCENE, 0),
    "rgb.ppm": (_saved(SCENE), SCENE, 0),
    "rgb.tif": (_saved(SCENE), SCENE, 0),
    "lzw.tiff": (_saved(SCENE, compression="tiff_lzw"), SCENE, 0),
    "rgb.jpg": (_saved(SCENE, **LOSSLESS), SCENE, 1.5),
    "progressive.jpeg": (_saved(SCENE, progressive=True, **LOSSLESS), SCENE, 1.5),
    "rgb.jfif": (lambda path: image(SCENE).save(path, "JPEG", **LOSSLESS), SCENE, 1.5),
    "rgb.webp": (_saved(SCENE, lossless=True), SCENE, 0),
    "gray.png": (_saved(GRAY), gray(GRAY), 0),
    "gray.jpg": (_saved(GRAY, quality=100), gray(GRAY), 1.5),
    "gray.pgm": (_saved(GRAY), gray(GRAY), 0),
    "one_bit.png": (_saved(OPAQUE, "1"), gray(OPAQUE), 0),
    "one_bit.pbm": (_saved(OPAQUE, "1"), gray(OPAQUE), 0),
    "fax.tif": (_saved(OPAQUE, "1", compression="group4"), gray(OPAQUE), 0),
    "palette.png": (_palette, np.where(DISK[..., None], (40, 0, 200), (0, 90, 0)), 0),
    "palette.gif": (_palette, np.where(DISK[..., None], (40, 0, 200), (0, 90, 0)), 0),
    "palette.bmp": (_palette, np.where(DISK[..., None], (40, 0, 200), (0, 90, 0)), 0),
    "clear_palette.png": (
        lambda path: _palette(path, transparency=0),
        np.where(DISK[..., None], (40, 0, 200), 255),
        0,
    ),
    "clear_palette.gif": (
        lambda path: _palette(path, transparency=0),
        np.where(DISK[..., None], (40, 0, 200), 255),
        0,
    ),
    "half_palette.png": (
        lambda path: _palette(path, transparency=bytes([51, 255])),
        np.where(DISK[..., None], (40, 0, 200), (204, 222, 204)),
        0,
    ),
    "clear_gray.png": (_clear_gray, gray(np.where(DISK, 255, 200)), 0),
    "clear_rgb.png": (_clear_rgb, np.where(DISK[..., None], 255, (9, 90, 200)), 0),
    "rgba_black.png": (_saved(_rgba(0 * HIDDEN, OPAQUE)), on(255, SCENE, OPAQUE), 0),
    "rgba_noise.png": (_saved(_rgba(HIDDEN, OPAQUE)), on(255, SCENE, OPAQUE), 0),
    "rgba_soft.png": (_saved(_rgba(HIDDEN, ALPHA)), on(255, SCENE, ALPHA), 0.5),
    "rgba_soft.tif": (_saved(_rgba(HIDDEN, ALPHA)), on(255, SCENE, ALPHA), 0.5),
    "rgba_soft.webp": (_saved(_rgba(0 * HIDDEN, ALPHA), lossless=True, exact=True), on(255, SCENE, ALPHA), 0.5),
    "la_soft.png": (_la, on(255, gray(GRAY), ALPHA), 0.5),
    "linear.png": (_saved(SCENE, icc_profile=linear_profile("RGB")), encoded(SCENE), 1),
    "linear.jpg": (_saved(SCENE, icc_profile=linear_profile("RGB"), **LOSSLESS), encoded(SCENE), 3),
    "linear.webp": (_saved(SCENE, icc_profile=linear_profile("RGB"), lossless=True), encoded(SCENE), 1),
    "linear_gray.png": (_saved(GRAY, icc_profile=linear_profile("GRAY")), encoded(gray(GRAY)), 1),
    "linear_rgba.png": (
        _saved(_rgba(HIDDEN, OPAQUE), icc_profile=linear_profile("RGB")),
        on(255, encoded(SCENE), OPAQUE),
        1,
    ),
    "cmyk.tif": (_saved(SCENE, "CMYK"), SCENE, 1),
    "cmyk.jpg": (_saved(SCENE, "CMYK", **LOSSLESS), SCENE, 1.5),
    "deep.png": (_saved(GRAY.astype(np.uint16) * 257), gray(GRAY), 0),
    "deep.tif": (_saved(GRAY.astype(np.uint16) * 257), gray(GRAY), 0),
    "animated.gif": (_frames, SCENE, 12),  # its palette has 256 colours
    "animated.png": (_frames, SCENE, 0),
    "animated.webp": (lambda path: _frames(path, lossless=True), SCENE, 0),
    "pages.tif": (_frames, SCENE, 0),
    "camera.jpg": (_mpo, SCENE, 1.5),
    "turned_6.tif": (_turned(6), SCENE, 0),
    "turned_6.webp": (_turned(6, lossless=True), SCENE, 0),
}
for _turn in STORED:
    FILES[f"turned_{_turn}.png"] = (_turned(_turn), SCENE, 0)
    FILES[f"turned_{_turn}.jpg"] = (_turned(_turn, **LOSSLESS), SCENE, 1.5)
if features.check("jpg_2000"):
    FILES["rgb.jp2"] = (_saved(SCENE), SCENE, 0)
if features.check("avif"):
    FILES["rgb.avif"] = (_saved(SCENE, quality=100), SCENE, 3)
    FILES["turned_6.avif"] = (_turned(6, quality=100), SCENE, 3)
