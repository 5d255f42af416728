"""Every kind of image file gives the pixels that a viewer shows, in whatever way it reaches the network (D1)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dlrun.data import prepare
from dlrun.data.decoding import Decoding, decoded
from dlrun.data.files import image_folder
from dlrun.data.images import Streamed, Unreadable
from support.photos import KEYS
from support.pixels import ALPHA, FILES, HEIGHT, OPAQUE, SCENE, STORED, WIDTH, image, on

SHAPE = (HEIGHT, WIDTH, 3)
NATURAL = Decoding(resize="none")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for name, (write, _, _) in FILES.items():
        write(folder / name)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_decoded_to_what_a_viewer_shows(files: Path, name: str) -> None:
    _, shown, tolerance = FILES[name]
    found = decoded(files / name, SHAPE, NATURAL)
    assert (found.dtype, found.shape) == (np.uint8, SHAPE)
    assert np.abs(found - np.asarray(shown, dtype=float)).mean() <= tolerance + 1e-9
    if tolerance == 0:
        assert np.array_equal(found, shown)
    # gray is the luminance of what is shown
    one = decoded(files / name, (HEIGHT, WIDTH, 1), NATURAL)[..., 0]
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(one - found @ weights).mean() <= 1


def test_the_folder_of_a_run_has_these_pixels_and_the_audit_sees_the_copies(files: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for name in FILES:
            (tmp_path / label / name).write_bytes((files / name).read_bytes())
    data = prepare(image_folder(str(tmp_path)), **KEYS)
    assert data.shape == SHAPE
    seen = set()
    for split in (data.train, data.val, data.test().split):
        for number, one in enumerate(split.ids):
            expected = decoded(files / Path(one).name, SHAPE, NATURAL)
            assert np.array_equal(split.images.take(torch.tensor([number]))[0].numpy(), expected), one
            seen.add(one)
    assert len(seen) == 2 * len(FILES)
    # upright, turned and converted copies of one picture under two labels
    pairs = {frozenset((Path(f.id).name, Path(f.other_id).name)) for f in data.audit.of("contradiction")}
    assert pairs
    assert any("turned" in "".join(pair) for pair in pairs)


@pytest.mark.parametrize("size", [0, 12])
@pytest.mark.parametrize("turn", STORED)
def test_a_turned_photo_has_the_pixels_of_the_upright_one(tmp_path: Path, turn: int, size: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image(SCENE).save(tmp_path / "upright.png")
    image(STORED[turn](SCENE)).save(tmp_path / "turned.png", exif=exif)
    shape = (size, size, 3) if size else SHAPE
    pair = Streamed([tmp_path / "upright.png", tmp_path / "turned.png"], shape, resize=size > 0)
    assert np.array_equal(pair.decode(0), pair.decode(1))


def test_damaged_metadata_leave_the_pixels(tmp_path: Path) -> None:
    image(SCENE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    image(SCENE).save(tmp_path / "b.png", icc_profile=b"no profile at all")
    for path in tmp_path.iterdir():
        assert np.array_equal(decoded(path, SHAPE, NATURAL), SCENE)


@pytest.mark.parametrize(("background", "ground"), [("white", 255), ("black", 0)])
def test_transparent_pixels_show_the_background(files: Path, background: str, ground: int) -> None:
    how = Decoding(resize="none", background=background)
    hard, soft = (decoded(files / name, SHAPE, how) for name in ("rgba_noise.png", "rgba_soft.png"))
    assert np.array_equal(hard, on(ground, SCENE, OPAQUE))
    assert np.abs(soft - on(ground, SCENE, ALPHA)).max() <= 0.5 + 1e-9


def test_the_average_background_is_that_of_the_visible_pixels(files: Path) -> None:
    found = decoded(files / "rgba_noise.png", SHAPE, Decoding(resize="none", background="average"))
    mean = np.rint(SCENE[OPAQUE > 0].mean(0))
    assert np.array_equal(found, np.where(OPAQUE[..., None] > 0, SCENE, mean))


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(image(SCENE), lab).save(tmp_path / "lab.tif")
    found = decoded(tmp_path / "lab.tif", SHAPE, NATURAL)
    assert np.abs(found - SCENE.astype(float)).mean() < 3


def test_heic_without_its_package_is_answered_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.HEIC").write_bytes(b"....ftypheic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Unreadable, match=r"photo\.HEIC: .*pip install 'dlrun\[heic\]'"):
        Streamed([tmp_path / "photo.HEIC"], SHAPE, resize=True).decode(0)


def test_heic(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    image(SCENE).save(tmp_path / "a.heic", quality=-1)
    image(STORED[6](SCENE)).save(tmp_path / "b.heif", quality=-1, exif=exif)
    for path in tmp_path.iterdir():
        assert np.abs(decoded(path, SHAPE, NATURAL) - SCENE.astype(float)).mean() < 8  # a quarter of the colours


def test_sixteen_bits_among_eight_are_scaled_and_those_that_may_be_twelve_refused(tmp_path: Path) -> None:
    for name, top in {"sixteen": 65535, "twelve": 4095}.items():
        levels = np.rint(SCENE[..., 0] * (top / 255)).astype(np.uint16)
        image(levels).save(tmp_path / f"{name}.png")
    assert np.array_equal(decoded(tmp_path / "sixteen.png", SHAPE, NATURAL)[..., 1], SCENE[..., 0])
    with pytest.raises(ValueError, match=r"\b4095\b.*\b65535\b"):
        decoded(tmp_path / "twelve.png", SHAPE, NATURAL)
    known = Decoding(resize="none", whites={"uint8": 255.0, "uint16": 4095.0})
    assert np.array_equal(decoded(tmp_path / "twelve.png", SHAPE, known)[..., 1], SCENE[..., 0])


def test_values_of_32_bits_are_held_as_floats(tmp_path: Path) -> None:
    values = SCENE[..., 0].astype(np.int32) * 1000 - 7
    image(values).save(tmp_path / "a.tif")
    image(values.astype(np.float32) / 3).save(tmp_path / "b.tif")
    for name, held, expected in (("a", "int32", values), ("b", "float32", values / np.float32(3))):
        found = decoded(tmp_path / f"{name}.tif", (HEIGHT, WIDTH, 1), Decoding(resize="none", held=held))
        assert found.dtype == np.float32
        assert np.array_equal(found[..., 0], expected.astype(np.float32))
        with pytest.raises(ValueError, match=rf"{held} values.*uint8"):
            decoded(tmp_path / f"{name}.tif", SHAPE, NATURAL)
    image(np.where(values > 0, values, np.nan).astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="nan"):
        decoded(tmp_path / "b.tif", SHAPE, Decoding(resize="none", held="float32"))


def test_a_cached_image_of_another_decoder_is_not_used(files: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for name in ("turned_3.png", "rgba_noise.png", "rgb.png", "gray.png", "turned_2.png"):
            (tmp_path / "photos" / label / name).write_bytes((files / name).read_bytes())
    hashes = []
    for cache in (str(tmp_path / "cache"), "none"):
        for words in ({"decoder": 1}, {}, {"background": "black"}):
            data = prepare(image_folder(str(tmp_path / "photos"), **words), **KEYS, cache=cache)
            hashes.append(data.record()["content_sha256"])
    assert hashes[:3] == hashes[3:]
    assert len(set(hashes)) == 3


def test_one_decoder_version_back_everything_is_as_it_was(files: Path) -> None:
    before = Decoding(resize="none", decoder=1)
    for name in ("rgb.png", "rgb.jpg", "gray.png", "palette.png", "cmyk.tif"):
        assert np.array_equal(decoded(files / name, SHAPE, before), decoded(files / name, SHAPE, NATURAL)), name
    turned = decoded(files / "turned_3.png", SHAPE, before)
    assert np.array_equal(turned, SCENE[::-1, ::-1])
    assert not np.array_equal(decoded(files / "rgba_noise.png", SHAPE, before), on(255, SCENE, OPAQUE))
