"""The audit shows sizes of files, what resizing cuts off, and images that only transparency makes blank (D1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.checks.audit import data_audit
from dlrun.data.decoding import Decoding
from dlrun.data.headers import held, looked_at
from dlrun.data.images import Streamed
from dlrun.training.experiment import build
from support.composed import composed
from support.photos import photo

WORDS = ("dataset=image_folder", "check=none", "trainer.threads=1", "model.width=4", "dataset.limit=0")


def folder(root: Path, size: tuple[int, int], count: int = 12, suffix: str = "png") -> Path:
    for k in range(count):
        path = root / ("a", "b")[k % 2] / f"{k}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(k, (*size, 3)).save(path)
    return root


@pytest.mark.parametrize(
    ("size", "resize", "status"),
    [((16, 20), "crop", "pass"), ((16, 24), "crop", "warn"), ((30, 10), "crop", "warn"), ((30, 10), "squash", "pass")],
)
def test_what_crop_leaves_out_of_the_median_image(
    tmp_path: Path, size: tuple[int, int], resize: str, status: str
) -> None:
    folder(tmp_path, size, 24)
    photo(99, (200, 8, 3)).save(tmp_path / "a" / "long.png")
    words = (f"dataset.root={tmp_path}", "dataset.image_size=12", f"dataset.resize={resize}")
    exp = build(composed(*WORDS, *words, "dataset.val_fraction=0.2", "dataset.test_fraction=0.2"))
    found = data_audit(exp)
    assert found.status == status
    assert f"{size[0]}×{size[1]}" in found.message
    assert ("dataset.resize=squash" in found.message) == (status == "warn")
    if status == "warn":
        lost = 1 - min(size) / max(size)
        assert f"{lost:.0%}" in found.message


def test_images_that_only_transparency_makes_blank_are_named_so(tmp_path: Path) -> None:
    folder(tmp_path, (12, 12))
    hidden = np.dstack([np.asarray(photo(7, (12, 12, 3))), np.zeros((12, 12), np.uint8)])
    stroke = np.full((12, 12, 4), 255, np.uint8)
    stroke[3:, :, 3] = 0  # white on nothing
    for name, pixels in (("hidden", hidden), ("stroke", stroke), ("plain", np.full((12, 12, 3), 9, np.uint8))):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{name}.png")
    for cache in ("none", str(tmp_path / "cache")):
        words = (f"dataset.root={tmp_path}", f"dataset.cache={cache}")
        if cache != "none":
            (tmp_path / "cache").mkdir()
            words = (f"dataset.root={tmp_path / 'all'}", f"dataset.cache={cache}")
            (tmp_path / "all").mkdir()
            for label in ("a", "b"):
                (tmp_path / label).rename(tmp_path / "all" / label)
        exp = build(composed(*WORDS, *words))
        details = {Path(one.id).stem: one.detail for one in exp.data.audit.of("constant")}
        assert set(details) == {"hidden", "stroke", "plain"}
        assert details["plain"] == ""
        assert "transparency" in details["hidden"]
        assert details["hidden"] == details["stroke"]
        message = data_audit(exp).message
        assert "dataset.background=black" in message
        assert message.index("plain") < message.index("hidden")


def test_sizes_are_as_displayed_and_animations_are_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, (20, 40, 3)).save(tmp_path / "turned.jpg", exif=exif)
    photo(2, (10, 10, 3)).save(tmp_path / "one.gif")
    photo(3, (30, 30, 3)).save(tmp_path / "two.gif", save_all=True, append_images=[photo(4, (30, 30, 3))])
    found = looked_at(Streamed(sorted(tmp_path.iterdir()), (8, 8, 3), resize=True))
    assert found is not None
    assert (found.count, found.animated) == (3, 1)
    assert (found.smallest, found.largest) == ((10, 10), (30, 30))
    assert found.aspects == (0.5, 1.0) or found.largest == (40, 20)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("88", "uint8"), ("66", "uint16"), ("ff", "float32"), ("688", "uint8"), ("668", "uint16"), ("6f", "float32")],
)
def test_the_kind_of_pixels_is_that_of_most_files(tmp_path: Path, kinds: str, expected: str) -> None:
    makes: dict[str, Callable[[], np.ndarray]] = {
        "8": lambda: np.zeros((4, 4), np.uint8),
        "6": lambda: np.zeros((4, 4), np.uint16),
        "f": lambda: np.zeros((4, 4), np.float32),
    }
    files = []
    for number, kind in enumerate(kinds):
        files.append(tmp_path / f"{number}.tif")
        Image.fromarray(makes[kind]()).save(files[-1])
    assert held(files, Decoding()).held == expected
    assert held(files, Decoding(decoder=1)).held == "uint8"
