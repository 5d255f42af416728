"""Tar files read in place: the samples that webdataset makes of them, any order, and one line for each wrong input."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import prepare, tar_lists
from dlrun.data.bad import BadData
from dlrun.data.cache_files import make_room
from dlrun.data.images import read
from dlrun.data.listing import SPECIAL
from dlrun.data.tars import LINKS, OUTSIDE, PICKLED
from dlrun.errors import UserError
from dlrun.training.shared_data import read_data
from support.commands import Outcome
from support.tars import Given, jpeg, labelled, tar

pytest.importorskip("braceexpand", reason="the extra shards is not installed")

from dlrun.data.shards import shards

SIZE = {"image_size": 8, "decoder": 3}
STREAMED = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 0, "memory_gb": 0.0}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two tars of twenty samples."""
    for k in range(2):
        tar(tmp_path / f"train-{k:03}.tar", labelled(range(20 * k, 20 * k + 20)))
    return tmp_path


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the extra shards is not installed")
    odd = [("a/1.b.png", b"p"), ("a/1.cls", b"0"), ("a.b/2.jpg", b"j"), ("a.b/2.txt", b"x"), ("a/1.x.cls", b"7")]
    file = tar(tmp_path / "odd.tar", [*labelled(range(3)), *odd[:4]])
    with open(file, "rb") as stream:
        members = [{"__url__": "odd.tar", **one} for one in webdataset.tariterators.tar_file_iterator(stream)]
    theirs = webdataset.tariterators.group_by_keys(members)
    known = [(one["__key__"], sorted(key for key in one if not key.startswith("__"))) for one in theirs]
    from dlrun.data.listing import Account
    from dlrun.data.tars import samples

    ours = [(one.key, sorted([*one.images, *one.labels])) for one in samples(file, Account())]
    assert ours == known


def test_images_are_read_at_their_place_in_any_order(two: Path) -> None:
    raw = shards(str(two / "train-{000..001}.tar"), image_size=[12, 16])
    assert raw.classes == ["0", "1"]
    assert raw.train.ids[0] == "train-000.tar/0000.jpg"
    assert raw.train.labels.tolist() == [n % 2 for n in range(40)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = torch.cat(list(read(raw.train.images, order.split(7), workers=2))).numpy()
    known = [np.asarray(Image.open(io.BytesIO(jpeg(int(n))))) for n in order]
    assert np.array_equal(found, np.stack(known))


@pytest.mark.parametrize(
    ("ending", "content", "keys", "classes"),
    [
        ("cls", (b"0", b" 1\n"), {}, ["0", "1"]),
        ("cls", (b"ant", b"bee"), {}, ["ant", "bee"]),
        ("txt", (b"bee", b"ant"), {}, ["ant", "bee"]),
        ("json", (b'{"label": 0}', b'{"label": 1}'), {}, ["0", "1"]),
        ("json", (b'{"x": "cat"}', b'{"x": "dog"}'), {"label": "json.x"}, ["cat", "dog"]),
        ("cls", (b"3", b"7"), {"labels": "names"}, ["3", "7"]),
    ],
)
def test_labels(tmp_path: Path, ending: str, content: tuple[bytes, bytes], keys: Any, classes: list[str]) -> None:
    pairs = [((f"{n}.jpg", jpeg(n)), (f"{n}.{ending}", content[n % 2])) for n in range(4)]
    raw = shards(str(tar(tmp_path / "a.tar", [one for pair in pairs for one in pair])), **SIZE, **keys)
    assert raw.classes == classes
    words = [content[n % 2].decode() for n in range(4)]
    assert all(raw.classes[label] in word for label, word in zip(raw.train.labels.tolist(), words, strict=True))


def test_splits_of_their_own_and_globs(two: Path) -> None:
    raw = shards(str(two / "train-*0.tar"), test_urls=[str(two / "train-001.tar")], **SIZE)
    assert raw.test is not None
    assert [len(raw.train), len(raw.test())] == [20, 20]


def link(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


class Trap:
    """Unpickling this writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped"),)


def test_hostile_members_are_left_out_and_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = pickle.dumps(Trap())
    members: list[Given] = [
        link("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        link("hard.jpg", tarfile.LNKTYPE, "0000.jpg"),
        link("pipe.jpg", tarfile.FIFOTYPE),
        ("/etc/absolute.jpg", b"x"),
        ("../above.jpg", b"x"),
        *((f"0000.{ending}", trap) for ending in ("pyd", "pth", "pickle", "pkl")),
        *labelled(range(8)),
    ]
    raw = shards(str(tar(tmp_path / "evil.tar", members)), **SIZE)
    assert len(raw.train) == 8
    assert raw.account is not None
    assert raw.account.record() == {LINKS: 2, SPECIAL: 1, OUTSIDE: 2, PICKLED: 4}
    raw.train.images.take(torch.arange(8))
    assert not Path("trapped").exists()


def third(whole: bytes) -> int:
    """Where the third member of a tar begins."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as file:
        return file.getmembers()[2].offset


WHOLE = labelled(range(12))
WRONG: dict[str, tuple[Callable[[bytes], bytes] | list[Given], Any, str]] = {
    "cut in an image": (lambda whole: whole[:5000], {}, "unexpected end of data); make or copy it again"),
    "cut in a header": (lambda whole: whole[:700], {}, "is no whole tar"),
    "cut between members": (lambda whole: whole[: third(whole)], {}, "unexpected end of data"),
    "garbage after a member": (
        lambda whole: whole[: third(whole)] + b"x" * 512,
        {},
        "is no whole tar (no member at byte",
    ),
    "no tar": (lambda whole: b"hello" * 1000, {}, "is no whole tar"),
    "nothing": (lambda whole: b"", {}, "is no whole tar (empty file)"),
    "compressed": (lambda whole: b"\x1f\x8b" + whole, {}, "unpack it with gzip -d"),
    "no samples": ([], {}, "no usable images"),
    "two images": ([("1.a.jpg", b"x"), ("1.b.jpg", b"x")], {}, "a.jpg and b.jpg; type dataset.image=a.jpg"),
    "missing class": (labelled(range(0, 12, 2), 3), {}, ""),
    "gap": ([("1.jpg", b"x"), ("1.cls", b"0"), ("2.jpg", b"x"), ("2.cls", b"2")], {}, "has no 1, but 2"),
    "unknown key": ([("1.jpg", b"x"), ("1.json", b'{"species": 1}')], {}, "type dataset.label=json.KEY"),
    "label key": (WHOLE, {"label": "json"}, "must be auto, cls, txt or json.KEY"),
    "address": (WHOLE, {"urls": "https://host/a.tar"}, "is an address; expected files of this machine"),
    "command": (WHOLE, {"urls": "pipe:touch trapped"}, "is an address"),
    "braces": (WHOLE, {"urls": "a-{00..01.tar"}, "unbalanced braces"),
    "missing shards": (WHOLE, {"urls": "a-{0..9}.tar"}, "10 of 10 files are missing, such as a-0.tar"),
    "twice": (WHOLE, {"urls": ["w.tar", "w.tar"]}, "names w.tar twice"),
    "folder": (WHOLE, {"urls": "."}, "expected a tar file"),
    "number": (WHOLE, {"urls": 5}, "expected a name, such as"),
    "numbers": (WHOLE, {"urls": ["w.tar", 5]}, "expected a name, such as"),
    "nobody's home": (WHOLE, {"urls": "~nobody-here/w.tar"}, "files are missing, such as ~nobody-here/w.tar"),
    "long name": (WHOLE, {"urls": "a" * 5000}, "files are missing"),
    "too many": (WHOLE, {"urls": "a-{0..99999}-{0..99999}.tar"}, "stands for more than 1,000,000 files"),
    "size beyond all bounds": (lambda whole: sized(whole, b"\x80" + b"\x7f" * 11), {}, "is no whole tar"),
    "size below 0": (lambda whole: sized(whole, b"\xff" * 10 + b"\xfe\x00"), {}, "is no whole tar"),
    "size of a long name": (lambda whole: sized(whole, b"\x80" + b"\x7f" * 11, b"L"), {}, "is no whole tar"),
}


def sized(whole: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar whose first header has another size and type, and the checksum of these."""
    header = bytearray(whole[:512])
    header[124:136], header[148:156], header[156:157] = size, b" " * 8, kind
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + whole[512:]


def test_a_file_is_not_named_twice(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two)
    with pytest.raises(UserError, match=r"names .*train-000\.tar twice"):
        shards(["train-000.tar", str(two / "train-000.tar")], **SIZE)


def test_a_number_beyond_64_bits_is_no_label(tmp_path: Path) -> None:
    members = [*labelled(range(4), ending="json")]
    members = [(n, b'{"label": %d}' % 10**30) if n.endswith("json") else (n, c) for n, c in members]  # type: ignore[misc,has-type]
    with pytest.raises(BadData, match=r"a\.tar/0000: has .label.: 1000"):
        shards(str(tar(tmp_path / "a.tar", members)), label="json.label", **SIZE)


@pytest.mark.parametrize("case", [name for name in WRONG if WRONG[name][2]])
def test_wrong_files_are_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, keys, expected = WRONG[case]
    file = tar(Path("w.tar"), WHOLE if callable(content) else content)
    if callable(content):
        file.write_bytes(content(file.read_bytes()))
    with pytest.raises(UserError) as error:
        shards(**{"urls": "w.tar", **SIZE, **keys})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("0003.cls", b"cat"), "has 'cat' in .cls"),
        (("0003.cls", b""), "has an empty .cls"),
        (("0003.cls", b"1" * 70_000), "has a .cls of 70,000 bytes"),
        (("0003.cls.x", b""), "has no label"),
        (("0003.cls", b"\xff\xfe\xff"), ".cls is no UTF-8 text"),
    ],
)
def test_samples_without_a_usable_label_are_bad(member: Given, reason: str, tmp_path: Path) -> None:
    members = [member if isinstance(one, tuple) and one[0] == "0003.cls" else one for one in labelled(range(12))]
    file = str(tar(tmp_path / "a.tar", members))
    with pytest.raises(BadData, match=r"a\.tar/0003"):
        shards(file, **SIZE)
    raw = shards(file, on_bad="drop", **SIZE)
    assert [len(raw.train), len(raw.bad)] == [11, 1]
    assert raw.bad[0].reason.startswith(reason)


def test_a_corrupt_image_is_named_and_dropped(tmp_path: Path) -> None:
    members = [(n, c[: len(c) // 2]) if n == "0005.jpg" else (n, c) for n, c in labelled(range(30))]  # type: ignore[misc,has-type]
    raw = shards(str(tar(tmp_path / "a.tar", members)), **SIZE)
    with pytest.raises(BadData, match=r"a\.tar/0005\.jpg: cannot be read"):
        prepare(raw, **STREAMED)
    data = prepare(raw, on_bad="drop", **STREAMED)
    data.test()
    assert len(data.train) + len(data.val) + len(data.test().split) == 29


def test_a_tar_that_changes_under_training_is_an_error(two: Path) -> None:
    raw = shards(str(two / "train-000.tar"), **SIZE)
    tar(two / "train-000.tar", labelled(range(1, 21)))
    with pytest.raises(UserError, match="was changed while"):
        raw.train.images.take(torch.arange(2))


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for k in range(60):
        tar(tmp_path / f"{k:02}.tar", labelled([k, k + 1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
    try:
        raw = shards(str(tmp_path / "{00..59}.tar"), **SIZE)
        assert len(raw.train.images.take(torch.arange(120))) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WORDS = (
    "dataset=shards", "dataset.urls=train-{000..001}.tar", "dataset.image_size=8", "dataset.cache=none",
    "dataset.memory_gb=0", "model=mlp", "model.width=4", "trainer.threads=1", "trainer.report=false",
    "trainer.batch_size=8", "trainer.diagnostics=false", "check=none", "augment=crop_flip",
)  # fmt: skip


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder, "checkpoints/last.pt"), weights_only=True)["model"]


def test_a_resumed_run_ends_with_the_same_bits_streamed_or_in_memory(
    two: Path, here: Path, dlrun: Callable[..., Outcome]
) -> None:
    for file in two.glob("*.tar"):
        file.replace(here / file.name)
    whole = dlrun("train", *WORDS, "trainer.epochs=3", "run.dir=whole")
    assert whole.code == 0, whole.err
    assert dlrun("train", *WORDS, "trainer.epochs=3", "run.dir=parts", "trainer.stop_after=1").code == 0
    assert dlrun("resume", "parts").code == 0
    held = [word for word in WORDS if not word.startswith("dataset.memory_gb")]
    assert dlrun("train", *held, "trainer.epochs=3", "run.dir=held").code == 0
    for other in ("parts", "held"):
        assert all(torch.equal(one, weights(other)[name]) for name, one in weights("whole").items())


@pytest.mark.slow
def test_verbs_take_tars(two: Path, here: Path, dlrun: Callable[..., Outcome]) -> None:
    for file in two.glob("*.tar"):
        file.replace(here / file.name)
    assert dlrun("train", *WORDS, "trainer.epochs=1", "run.dir=run").code == 0
    predicted = dlrun("predict", "run", "train-000.tar", "--out", "p.csv")
    assert predicted.code == 0, predicted.err
    assert [line.split(",")[0] for line in Path("p.csv").read_text().splitlines()[1:3]] == [
        "train-000.tar/0000.jpg",
        "train-000.tar/0001.jpg",
    ]
    scored = dlrun("evaluate", "run", "train-001.tar", "--out", "scored")
    assert scored.code == 0, scored.err
    assert "20 images" in scored.out
    exported = dlrun("export", "run", "--to", "torch_export", "--out", "run.pt2")
    assert exported.code == 0, exported.err
    assert "2 of 255" in exported.out  # the example beside it resizes without torch
    own = dlrun("evaluate", "run", "--out", "own")
    assert own.code == 0, own.err
    swept = dlrun("train", "-m", *WORDS, "trainer.epochs=1", "optimizer.lr=0.1,0.01", "sweep.dir=swept")
    assert swept.code == 0, swept.err
    assert "2 completed" in swept.out


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["processor", "device"])
def test_killed_in_the_middle_of_an_epoch_it_ends_with_the_same_bits(decoder: str, tmp_path: Path) -> None:
    for k in range(2):
        tar(tmp_path / f"train-{k:03}.tar", labelled(range(400 * k, 400 * k + 400)))
    words = [sys.executable, "-m", "dlrun", "train", *WORDS, f"dataset.jpeg={decoder}", "trainer.epochs=12"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DLRUN_CACHE": str(tmp_path / "cache")}
    subprocess.run([*words, "run.dir=whole"], cwd=tmp_path, env=env, check=True, capture_output=True)
    killed = 0
    command = [*words, "run.dir=parts"]
    while True:
        child = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = tmp_path / "parts" / "metrics.csv"
        before = metrics.read_text() if metrics.exists() else ""
        while child.poll() is None and (not metrics.exists() or metrics.read_text() == before):
            time.sleep(0.01)
        time.sleep(0.03 * (killed + 1))  # inside of the epoch after
        if child.poll() is None and killed < 4:
            child.send_signal(signal.SIGKILL)
            killed += 1
            child.wait()
            command = [sys.executable, "-m", "dlrun", "resume", "parts"]
            continue
        assert child.wait(timeout=120) == 0
        break
    assert killed == 4
    ours = weights(str(tmp_path / "parts"))
    assert all(torch.equal(one, ours[name]) for name, one in weights(str(tmp_path / "whole")).items())


@pytest.fixture
def listed(two: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    """A function that reads all tars with a cache; it returns the data, and the names of the tars that were read."""
    monkeypatch.setattr(tar_lists, "UNSETTLED", -60.0)  # as if they were old
    real = tar_lists.samples

    def reading(**keys: Any) -> tuple[Any, list[str]]:
        opened: list[str] = []
        monkeypatch.setattr(
            tar_lists, "samples", lambda path, account: (opened.append(path.name), real(path, account))[1]
        )
        keys = {"cache": str(two / "cache"), "on_bad": "drop", **keys}
        return shards(str(two / "*.tar"), **SIZE, **keys), opened

    return reading


def same(one: Any, other: Any) -> bool:
    """Whether two data sets have the same samples at the same places, and left out the same."""
    about = [
        (raw.train.ids, raw.train.labels.tolist(), [(f.start, f.size, f.shard) for f in raw.train.images.files])
        for raw in (one, other)
    ]
    return about[0] == about[1] and (one.notes, one.bad, one.account) == (other.notes, other.bad, other.account)


def test_later_starts_read_the_tars_that_changed_alone(two: Path, listed: Callable[..., tuple[Any, list[str]]]) -> None:
    odd = [
        ("x/1.jpg", jpeg(1)),
        ("x/1.txt", b"\xff\xfe"),
        ("2.jpg", jpeg(2)),
        ("a.pkl", b"p"),
        ("b.csv", b","),
        link("l", tarfile.SYMTYPE, "x"),
    ]
    tar(two / "odd.tar", [*labelled(range(900, 904)), *odd])
    first, opened = listed()
    assert opened == ["odd.tar", "train-000.tar", "train-001.tar"]
    assert (len(first.bad), first.account.counts[PICKLED], first.account.counts[LINKS]) == (2, 1, 1)
    again, opened = listed()
    assert opened == []
    assert same(first, again)
    assert torch.equal(*(next(read(raw.train.images, [torch.tensor([3, 40])])) for raw in (first, again)))
    tar(two / "train-000.tar", labelled(range(50, 80)))
    changed, opened = listed()
    assert opened == ["train-000.tar"]
    assert same(changed, listed(cache="none")[0])
    assert listed()[1] == []
    (table,) = (two / "cache").iterdir()
    assert table.suffix == ".members"


HARMFUL: dict[str, Callable[[Any], Any]] = {
    "beyond": lambda rows: rows[0][1]["jpg"].__setitem__(2, 10**9),
    "before": lambda rows: rows[0][1]["jpg"].__setitem__(1, -512),
    "outside": lambda rows: rows[0][1]["jpg"].__setitem__(0, "../../etc/passwd"),
    "whole": lambda rows: rows[0][1]["jpg"].__setitem__(1, 512.0),
    "no image": lambda rows: rows[0][1].__setitem__("pkl", rows[0][1].pop("jpg")),
    "no label": lambda rows: rows[0][2].__setitem__("pth", "x"),
    "long": lambda rows: rows[0][2].__setitem__("cls", "0" * 70_000),
    "row": lambda rows: rows.__setitem__(0, 5),
}


@pytest.mark.parametrize("kind", [*HARMFUL, "flipped", "cut", "link", "pipe", "empty", "deep", "huge"])
def test_a_table_that_is_damaged_or_of_somebody_else_is_not_used(
    kind: str, two: Path, listed: Callable[..., tuple[Any, list[str]]]
) -> None:
    first, _ = listed()
    (table,) = (two / "cache").iterdir()
    whole = table.read_bytes()
    start, _, line = whole.partition(b"\n")
    text = line.splitlines()[0][tar_lists.BEGINNING :]
    rows, *rest = json.loads(text)
    if kind in HARMFUL:
        HARMFUL[kind](rows)
        text = json.dumps([rows, *rest]).encode()
    elif kind in ("deep", "huge"):
        text = b"[" * 100_000 if kind == "deep" else text + b" " * 4 * (two / "train-000.tar").stat().st_size
    made = b"\n".join([start, line[:33] + tar_lists._digest(text) + b" " + text, *line.splitlines()[1:], b""])
    table.unlink()
    if kind == "link":
        (two / "elsewhere").write_bytes(whole)
        table.symlink_to(two / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(table)
    else:
        flipped = whole.replace(b"0001.jpg", b"0003.jpg", 1)
        table.write_bytes({"flipped": flipped, "cut": whole[:-9], "empty": b""}.get(kind, made))
    again, opened = listed()
    assert opened == {"cut": ["train-001.tar"]}.get(
        kind, ["train-000.tar", "train-001.tar"] if kind in ("link", "pipe", "empty") else ["train-000.tar"]
    )
    assert same(first, again)
    if kind == "link":
        assert (two / "elsewhere").read_bytes() == whole


def test_lists_of_tars_are_within_the_limit_of_the_cache_and_of_settled_tars(
    two: Path, listed: Callable[..., tuple[Any, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(cache_gb=1e-6)
    monkeypatch.setattr(tar_lists, "UNSETTLED", 60.0)
    listed()
    assert not [*two.glob("cache/*")]
    monkeypatch.setattr(tar_lists, "UNSETTLED", -60.0)
    listed()
    assert make_room(two / "cache", 1e-9, 0, "")  # and they leave with what else fills it
    assert not [*two.glob("cache/*.members")]


def test_training_keeps_the_lists_in_its_cache(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_lists, "UNSETTLED", -60.0)
    node = {"_target_": "dlrun.data.shards.shards", "urls": str(two / "*.tar"), "cache": str(two / "cache"), **STREAMED}
    read_data({**node, **SIZE}, [])
    assert [*two.glob("cache/*.members")]
