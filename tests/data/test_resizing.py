"""Decoder 3: as decoder 2, resized by torch's kernel, whose values differ by a bounded amount."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data.decoding import Decoding, decoded
from dlrun.data.images import Streamed
from dlrun.data.resizing import DECODER, resized
from support.tars import jpeg


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A large and a small JPEG, a wide one, one in gray, one turned by EXIF, a PNG with alpha, one with a palette."""
    files = []
    for n, shape in enumerate([(75, 100, 3), (20, 16, 3), (40, 90, 3), (50, 60)]):
        files.append(tmp_path / f"{n}.jpg")
        files[-1].write_bytes(jpeg(n, shape, 95))
    turned = Image.open(io.BytesIO(jpeg(9, (40, 60, 3))))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    alpha = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    Image.fromarray(alpha[..., :3]).quantize(16).save(tmp_path / "palette.png")
    return [*files, *(tmp_path / name for name in ("turned.jpg", "alpha.png", "palette.png"))]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 2),
        ({"crop": 0.875}, 2),
        ({"resize": "squash"}, 2),
        ({"interpolation": "bicubic"}, 0),
        ({"resize": "letterbox"}, 0),
        ({"interpolation": "area"}, 0),
    ],
)
def test_values_differ_from_decoder_2_by_little(
    photos: list[Path], changes: dict[str, object], most: int, channels: int
) -> None:
    how = replace(Decoding(), **changes)  # type: ignore[arg-type]
    shape = (32, 32, channels)
    for path in photos:
        old = decoded(path, shape, how).astype(int)
        new = Streamed([path], shape, True, decoding=replace(how, decoder=DECODER)).decode(0)
        assert new.dtype == np.uint8
        assert new.shape == shape
        assert np.abs(new - old).max() <= most, path.name


def test_an_image_of_the_size_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1, (32, 32, 3)))
    known = np.asarray(Image.open(tmp_path / "a.jpg"))
    found = decoded(tmp_path / "a.jpg", (32, 32, 3), Decoding(decoder=DECODER), resized)
    assert np.array_equal(found, known)


def test_decoding_threads_start_no_compute_threads(photos: list[Path]) -> None:
    images = Streamed(photos[:1] * 40, (224, 224, 3), True, decoding=Decoding(decoder=DECODER))

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: threading.get_ident(), range(2)))
        before = count()
        list(pool.map(images.take, torch.arange(40).split(10)))
        assert count() <= before + 1  # the pool starts its second thread when it needs one


def test_a_record_keeps_the_decoder() -> None:
    how = Decoding(decoder=DECODER)
    assert Decoding.of(how.record()) == how
    with pytest.raises(ValueError, match="decoding"):
        Decoding.of({**how.record(), "decoder": 4})
