"""Folders of small images and ways to damage them, for the tests of data and audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.data import prepare
from dlrun.data.files import image_folder

KEYS = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 0, "split": "position"}
MEMORY = (4.0, 0.0)  # gigabytes: decoded once, or streamed


def photo(seed: int, shape: tuple[int, ...] = (8, 9, 3)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def stored(path: Path, **changes) -> str:
    made = np.random.default_rng(5)
    content = {
        "x": made.normal(size=(60, 4, 4, 1)).astype(np.float32),
        "y": np.arange(60) % 3,
        "x_test": made.normal(size=(12, 4, 4, 1)).astype(np.float32),
        "y_test": np.arange(12) % 3,
    }
    for name, (index, value) in changes.items():
        content[name][index] = value
    np.savez(path, **content)
    return str(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty images in each of the two classes of train, eight in those of val and test, no two alike."""
    top = tmp_path / "photos"
    seed = 0
    for split, count in (("train", 20), ("val", 8), ("test", 8)):
        for name in ("cat", "dog"):
            (top / split / name).mkdir(parents=True)
            for number in range(count):
                seed += 1
                photo(seed).save(top / split / name / f"{number:02}.png")
    return top


def ready(root: Path, **keys):
    return prepare(image_folder(str(root)), **{**KEYS, **keys})


BROKEN = {
    "empty": (lambda good: b"", "the file is empty"),
    "text": (lambda good: b"hello, I am no image", "no image format"),
    "header alone": (lambda good: good[:50], "cannot be read"),
    "half": (lambda good: good[: len(good) // 2], "cannot be read"),
}


def truncate(path: Path, kind: str = "half") -> None:
    path.write_bytes(BROKEN[kind][0](path.read_bytes()))
