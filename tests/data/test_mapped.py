"""A mapped file that another program cuts short is one line, not a signal; who waits for a cache says for whom."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data import cache_files, prepare
from dlrun.data.arrays import arrays
from dlrun.data.cache import Cache
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory
from dlrun.errors import UserError
from support.photos import KEYS, photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(20):
        path = tmp_path / "photos" / "train" / ("ant" if number % 2 else "bee") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number, (64, 64, 3)).save(path)
    return tmp_path / "photos"


def test_a_pack_that_is_cut_short_is_one_line(photos: Path, tmp_path: Path) -> None:
    data = prepare(image_folder(str(photos), 0), **KEYS, cache=str(tmp_path / "cache"))
    images = data.train.images
    assert isinstance(images, InMemory)
    images.take(torch.arange(len(images)))
    (pack,) = (tmp_path / "cache").glob("*.pack")
    os.truncate(pack, 5000)
    with pytest.raises(UserError, match=pack.name) as refused:
        images.take(torch.arange(len(images)))
    assert refused.value.code == 1
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=pack.name):
        images.to(torch.device("cpu"))


def test_shared_pixels_that_are_cut_short_are_one_line(tmp_path: Path) -> None:
    pixels = torch.arange(60 * 32 * 32 * 3, dtype=torch.int64).to(torch.uint8).reshape(60, 32, 32, 3)
    shared = Cache(tmp_path, 1.0).shared(pixels)
    assert shared.data_ptr() != pixels.data_ptr()
    (pack,) = tmp_path.glob("*.pack")
    os.truncate(pack, 5000)
    with pytest.raises(UserError, match=pack.name):
        InMemory(shared).take(torch.arange(60))


def test_an_array_of_a_user_that_is_cut_short_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3)).astype(np.uint8))
    np.save(tmp_path / "y.npy", np.arange(60) % 3)
    data = prepare(arrays(str(tmp_path)), **KEYS)
    os.truncate(tmp_path / "x.npy", 5000)
    with pytest.raises(UserError, match=r"x\.npy"):
        data.train.images.take(torch.arange(len(data.train.images)))


def held_once(lock: Path) -> None:
    with cache_files.locked(lock, "reading"):
        pass


def test_who_waits_for_a_cache_says_for_whom_and_for_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_files, "SILENT", 0.1)
    monkeypatch.setattr(cache_files, "REPEATED", 0.4)
    for owner in (b"", b'dlrun {"pid": 7, "host": "elsewhere", "since": 0, "doing": "decoding"}'):
        lock = tmp_path / "a.lock"
        lock.write_bytes(owner)
        with open(lock, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            taken = threading.Thread(target=held_once, args=(lock,))
            taken.start()
            time.sleep(0.7)
        taken.join(10)
        said = capsys.readouterr().err.splitlines()
        assert said
        assert all(("process 7 on elsewhere" if owner else str(lock)) in line for line in said)
        assert all(" s now" in line for line in said)
        lock.unlink(missing_ok=True)
