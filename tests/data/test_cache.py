"""Decoded images are reused between runs, shared between processes, and never trusted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data import prepare
from dlrun.data.arrays import arrays
from dlrun.data.audit import audit
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory, Streamed
from dlrun.data.splits import BadData
from support import warm
from support.photos import KEYS, photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    top = tmp_path / "photos"
    for number in range(40):
        path = top / "train" / ("ant" if number % 2 else "bee") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number // 2 if number < 4 else number, (8, 8, 3)).save(path)
    return top


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files decoded so far."""
    seen: list[str] = []
    original = Streamed.decode

    def decode(self: Streamed, number: int) -> np.ndarray:
        seen.append(self.files[number].name)
        return original(self, number)

    monkeypatch.setattr(Streamed, "decode", decode)
    return seen


def ready(photos: Path, cache: Path | str, **keys):
    return prepare(image_folder(str(photos)), **{**KEYS, **keys}, cache=str(cache))


def entry(cache: Path, suffix: str) -> Path:
    return max(cache.glob(f"*.{suffix}"), key=lambda path: path.stat().st_size)


def test_a_second_run_decodes_nothing_and_gets_the_same(photos, tmp_path, decodes):
    plain = ready(photos, "none")
    first = ready(photos, tmp_path / "cache")
    decodes.clear()
    second = ready(photos, tmp_path / "cache", memory_gb=0.0)  # mapped, whatever the memory limit
    assert not decodes
    for data in (first, second):
        assert isinstance(data.train.images, InMemory)
        assert data.record() == plain.record()  # with the hash of all pixels
        index = torch.arange(len(data.train))
        assert torch.equal(data.train.images.take(index), plain.train.images.take(index))
    assert audit(second).findings == audit(plain).findings != []


def test_a_file_that_changed_is_seen(photos, tmp_path, decodes):
    before = ready(photos, tmp_path / "cache").record()["content_sha256"]
    photo(99, (8, 8, 3)).save(photos / "train" / "ant" / "5.png")
    assert ready(photos, tmp_path / "cache").record()["content_sha256"] != before


@pytest.mark.parametrize("damage", ["pixel", "short", "no json", "json", "foreign", "no pixels"])
def test_a_damaged_entry_is_built_again(photos, tmp_path, decodes, damage):
    cache = tmp_path / "cache"
    expected = ready(photos, cache).record()
    pixels, about = entry(cache, "pixels"), entry(cache, "json")
    content = bytearray(pixels.read_bytes())
    decodes.clear()
    match damage:
        case "pixel":
            content[1000] ^= 1
            pixels.write_bytes(content)
        case "short":
            pixels.write_bytes(content[:-1])
        case "no json":
            about.unlink()
        case "json":
            about.write_text("[1, 2")
        case "foreign":
            about.write_text(json.dumps(json.loads(about.read_text()) | {"key": "another"}))
        case "no pixels":
            pixels.unlink()
    assert ready(photos, cache).record() == expected
    assert len(decodes) == len(json.loads(entry(cache, "json").read_text())["digests"]) // 32
    decodes.clear()
    ready(photos, cache)
    assert not decodes


def test_bad_files_are_told_from_the_cache_and_tried_again(photos, tmp_path, decodes):
    cache, broken = tmp_path / "cache", photos / "train" / "ant" / "7.png"
    broken.write_bytes(b"no image")
    told = [ready(photos, cache, on_bad="drop").dropped for _ in range(2)]
    assert [bad.id for bad in told[1]] == ["train/ant/7.png"]
    assert told[0] == told[1] == ready(photos, "none", on_bad="drop").dropped
    decodes.clear()
    with pytest.raises(BadData, match=r"^train/ant/7\.png: "):
        ready(photos, cache)
    assert decodes == ["7.png"]


def test_a_full_disk_costs_the_cache_and_nothing_else(photos, tmp_path, monkeypatch, capsys):
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    data = ready(photos, tmp_path / "cache")
    assert data.record() == ready(photos, "none").record()
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_folder_in_the_way_and_a_bound_too_small(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert len(ready(photos, tmp_path / "file" / "cache").train)
    message = capsys.readouterr().err
    assert str(tmp_path / "file") in message
    assert "dataset.cache=" in message
    ready(photos, tmp_path / "cache", cache_gb=1e-8)
    assert not list(tmp_path.glob("cache/*"))


def test_the_longest_unused_leaves(photos, tmp_path):
    size = 40 * 8 * 8 * 3 / 1e9
    for seed in range(3):
        ready(photos, tmp_path / "cache", split_seed=seed, cache_gb=size * 1.5)
    assert sum(path.stat().st_size for path in tmp_path.glob("cache/*.pixels")) <= size * 1.5 * 1e9


CHILD = """
import sys
from dlrun.data import images
from dlrun.data.arrays import arrays
from dlrun.data.files import image_folder
from dlrun.data import prepare
count, original = [], images.Streamed.decode
images.Streamed.decode = lambda self, n: (count.append(n), original(self, n))[1]
data = prepare(image_folder(sys.argv[1]), val_fraction=.2, test_fraction=.2, split_seed=0, split="position",
               cache=sys.argv[2])
print(len(count), data.record()["content_sha256"])
"""


def test_of_processes_that_start_together_one_decodes(photos, tmp_path):
    words = [sys.executable, "-c", CHILD, str(photos), str(tmp_path / "cache")]
    children = [warm.popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert sum(int(count) for count, _ in said) == len(ready(photos, "none").train) + len(ready(photos, "none").val)
    assert said[0][1] == said[1][1]


def mapped_at(pixels: torch.Tensor) -> str:
    """The file whose mapping holds the memory of a tensor; empty or [heap] for private memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= pixels.data_ptr() < high:
            return line.split()[5] if len(line.split()) > 5 else ""
    raise AssertionError("memory that is not mapped")


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pixels_in_memory_are_mapped_where_they_are_to_be_shared(tmp_path, kind):
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 255, (60, 8, 8, 3)).astype(kind) for name in ("x", "x_test")}
    np.savez(tmp_path / "mine.npz", **x, y=np.arange(60) % 3, y_test=np.arange(60) % 3)

    def ready(**keys):
        return prepare(arrays(str(tmp_path / "mine.npz")), **{**KEYS, "limit": 40, **keys})

    plain, first, second = ready(), ready(cache=str(tmp_path / "c"), share=True), ready(cache=str(tmp_path / "c"))
    assert second.record(final=True) == plain.record(final=True) == first.record(final=True)
    assert str(tmp_path / "c") not in mapped_at(second.train.images.pixels)
    places = [mapped_at(split.images.pixels) for split in (first.train, first.val, first.test().split)]
    assert places[0] == places[1] != places[2]
    assert all(place.startswith(str(tmp_path / "c")) and place.endswith(".pixels") for place in places)
    # an entry with other content is rewritten
    entry(tmp_path / "c", "pixels").write_bytes(bytes(entry(tmp_path / "c", "pixels").stat().st_size))
    assert ready(cache=str(tmp_path / "c"), share=True).record(final=True) == plain.record(final=True)
    assert mapped_at(ready(cache=str(tmp_path / "c"), cache_gb=1e-6, share=True).train.images.pixels) in ("", "[heap]")
    assert mapped_at(ready(cache="none", share=True).train.images.pixels) in ("", "[heap]")
