"""A user's own images: `dlrun train dataset=image_folder dataset.root=photos dataset.image_size=64` (D4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrun.data.decoding import VERSION, Decoding
from dlrun.data.form import Form
from dlrun.data.layout import folders, splits
from dlrun.data.splits import Raw, Split
from dlrun.errors import UserError

__all__ = ["SUFFIXES", "image_folder"]

SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
SUFFIXES |= {".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
Array = np.ndarray[Any, Any]


def image_folder(
    root: str,
    image_size: int | Sequence[int] = 0,
    channels: int = 3,
    *,
    resize: str = "crop",
    interpolation: str = "bilinear",
    background: str = "white",
    decode: str = "auto",
    max_pixels: int = Decoding.max_pixels,
    decoder: int = VERSION,
) -> Raw:
    """Image files in one folder per class: `root/train/<class>/`, optionally `root/test/` and `root/val/`, or
    `root/<class>/`; `layout.splits` has the other names. Nothing is decoded here.

    `image_size`: side, or height and width in pixels, to which `resize` brings all images; 0: all have one size.
    `channels`: 3 for RGB, 1 for gray, whatever the files contain. The others are those of `Decoding`. Classes are the
    sorted folder names of train. Raises UserError for a missing or empty folder and for a class that train does not
    have.
    """
    how = Decoding(resize, interpolation, background, decode, max_pixels, decoder=decoder)
    form = Form(image_size, channels, how)
    top = Path(root).expanduser()
    if not top.is_dir():
        raise UserError(f"dataset.root={root}: no such folder")
    places = splits(top)
    files, names = _listing(places.get("train") or places[""])
    classes = sorted(set(names))
    stream = form.stream(files)

    def split(files: list[Path], names: list[str]) -> Split:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([numbers[name] for name in names])
        ids = [file.relative_to(top).as_posix() for file in files]
        return Split(stream(files), labels, ids)

    others = {role: _listing(place) for role, place in places.items() if role in ("val", "test")}
    for role, (_, there) in others.items():
        _require_known(sorted(set(there)), classes, f"{places[role]}")
    test, val = others.get("test"), others.get("val")
    read_test = (lambda: split(*test)) if test else None
    return Raw(split(files, names), read_test, classes, split(*val) if val else None)


def _listing(folder: Path) -> tuple[list[Path], list[str]]:
    """Image files of a folder of classes, sorted, and the class name of each."""
    files: list[Path] = []
    names: list[str] = []
    for place in folders(folder):
        with os.scandir(place) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
        if deeper := sorted(entry.name for entry in entries if entry.is_dir()):
            raise UserError(f"class folder {place}: expected images only, found a folder, {deeper[0]!r}")
        found = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"class folder {place} has no images; add some or remove it")
        files += [place / name for name in found]
        names += [place.name] * len(found)
    if not files:
        raise UserError(f"{folder} has no class folders; expected {folder}/<class>/<image>")
    return files, names


def _require_known(found: list[str], classes: list[str], where: str) -> None:
    unknown = [name for name in found if name not in classes]
    if unknown:
        names = ", ".join(map(repr, unknown[:10]))
        raise UserError(f"{where} has classes that train lacks: {names}; remove them or add them to train")
