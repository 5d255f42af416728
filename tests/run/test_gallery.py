"""The worst errors in a report are the images as they are stored: their size, their pixels, and a bound on all."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data.images import InMemory, Streamed
from dlrun.data.splits import Split
from dlrun.run import gallery
from support.commands import TINY, Outcome
from support.pages import page, section


def photo(path: Path, width: int, height: int, seed: int = 0) -> Any:
    """Write a smooth picture in colour; returns its pixels (H, W, 3)."""
    corners = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.asarray(image)


def decoded(found: dict[str, Any]) -> list[Any]:
    parts = np.split(found["originals"], found["ends"][:-1])
    return [Image.open(io.BytesIO(part.tobytes())) for part in parts]


def files(folder: Path, *sizes: tuple[int, int]) -> tuple[Split, list[Any]]:
    """Images of these widths and heights in files, which a network gets as 8 × 8."""
    names = [f"cat/{k}.png" for k in range(len(sizes))]
    pixels = [photo(folder / name, *size, seed=k) for k, (name, size) in enumerate(zip(names, sizes, strict=True))]
    images = Streamed([folder / name for name in names], (8, 8, 3), resize=True)
    return Split(images, torch.zeros(len(names), dtype=torch.int64), names), pixels


def shown(split: Split) -> list[Any]:
    rows = torch.arange(len(split))
    return decoded(gallery.originals(split, rows, split.images.take(rows).numpy()))


def test_a_file_is_shown_in_the_size_it_has_on_disk_up_to_the_bound(tmp_path: Path) -> None:
    split, pixels = files(tmp_path, (200, 100), (600, 400), (3200, 1000))
    small, middle, large = shown(split)
    assert [image.size for image in (small, middle, large)] == [(200, 100), (600, 400), (gallery.SIDE, 500)]
    assert (np.asarray(small) == pixels[0]).all()  # exact
    assert np.abs(np.asarray(middle).astype(int) - pixels[1]).mean() < 3


def test_an_array_is_shown_as_it_is(tmp_path: Path) -> None:
    for side in (8, 300):
        pixels = np.stack([photo(tmp_path / "x.png", side, side, seed=k) for k in range(2)])
        split = Split(InMemory(torch.from_numpy(pixels)), torch.zeros(2, dtype=torch.int64), ["val/0", "val/1"])
        found = shown(split)
        assert [image.size for image in found] == [(side, side)] * 2
        assert np.abs(np.asarray(found[1]).astype(int) - pixels[1]).mean() < (3 if side > gallery.EXACT else 1e-9)


def test_a_file_that_is_gone_is_shown_as_the_network_got_it(tmp_path: Path) -> None:
    split, _ = files(tmp_path, (40, 40), (40, 40))
    rows = torch.arange(2)
    taken = split.images.take(rows).numpy()
    (tmp_path / "cat/0.png").write_bytes(b"no image")
    gone, there = decoded(gallery.originals(split, rows, taken))
    assert (np.asarray(gone) == taken[0]).all()
    assert there.size == (40, 40)


def test_all_together_stay_below_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = files(tmp_path, *[(1000, 800)] * 4)
    rows = torch.arange(4)
    whole = gallery.originals(split, rows, split.images.take(rows).numpy())
    assert {image.size for image in decoded(whole)} == {(1000, 800)}
    monkeypatch.setattr(gallery, "ROOM", whole["originals"].nbytes - 1)
    less = gallery.originals(split, rows, split.images.take(rows).numpy())
    assert less["originals"].nbytes <= gallery.ROOM
    assert {image.size for image in decoded(less)} == {(800, 640)}


def test_a_run_without_errors_keeps_no_image() -> None:
    split = Split(InMemory(torch.zeros(1, 8, 8, 1, dtype=torch.uint8)), torch.zeros(1, dtype=torch.int64), ["val/0"])
    found = gallery.originals(split, torch.arange(0), np.zeros((0, 8, 8, 1), np.uint8))
    assert found["originals"].size == found["ends"].size == 0


@pytest.fixture
def reported(here: Path, dlrun: Callable[..., Outcome]) -> Path:
    """A run on photos of 320 × 240 pixels whose classes nothing tells apart, trained at 8 × 8."""
    for k in range(40):
        photo(here / f"photos/{'ab'[k % 2]}/{k}.jpg", 320, 240, seed=k)
    words = ("dataset=image_folder", "dataset.root=photos", "dataset.image_size=8", "dataset.val_fraction=0.4")
    done = dlrun("train", *TINY, *words, "trainer.report=true", "run.dir=r")
    assert done.code == 0, done.err
    return here / "r"


def pictures(run: Path) -> list[Any]:
    found = re.findall(r"src='data:image/(\w+);base64,([^']*)'", section(page(run), "Worst validation errors"))
    images = [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in found]
    assert all(kind == str(image.format).lower() for kind, image in images)
    return [image for _, image in images]


def test_the_page_of_a_run_shows_the_originals(reported: Path, dlrun: Callable[..., Outcome]) -> None:
    found = pictures(reported)
    assert len(found) > 2
    assert {image.size for image in found} == {(320, 240)}
    shown = section(page(reported), "Worst validation errors")
    figures = re.findall(r"<figure data-of='(c\d+) (p\d+-\d+)'", shown)
    assert len(figures) == len(found)
    assert set(re.findall(r"<option value='(\w+-?\d*)'", shown)) == {name for of in figures for name in of}
    arrays = dict(np.load(reported / "showcase.npz"))
    # an older run has only what the network got, and a file of others may hold anything
    for changed in (
        {"originals": None, "ends": None},
        {"originals": arrays["originals"][::-1]},
        {"ends": np.array("x")},
    ):
        kept = {name: value for name, value in (arrays | changed).items() if value is not None}
        np.savez(reported / "showcase.npz", **kept)
        assert dlrun("report", str(reported)).code == 0
        assert {image.size for image in pictures(reported)} == {(8, 8)}
