"""Files of any size and aspect ratio reach the network at the size asked for: crop, squash, letterbox (D1)."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.data.decoding import Decoding, decoded
from dlrun.data.files import image_folder
from dlrun.errors import UserError
from support.pixels import SCENE, image

SMOOTH = np.rint(np.add.outer(np.arange(600.0), np.arange(900.0)) * 255 / 1498).astype(np.uint8)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """16 × 24 pixels."""
    image(SCENE).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


@pytest.mark.parametrize("interpolation", FILTERS)
def test_squash_and_its_interpolation(wide: Path, interpolation: str) -> None:
    how = Decoding(resize="squash", interpolation=interpolation)
    expected = image(SCENE).resize((10, 12), FILTERS[interpolation])
    assert np.array_equal(decoded(wide, (12, 10, 3), how), np.asarray(expected))


def test_area_is_the_mean_of_the_pixels(wide: Path) -> None:
    found = decoded(wide, (8, 12, 3), Decoding(resize="squash", interpolation="area"))
    mean = SCENE.reshape(8, 2, 12, 2, 3).mean((1, 3))
    assert np.abs(found - mean).max() <= 1  # rounded once for columns and once for rows


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (12, 6), (40, 20), (16, 24), (5, 30)])
def test_crop_covers_a_rectangle_and_keeps_the_centre(wide: Path, height: int, width: int) -> None:
    found = decoded(wide, (height, width, 3), Decoding())
    scale = max(height / 16, width / 24)
    rows, columns = int(16 * scale + 1e-9), int(24 * scale + 1e-9)
    whole = np.asarray(image(SCENE).resize((columns, rows), Image.Resampling.BILINEAR))
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    assert np.array_equal(found, whole[top : top + height, left : left + width])


@pytest.mark.parametrize(("background", "ground"), [("white", 255), ("black", 0)])
def test_letterbox_shows_all_on_the_background(wide: Path, background: str, ground: int) -> None:
    found = decoded(wide, (24, 24, 3), Decoding(resize="letterbox", background=background))
    assert np.array_equal(found[4:20], SCENE)
    assert (found[:4] == ground).all()
    assert (found[20:] == ground).all()
    small = decoded(wide, (8, 6, 3), Decoding(resize="letterbox", background=background))
    assert (small[:2] == ground).all()
    assert np.array_equal(small[2:6], np.asarray(image(SCENE).resize((6, 4), Image.Resampling.BILINEAR)))


def test_letterbox_with_the_mean(wide: Path) -> None:
    found = decoded(wide, (24, 24, 3), Decoding(resize="letterbox", background="average"))
    assert np.abs(found[0, 0] - SCENE.mean((0, 1))).max() <= 0.5


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
def test_a_strip_takes_little_memory(tmp_path: Path, size: tuple[int, int], resize: str) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", size, (9, 90, 200)).save(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = decoded(path, (224, 224, 3), Decoding(resize=resize, background="black"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert (found == (9, 90, 200)).all(-1).any()


def test_a_strip_that_is_cut_first_has_the_pixels_of_one_that_is_cut_last(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 200, 3), dtype=np.uint8)
    image(pixels).save(tmp_path / "strip.png")
    found = decoded(tmp_path / "strip.png", (24, 24, 3), Decoding())
    whole = np.asarray(image(pixels).resize((1600, 24), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - whole[:, 788:812]).max() <= 1


@pytest.mark.parametrize(("decode", "most"), [("exact", 0.0), ("auto", 1.0), ("fast", 3.0)])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale(tmp_path: Path, decode: str, most: float) -> None:
    path = tmp_path / "large.jpg"
    image(SMOOTH).save(path, quality=95)
    exact = decoded(path, (64, 64, 3), Decoding(decode="exact"))
    found = decoded(path, (64, 64, 3), Decoding(decode=decode))
    assert np.abs(found.astype(int) - exact).mean() <= most
    # a file of twice the size at most is never reduced
    near = decoded(path, (300, 300, 3), Decoding(decode="auto"))
    assert np.array_equal(near, decoded(path, (300, 300, 3), Decoding(decode="exact")))


@pytest.mark.parametrize("turn", [1, 6])
def test_the_reduced_scale_leaves_as_many_pixels_as_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    from PIL import JpegImagePlugin

    exif = Image.Exif()
    exif[0x0112] = turn
    image(SMOOTH).save(tmp_path / "large.jpg", exif=exif)
    sizes: list[tuple[int, int]] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def watched(self: JpegImagePlugin.JpegImageFile, mode: str | None, size: tuple[int, int]) -> object:
        result = draft(self, mode, size)
        sizes.append(self.size)
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", watched)
    for decode, resize in (("auto", "crop"), ("fast", "crop"), ("fast", "squash"), ("auto", "letterbox")):
        decoded(tmp_path / "large.jpg", (70, 70, 3), Decoding(decode=decode, resize=resize))
    assert sizes == [(225, 150), (113, 75), (113, 75), (225, 150)]


def test_max_pixels_is_a_limit_and_a_reason(wide: Path) -> None:
    with pytest.raises(ValueError, match=r"24×16 .*dataset\.max_pixels=383"):
        decoded(wide, (8, 8, 3), Decoding(max_pixels=383))
    assert decoded(wide, (8, 8, 3), Decoding(max_pixels=384)).shape == (8, 8, 3)


def test_more_pixels_than_pillow_allows(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(ValueError, match=r"20,000×10,000 "):
        decoded(path, (8, 8, 3), Decoding())


def test_a_rectangle_in_the_folder_of_a_run(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            image(SCENE).save(tmp_path / label / f"{number}.png")
    images = image_folder(str(tmp_path), image_size=[8, 12], resize="squash").train.images
    assert images.shape == (8, 12, 3)
    for wrong in ([8], [0, 8], [8, 8, 8], -1):
        with pytest.raises(UserError, match=r"dataset\.image_size="):
            image_folder(str(tmp_path), image_size=wrong)
