"""Tar files of small JPEGs with labels, as webdataset makes them, and members that do harm."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["jpeg", "labelled", "tar"]

Given = tuple[str, bytes] | tarfile.TarInfo


def jpeg(seed: int, shape: tuple[int, ...] = (12, 16, 3), quality: int = 90) -> bytes:
    """A JPEG of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *shape[2:]), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((shape[1], shape[0])).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def labelled(numbers: Sequence[int], classes: int = 2, ending: str = "cls") -> list[Given]:
    """An image and its label for each number, which is the seed."""
    pairs = (((f"{n:04}.jpg", jpeg(n)), (f"{n:04}.{ending}", str(n % classes).encode())) for n in numbers)
    return [member for pair in pairs for member in pair]


def tar(path: Path, members: Iterable[Given]) -> Path:
    """Write a tar of names and contents; a TarInfo is a member without content, such as a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path
