"""Decoded images are reused between runs, shared between processes, and never trusted."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data import cache_files, identity, images, packs, prepare, scan
from dlrun.data.arrays import arrays
from dlrun.data.audit import audit
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory, Streamed
from dlrun.data.splits import BadData
from dlrun.errors import UserError
from support import warm
from support.photos import KEYS, MEMORY, photo


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
    original = images.decoded

    def decoded(path: Path, *how: object) -> np.ndarray:
        seen.append(path.name)
        return original(path, *how)

    monkeypatch.setattr(images, "decoded", decoded)
    return seen


def ready(photos: Path, cache: Path | str, image_size: int = 0, **keys):
    return prepare(image_folder(str(photos), image_size), **{**KEYS, **keys}, cache=str(cache))


def entry(cache: Path, suffix: str) -> Path:
    return max(cache.glob(f"*.{suffix}"), key=lambda path: path.stat().st_size)


def file(photos: Path, name: str) -> Path:
    return photos / "train" / ("ant" if int(name) % 2 else "bee") / f"{name}.png"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


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


def test_only_new_content_is_decoded(photos, tmp_path, decodes):
    def new(**keys: object) -> list[str]:
        decodes.clear()
        data = ready(photos, tmp_path / "cache", **keys)
        data.test()
        seen = decodes.copy()
        assert data.record(final=True) == ready(photos, "none", **keys).record(final=True)
        return sorted(seen)

    assert len(new()) == 38  # of 40 two are copies
    for keys in ({"split_seed": 3}, {"test_seed": 5}, {"limit": 12}, {"folds": 3, "fold": 2}, {"split": "content"}):
        assert new(**keys) == [], keys
    file(photos, "5").touch()
    file(photos, "7").rename(file(photos, "9").with_name("moved.png"))
    file(photos, "8").unlink()
    assert new() == []
    photo(98, (8, 8, 3)).save(file(photos, "41"))
    photo(99, (8, 8, 3)).save(file(photos, "5"))
    assert new(split_seed=1) == ["41.png", "5.png"]


DAMAGED = {"pixel": 1, "short": 1, "half": 16, "no index": 32, "index": 32, "record": 1, "foreign": 32, "no pack": 32}
DAMAGED |= {"head": 32}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_damaged_is_decoded_again(photos, tmp_path, decodes, damage, capsys):
    cache = tmp_path / "cache"
    expected = ready(photos, cache).record()
    pack, index = entry(cache, "pack"), entry(cache, "index")
    content, records = bytearray(pack.read_bytes()), bytearray(index.read_bytes())
    decodes.clear()
    match damage:
        case "pixel":
            content[-1000] ^= 1
            pack.write_bytes(content)
        case "short":
            pack.write_bytes(content[:-1])
        case "half":
            pack.write_bytes(content[: 4096 + (len(content) - 4096) // 2])
        case "no index":
            index.unlink()
        case "index":
            index.write_text("[1, 2")
        case "record":
            records[-2] ^= 1
            index.write_bytes(records)
        case "foreign":
            records[10] ^= 1
            index.write_bytes(records)
        case "no pack":
            pack.unlink()
        case "head":
            pack.write_bytes(content[:4000])
    capsys.readouterr()
    assert ready(photos, cache).record() == expected
    assert abs(len(decodes) - DAMAGED[damage]) <= 2  # copies
    said = lines(capsys)
    assert [str(pack) in line for line in said] == [True] * (damage not in ("no pack", "head"))
    decodes.clear()
    ready(photos, cache)
    assert not decodes
    assert not lines(capsys)


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


def test_a_full_disk_costs_what_did_not_fit(photos, tmp_path, monkeypatch, capsys, decodes):
    written, original = [], packs._write

    def full(to, data: bytes) -> None:
        written.append(data)
        if len(written) > 2:  # the first batch and its records fit
            to.write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"file {len(written)}")
        original(to, data)

    monkeypatch.setattr(packs, "_write", full)
    monkeypatch.setattr(scan, "FILES", 10)
    plain = ready(photos, "none").record()
    assert ready(photos, tmp_path / "cache").record() == plain
    assert [os.strerror(errno.ENOSPC) in line for line in lines(capsys)] == [True]
    monkeypatch.setattr(packs, "_write", original)
    decodes.clear()
    assert ready(photos, tmp_path / "cache").record() == plain
    assert len(decodes) == 30 - 10
    assert not lines(capsys)


@pytest.mark.parametrize("memory_gb", MEMORY)
def test_a_cache_that_may_only_be_read_serves_what_it_has(photos, tmp_path, monkeypatch, capsys, decodes, memory_gb):
    ready(photos, tmp_path / "cache").test()
    photo(98, (8, 8, 3)).save(file(photos, "41"))
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.glob("cache/*"))

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache_files, "_taken", refused)
    monkeypatch.setattr("os.utime", refused)
    decodes.clear()
    data = ready(photos, tmp_path / "cache", memory_gb=memory_gb)
    data.test()
    assert set(decodes) == {"41.png"}
    (line,) = lines(capsys)
    assert "1 of " in line
    assert os.strerror(errno.EROFS) in line
    assert data.record(final=True) == ready(photos, "none", memory_gb=memory_gb).record(final=True)
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.glob("cache/*")) == before


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fail a test that waits for what never comes."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


WAYS = ("link", "second name", "pipe", "folder")
PLANTED = [(suffix, kind) for suffix in ("pack", "index", "hashes", "lock", "tmp") for kind in WAYS]
FAST = {*((suffix, "link") for suffix, _ in PLANTED), ("index", "pipe"), ("hashes", "pipe"), ("lock", "second name")}


@pytest.mark.parametrize(
    ("suffix", "kind"), [pytest.param(*one, marks=[pytest.mark.slow] * (one not in FAST)) for one in PLANTED]
)
def test_what_another_put_into_the_folder_leads_nowhere(photos, tmp_path, monkeypatch, suffix, kind, in_time):
    """No file of the user is read as a cache, written to, cut or deleted, and nothing waits."""
    monkeypatch.setattr(identity, "UNSETTLED", -1e9)  # digests of new files are kept too
    cache, mine = tmp_path / "cache", tmp_path / "mine"
    expected = ready(photos, cache).record()
    names = sorted({path.stem for path in cache.iterdir()})
    assert len(names) == 2  # of the images, and of the digests of their files
    for name in names:
        path = cache / f"{name}.{suffix}"
        kept = path.read_bytes() if path.exists() else b""
        mine.write_bytes(kept[:-1] if kind != "second name" else b"mine")
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            (path.symlink_to if kind == "link" else path.hardlink_to)(mine)
        photo(len(name) + sum(name.encode()), (8, 8, 3)).save(file(photos, "5"))
        before = mine.read_bytes()
        data = ready(photos, cache, cache_gb=1e-4)
        assert mine.read_bytes() == before
        assert data.record() == ready(photos, "none").record() != expected


def test_a_folder_in_the_way_and_a_bound_too_small(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert len(ready(photos, tmp_path / "file" / "cache").train)
    message = capsys.readouterr().err
    assert str(tmp_path / "file") in message
    assert "dataset.cache=" in message
    ready(photos, tmp_path / "cache", cache_gb=1e-8)
    assert not list(tmp_path.glob("cache/*"))


def test_a_file_that_changes_while_it_is_read_is_not_stored(photos, tmp_path, monkeypatch):
    original = Streamed.decode

    def decode(self: Streamed, number: int) -> np.ndarray:
        if self.files[number].name == "11.png":
            photo(99, (8, 8, 3)).save(self.files[number])
        return original(self, number)

    monkeypatch.setattr(Streamed, "decode", decode)
    with pytest.raises(UserError, match=r"11\.png"):
        ready(photos, tmp_path / "cache")
    monkeypatch.setattr(Streamed, "decode", original)
    assert ready(photos, tmp_path / "cache").record() == ready(photos, "none").record()


def total(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.iterdir())


def aged(cache: Path, seconds: float) -> None:
    """Let everything have been used some time earlier."""
    for path in cache.iterdir():
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_the_longest_unused_leaves_and_what_is_used_stays(photos, tmp_path, decodes, capsys):
    cache, bound = tmp_path / "cache", 60_000  # two of three
    for side in (12, 14, 16):
        ready(photos, cache, image_size=side, cache_gb=bound / 1e9)
        aged(cache, 60)
        assert total(cache) <= bound
    decodes.clear()
    kept = ready(photos, cache, image_size=16, cache_gb=bound / 1e9)
    assert not decodes
    assert len(list(cache.glob("*.pack"))) == 2
    ready(photos, cache, image_size=12, cache_gb=bound / 1e9)  # instead of 14
    assert decodes
    decodes.clear()
    other = ready(photos, cache, image_size=12, cache_gb=bound / 1e9)
    assert not decodes
    capsys.readouterr()
    ready(photos, cache, image_size=14, cache_gb=bound / 1e9)  # nothing is free
    assert lines(capsys)
    assert total(cache) <= bound
    decodes.clear()
    assert len(kept.train) == len(other.train)
    ready(photos, cache, image_size=16, cache_gb=bound / 1e9)
    ready(photos, cache, image_size=12, cache_gb=bound / 1e9)
    assert not decodes


def test_rows_that_nobody_needs_make_room_for_others(photos, tmp_path, decodes):
    cache = tmp_path / "cache"
    for turn in range(6):  # each time half of the images have new content
        for number in range(0, 40, 2):
            photo(100 * turn + number, (8, 8, 3)).save(file(photos, f"{number}"))
        decodes.clear()
        assert ready(photos, cache, cache_gb=25_000 / 1e9).record() == ready(photos, "none").record()
        assert total(cache) <= 25_000
    decodes.clear()
    ready(photos, cache, cache_gb=25_000 / 1e9)
    assert not decodes


MINE = {
    "notes.txt": b"mine",
    "0" * 32 + ".json": b'{"key": "value"}',
    "1" * 32 + ".pack": b"a parcel",
    "photo.pixels": b"x",
}
BEFORE = {
    "a" * 32 + ".json": b'{"key": "' + b"a" * 32 + b'", "digests": ""}',
    "a" * 32 + ".pixels": bytes(9000),
    "a" * 32 + ".lock": b"",
    "b" * 32 + ".lock": b"",
    "b" * 32 + ".tmp": bytes(9000),  # of a killed process
    "c" * 32 + ".hashes": b"1" + bytes(64),
    "c" * 32 + ".hashes.17.tmp": b"1" + bytes(40),
}


def test_files_of_version_1_are_counted_and_leave_and_others_stay(photos, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, content in (MINE | BEFORE).items():
        (cache / name).write_bytes(content)
    (cache / ("d" * 32 + ".pack")).symlink_to(cache / "notes.txt")
    mine = sorted([*MINE, "d" * 32 + ".pack"])
    aged(cache, 3600)
    bound = 25_000 / 1e9  # either the new pack, and one of the old ones
    ready(photos, cache, cache_gb=bound)
    left = {path.name for path in cache.iterdir()}
    assert ("b" * 32 + ".tmp" in left, "a" * 32 + ".pixels" in left) == (False, True)
    ready(photos, cache, cache_gb=bound, image_size=10)
    left = {path.name for path in cache.iterdir()}
    assert "a" * 32 + ".pixels" not in left
    assert {name: (cache / name).read_bytes() for name in MINE} == MINE
    cache_files.make_room(cache, 0.0, 0, "")
    assert sorted(path.name for path in cache.iterdir()) == mine


CHILD = """
import sys
from dlrun.data import images
from dlrun.data.files import image_folder
from dlrun.data import prepare
count, original = [], images.decoded
images.decoded = lambda *how: (count.append(how), original(*how))[1]
data = prepare(image_folder(sys.argv[1]), val_fraction=.2, test_fraction=.2, split_seed=0, split="position",
               cache=sys.argv[2])
print(len(count), data.record()["content_sha256"])
"""


def test_of_processes_that_start_together_one_decodes(photos, tmp_path):
    words = [sys.executable, "-c", CHILD, str(photos), str(tmp_path / "cache")]
    children = [warm.popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    plain = ready(photos, "none")
    digests = {digest for split in (plain.train, plain.val) for digest in split.images.marks.digests}
    assert sum(int(count) for count, _ in said) == len(digests)
    assert said[0][1] == said[1][1]


HOLDER = """
import sys, time
from pathlib import Path
from dlrun.data.cache_files import locked
with locked(Path(sys.argv[1]), "decoding photos"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_who_waits_says_for_whom_and_continues_when_that_process_was_killed(photos, tmp_path, monkeypatch, capsys):
    ready(photos, tmp_path / "cache")
    pack = entry(tmp_path / "cache", "pack")
    lock, output = pack.with_suffix(".lock"), tmp_path / "output"
    with open(output, "w") as stdout:
        holder = warm.popen([sys.executable, "-c", HOLDER, str(lock)], stdout=stdout.fileno())
    while not output.read_text():
        time.sleep(0.01)
    ready(photos, tmp_path / "cache")  # all is there: nothing to wait for
    assert not lines(capsys)
    photo(98, (8, 8, 3)).save(file(photos, "41"))
    monkeypatch.setattr(cache_files, "SILENT", 0.05)
    killed = threading.Timer(0.5, holder.kill)
    killed.start()
    ready(photos, tmp_path / "cache")
    holder.wait(timeout=10)
    (line,) = lines(capsys)
    for part in (f"process {holder.pid} ", socket.gethostname(), "decoding photos"):
        assert part in line
    assert re.search(r"\b\d\d:\d\d:\d\d\b.*\b\d+ s\b", line)  # since when, and how long it has waited
    assert not list(tmp_path.glob("cache/*.lock"))


SLOW = """
import sys, time
from dlrun.data import images, prepare, scan
from dlrun.data.files import image_folder
original, scan.FILES = images.decoded, 3
images.decoded = lambda *how: (time.sleep(0.02), original(*how))[1]
prepare(image_folder(sys.argv[1]), val_fraction=.2, test_fraction=.2, split_seed=0, split="position",
        cache=sys.argv[2], workers=1)
print("done", flush=True)
"""


def test_a_build_that_is_killed_is_continued(photos, tmp_path, decodes, capsys):
    cache, plain = tmp_path / "cache", ready(photos, "none").record()
    rng = np.random.default_rng(0)
    decoded = []
    for turn in range(4):
        shutil.rmtree(cache, ignore_errors=True)
        child = warm.popen([sys.executable, "-c", SLOW, str(photos), str(cache)], stdout=subprocess.DEVNULL)
        while not list(cache.glob("*.index")):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.6))
        child.kill()
        child.wait(timeout=10)
        assert child.returncode == -signal.SIGKILL, turn
        decodes.clear()
        assert ready(photos, cache).record() == plain
        decoded.append(len(decodes))
        decodes.clear()
        ready(photos, cache)
        assert not decodes
        assert not lines(capsys)
    assert min(decoded) < 30 - 3


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
    assert all(place.startswith(str(tmp_path / "c")) and place.endswith(".pack") for place in places)
    # an entry with other content is rewritten
    pack = entry(tmp_path / "c", "pack")
    pack.write_bytes(pack.read_bytes()[:-100] + bytes(100))
    assert ready(cache=str(tmp_path / "c"), share=True).record(final=True) == plain.record(final=True)
    assert mapped_at(ready(cache=str(tmp_path / "c"), cache_gb=1e-6, share=True).train.images.pixels) in ("", "[heap]")
    assert mapped_at(ready(cache="none", share=True).train.images.pixels) in ("", "[heap]")
