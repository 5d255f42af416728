"""Arrays as people store them: each kind gives the right pixels and labels, or one line that says what to type.

`ACCEPTED` and `REFUSED` are tables of these kinds; tests/data/test_kinds.py counts those of the whole suite.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data.arrays import arrays
from dlrun.data.splits import Raw, Split, prepare
from dlrun.errors import UserError
from support.commands import TINY, Outcome

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
GRAY = X[..., 0]
Y = np.arange(12) % 3
DIGITS = ["0", "1", "2"]
NAMES = np.array(["cat", "ant", "dog"])[Y]
NAMED = [1, 0, 2] * 4
CHANNELS_FIRST = X.transpose(0, 3, 1, 2)
ONE_HOT = np.eye(3)[Y]
STORED = dict[str, Any]


def pixels(split: Split) -> np.ndarray:
    return split.images.take(torch.arange(len(split))).numpy()


def read(folder: Path, stored: STORED, **keys: Any) -> Raw:
    """The dataset of an .npz of these arrays, in which the values of keys may name them."""
    np.savez(folder / "mine.npz", **stored)
    return arrays(str(folder / "mine.npz"), **keys)


# stored arrays, keys typed -> classes, labels, pixels (N, H, W, C), their type; what the note says, or ""
ACCEPTED: dict[str, tuple[STORED, dict[str, Any], list[str], list[int], np.ndarray, str, str]] = {
    "uint8": ({"x": X, "y": Y}, {}, DIGITS, [*Y], X, "uint8", ""),
    "uint16": ({"x": X.astype("<u2") * 257, "y": Y}, {}, DIGITS, [*Y], X * 257.0, "uint16", ""),
    "uint16 of the other byte order": ({"x": X.astype(">u2") * 257, "y": Y}, {}, DIGITS, [*Y], X * 257.0, "uint16", ""),
    "float16": ({"x": X.astype("f2"), "y": Y}, {}, DIGITS, [*Y], X, "float32", ""),
    "float32": ({"x": X / np.float32(255), "y": Y}, {}, DIGITS, [*Y], X / np.float32(255), "float32", ""),
    "float64": ({"x": X.astype(float), "y": Y}, {}, DIGITS, [*Y], X, "float32", ""),
    "float of the other byte order": ({"x": X.astype(">f4"), "y": Y}, {}, DIGITS, [*Y], X, "float32", ""),
    "bool images": ({"x": X > 99, "y": Y}, {}, DIGITS, [*Y], np.where(X > 99, 255, 0), "uint8", "255"),
    "int64 of bytes": ({"x": X.astype(int), "y": Y}, {}, DIGITS, [*Y], X, "uint8", "uint8"),
    "int32 of 12 bits": ({"x": X.astype("i4") * 16, "y": Y}, {}, DIGITS, [*Y], X * 16.0, "uint16", "uint16"),
    "int16 below 0": ({"x": X.astype("i2") - 99, "y": Y}, {}, DIGITS, [*Y], X - 99.0, "float32", "float32"),
    "uint32": ({"x": X.astype("u4") * 999, "y": Y}, {}, DIGITS, [*Y], X * 999.0, "float32", "float32"),
    "gray": ({"x": GRAY, "y": Y}, {}, DIGITS, [*Y], X[..., :1], "uint8", ""),
    "gray with an axis": ({"x": GRAY[..., None], "y": Y}, {}, DIGITS, [*Y], X[..., :1], "uint8", ""),
    "channels first": ({"x": CHANNELS_FIRST, "y": Y}, {}, DIGITS, [*Y], X, "uint8", "first"),
    "channels first, typed": ({"x": CHANNELS_FIRST, "y": Y}, {"layout": "NCHW"}, DIGITS, [*Y], X, "uint8", ""),
    "either end, typed": ({"x": X[:, :3], "y": Y}, {"layout": "NHWC"}, DIGITS, [*Y], X[:, :3], "uint8", ""),
    "one channel, first": ({"x": GRAY[:, None], "y": Y}, {}, DIGITS, [*Y], X[..., :1], "uint8", "first"),
    "nine channels": ({"x": np.tile(X[:, :5], 3), "y": Y}, {}, DIGITS, [*Y], np.tile(X[:, :5], 3), "uint8", ""),
    "flat rows": ({"x": GRAY.reshape(12, -1), "y": Y}, {"reshape": [6, 5]}, DIGITS, [*Y], X[..., :1], "uint8", ""),
    "flat planes": (
        {"x": CHANNELS_FIRST.reshape(12, -1), "y": Y}, {"reshape": [3, 6, 5]}, DIGITS, [*Y], X, "uint8", "first",
    ),
    "Keras": ({"x_train": X, "y_train": Y}, {}, DIGITS, [*Y], X, "uint8", "x_train"),
    "MedMNIST": ({"train_images": X, "train_labels": Y[:, None]}, {}, DIGITS, [*Y], X, "uint8", "train_labels"),
    "X, Y": ({"X": X, "Y": Y}, {}, DIGITS, [*Y], X, "uint8", "Y"),
    "images, labels": ({"images": X, "labels": Y}, {}, DIGITS, [*Y], X, "uint8", "images"),
    "data, targets": ({"data": X, "targets": Y}, {}, DIGITS, [*Y], X, "uint8", "data"),
    "scikit-learn's": ({"X_train": X, "y_train": Y}, {}, DIGITS, [*Y], X, "uint8", "X_train"),
    "in one word": ({"trainX": X, "ytrain": Y}, {}, DIGITS, [*Y], X, "uint8", "trainX"),
    "saved without names": ({"arr_0": X, "arr_1": Y}, {}, DIGITS, [*Y], X, "uint8", "arr_0"),
    "named by the user": ({"a": X, "b": Y, "c": Y}, {"x": "a", "y": "b"}, DIGITS, [*Y], X, "uint8", ""),
    "x beside images": ({"x": X, "images": X[:1], "y": Y}, {}, DIGITS, [*Y], X, "uint8", ""),
    "one-hot": ({"x": X, "y": ONE_HOT}, {}, DIGITS, [*Y], X, "uint8", "one-hot"),
    "one-hot of integers": ({"x": X, "y": ONE_HOT.astype("u1")}, {}, DIGITS, [*Y], X, "uint8", "one-hot"),
    "one-hot of bool": ({"x": X, "y": ONE_HOT > 0}, {}, DIGITS, [*Y], X, "uint8", "one-hot"),
    "a column of labels": ({"x": X, "y": Y[:, None]}, {}, DIGITS, [*Y], X, "uint8", ""),
    "bool labels": ({"x": X, "y": Y > 0}, {}, ["False", "True"], [*(Y > 0)], X, "uint8", "bool"),
    "strings": ({"x": X, "y": NAMES}, {}, ["ant", "cat", "dog"], NAMED, X, "uint8", ""),
    "bytes": ({"x": X, "y": NAMES.astype("S")}, {}, ["ant", "cat", "dog"], NAMED, X, "uint8", "UTF-8"),
    "floats": ({"x": X, "y": Y.astype("f4")}, {}, DIGITS, [*Y], X, "uint8", "float32"),
    "uint8 labels": ({"x": X, "y": Y.astype("u1")}, {}, DIGITS, [*Y], X, "uint8", ""),
    "labels from 1": ({"x": X, "y": Y + 1}, {}, ["1", "2", "3"], [*Y], X, "uint8", "1 to 3"),
    "gaps": ({"x": X, "y": np.array([3, 7, 9])[Y]}, {}, ["3", "7", "9"], [*Y], X, "uint8", "3, 7, 9"),
    "gaps from 0, typed": (
        {"x": X, "y": np.array([0, 1, 9])[Y]}, {"labels": "names"}, ["0", "1", "9"], [*Y], X, "uint8", "0, 1, 9",
    ),
    "minus one and one": ({"x": X, "y": np.sign(Y - 0.5)}, {}, ["-1", "1"], [*(Y > 0)], X, "uint8", "-1, 1"),
    "more classes than there": ({"x": X, "y": Y}, {"num_classes": 4}, [*DIGITS, "3"], [*Y], X, "uint8", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_has_one_meaning_is_read(kind: str, tmp_path: Path) -> None:
    stored, keys, classes, labels, expected, dtype, note = ACCEPTED[kind]
    raw = read(tmp_path, stored, **keys)
    assert raw.classes == classes
    assert raw.train.labels.tolist() == labels
    assert np.array_equal(pixels(raw.train), expected)
    assert str(raw.train.images.pixels.dtype) == f"torch.{dtype}"  # type: ignore[attr-defined]
    assert len(raw.notes) == bool(note)
    assert note in "".join(raw.notes)
    assert "\n" not in "".join(raw.notes)


# stored arrays, keys typed, what the one line names
REFUSED: dict[str, tuple[STORED, dict[str, Any], tuple[str, ...]]] = {
    "no labels": ({"a": X, "b": X, "y": Y}, {}, ("'x'", "a, b, y", "dataset.x=a")),
    "two images": ({"images": X, "data": X, "y": Y}, {}, ("images", "data", "dataset.x=images")),
    "two labels": ({"x": X, "labels": Y, "targets": Y}, {}, ("labels", "targets", "dataset.y=labels")),
    "a wrong name": ({"photos": X, "y": Y, "z": Y}, {"x": "photo"}, ("dataset.x=photo", "photos?")),
    "fewer labels": ({"x": X, "y": Y[:5]}, {}, ("(5,)", "(12, 6, 5, 3)")),
    "images last": ({"x": np.moveaxis(X, 0, -1), "y": Y}, {}, ("(12,)", "moveaxis")),
    "one axis": ({"x": GRAY[0, 0], "y": Y[:5]}, {}, ("(5,)", "(N, H, W)")),
    "flat squares": ({"x": np.zeros((12, 784), "u1"), "y": Y}, {}, ("dataset.reshape=[28,28]",)),
    "flat colours": ({"x": np.zeros((12, 3072), "u1"), "y": Y}, {}, ("[32,32,3]", "[3,32,32]")),
    "flat rows": ({"x": np.zeros((12, 30), "u1"), "y": Y}, {}, ("dataset.reshape=[HEIGHT,WIDTH]",)),
    "another shape": ({"x": np.zeros((12, 30), "u1"), "y": Y}, {"reshape": [6, 6]}, ("30", "dataset.reshape")),
    "volumes": ({"x": np.zeros((12, 4, 6, 5, 1), "u1"), "y": Y}, {}, ("(12, 4, 6, 5, 1)",)),
    "channels at both ends": ({"x": X[:, :3], "y": Y}, {}, ("dataset.layout=NCHW",)),
    "channels at neither end": ({"x": np.zeros((12, 8, 8, 8), "u1"), "y": Y}, {}, ("dataset.layout=NCHW",)),
    "channels last, typed first": ({"x": X, "y": Y}, {"layout": "NCHW"}, ("dataset.layout=NHWC",)),
    "channels first, typed last": ({"x": CHANNELS_FIRST, "y": Y}, {"layout": "NHWC"}, ("dataset.layout=NCHW",)),
    "no images": ({"x": X[:0], "y": Y[:0]}, {}, ("y",)),
    "no pixels": ({"x": X[:, :0], "y": Y}, {}, ("(12, 0, 5, 3)",)),
    "signed bytes": ({"x": X.view("i1"), "y": Y}, {}, ("int8", "view('uint8')", "astype('float32')")),
    "huge integers": ({"x": X.astype(int) << 40, "y": Y}, {}, ("int64",)),
    "complex": ({"x": X * 1j, "y": Y}, {}, ("complex128",)),
    "text for images": ({"x": X.astype("U"), "y": Y}, {}, ("<U3",)),
    "pickled images": ({"x": np.array([*X, None], object)[:-1], "y": Y}, {}, ("x", "cannot be read")),
    "pickled labels": ({"x": X, "y": NAMES.astype(object)}, {}, ("'y'", "astype(str)")),
    "soft labels": ({"x": X, "y": ONE_HOT * 0.7 + 0.1}, {}, ("3 classes", "argmax(1)")),
    "several labels": ({"x": X, "y": np.maximum(ONE_HOT, ONE_HOT[::-1])}, {}, ("index 0", "y[:, 0]")),
    "a table of labels": ({"x": X, "y": np.stack([Y, Y + 4], 1)}, {}, ("(12, 2)", "y[:, 0]")),
    "parts": ({"x": X, "y": Y + 0.5}, {}, ("float64", "0.5 at index 0")),
    "nan": ({"x": X, "y": np.where(Y == 1, np.nan, Y)}, {}, ("nan at index 1",)),
    "dates": ({"x": X, "y": Y.astype("M8[D]")}, {}, ("datetime64",)),
    "bytes in Latin-1": ({"x": X, "y": np.array([b"\xe9t\xe9", b"b"])[Y % 2]}, {}, ("latin-1",)),
    "a missing name": ({"x": X, "y": np.where(Y == 1, "nan", NAMES)}, {}, ("'nan' at index 1",)),
    "names that differ by spaces": ({"x": X, "y": np.array(["a", "a ", "b"])[Y]}, {}, ("'a '", "strip")),
    "below 0": ({"x": X, "y": Y - 1}, {}, ("-1", "dataset.labels=names")),
    "a gap after 1": ({"x": X, "y": np.array([0, 1, 255])[Y]}, {}, ("255 at index 2", "dataset.num_classes=2")),
    "a large gap": ({"x": X, "y": np.array([0, 1000])[Y % 2]}, {}, ("0..1000", "dataset.labels=names")),
    "numbers of images": ({"x": np.zeros((50, 4, 4), "u1"), "y": RNG.permutation(50)}, {}, ("50 different",)),
    "images of test alone": ({"x": X, "y": Y, "x_test": X}, {}, ("y_test", "dataset.x_test=none")),
    "another size in test": ({"x": X, "y": Y, "x_test": X[:, 1:], "y_test": Y}, {}, ("x_test", "(12, 5, 5, 3)")),
    "a new name in test": ({"x": X, "y": NAMES, "x_test": X, "y_test": ["a", *NAMES[1:]]}, {}, ("y_test", "'a'")),
    "a new number in test": ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, {}, ("test/2", "label 3", "0 to 2")),
    "a gap's number in test": (
        {"x": X, "y": [3, 7] * 6, "x_test": X, "y_test": [3, 4] * 6}, {}, ("y_test", "'4'"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_mean_two_things_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    stored, keys, named = REFUSED[kind]
    with pytest.raises(UserError) as caught:
        read(tmp_path, stored, **keys)
    assert [part for part in named if part not in str(caught.value)] == [], caught.value
    assert "\n" not in str(caught.value)


def test_all_splits_by_their_usual_names(tmp_path: Path) -> None:
    sizes = {"train": 12, "val": 4, "test": 6}
    images = {split: RNG.integers(0, 256, (count, 5, 4, 3), dtype=np.uint8) for split, count in sizes.items()}
    labels = {split: (np.arange(count) % 3)[:, None] for split, count in sizes.items()}
    for x, y in (("{}_images", "{}_labels"), ("X{}", "Y_{}"), ("x_{}", "y_{}"), ("images/{}", "targets/{}")):
        stored = {x.format(split): images[split] for split in sizes} | {y.format(s): labels[s] for s in sizes}
        raw = read(tmp_path, stored)
        assert raw.val is not None
        assert raw.test is not None
        for split, found in (("train", raw.train), ("val", raw.val), ("test", raw.test())):
            assert np.array_equal(pixels(found), images[split])
            assert found.labels.tolist() == labels[split][:, 0].tolist()
            assert found.ids[0] == f"{split}/0"
        assert read(tmp_path, stored, x_test="none").test is None


def test_pixels_of_test_are_not_read_before_the_test(tmp_path: Path) -> None:
    unseen = RNG.integers(0, 256, (400, 6, 5, 3), dtype=np.uint8)
    read(tmp_path, {"x": X, "y": Y, "x_test": unseen, "y_test": np.arange(400) % 3})
    path = tmp_path / "mine.npz"
    content = path.read_bytes()
    at = content.index(unseen.tobytes())
    path.write_bytes(content[:at] + bytes(unseen.size) + content[at + unseen.size :])  # the checksum is now wrong
    data = prepare(arrays(str(path)), val_fraction=0.25, test_fraction=0.25, split_seed=0)
    with pytest.raises(UserError, match="'x_test' cannot be read"):
        data.test()


def test_an_npy_is_mapped_however_large_it_is(tmp_path: Path) -> None:
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(100_000, 3, 256, 256))
    x[70_000] = 7  # the rest takes no disk: 20 GB
    del x
    np.save(tmp_path / "y.npy", np.arange(100_000) % 3)
    for keys in ({"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy")}, {"path": str(tmp_path)}):
        raw = arrays(**keys)  # type: ignore[arg-type]
        assert raw.train.images.shape == (256, 256, 3)
        taken = raw.train.subset(torch.arange(69_999, 70_001)).images.take(torch.arange(2))
        assert taken.flatten(1).amax(1).tolist() == [0, 7]


def test_an_npy_of_another_type_is_converted_within_memory_gb(tmp_path: Path) -> None:
    for name, array in {"x": X.astype(np.float64), "y": Y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    keys = {"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy")}
    assert np.array_equal(pixels(arrays(**keys).train), X)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"float64.*dataset\.memory_gb"):
        arrays(**keys, memory_gb=1e-6)  # type: ignore[arg-type]


def test_files_that_are_no_arrays_are_named(tmp_path: Path) -> None:
    for path, keys, named in (
        ("none.npz", {}, ("none.npz", "no such file")),
        ("text.npz", {}, ("text.npz", "not an .npz")),
        ("x.npy", {}, ("x.npy", "dataset.x=")),
        (None, {"x": "x.npy"}, ("dataset.x=X.npy dataset.y=Y.npy",)),
        (None, {"x": f"{tmp_path}/text.npz", "y": "b"}, ("dataset.x=", ".npy")),
        (None, {"x": f"{tmp_path}/none.npy", "y": f"{tmp_path}/none.npy"}, ("none.npy", "no such file")),
    ):
        (tmp_path / "text.npz").write_text("hello")
        np.save(tmp_path / "x.npy", X)
        with pytest.raises(UserError) as caught:
            arrays(path and str(tmp_path / path), **keys)  # type: ignore[arg-type]
        assert [part for part in named if part not in str(caught.value)] == [], caught.value


SIGNAL = np.array([40, 120, 200])[np.arange(120) % 3][:, None, None, None] + RNG.integers(-30, 30, (120, 3, 6, 5))
FILES = ("dataset=arrays", "dataset.x=x.npy", "dataset.y=y.npy", "dataset.memory_gb=0")


def test_a_run_of_mapped_arrays_resumes_predicts_and_notices_a_change(
    here: Path, dlrun: Callable[..., Outcome]
) -> None:
    np.save("x.npy", SIGNAL.astype(np.uint8))  # channels first
    np.save("y.npy", np.arange(1, 121) % 3 + 1)
    words = (*FILES, *TINY, "dataset.limit=0", "model=mlp", "check=none", "trainer.epochs=2")
    done = dlrun("train", *words, "run.dir=run", "trainer.stop_after=1")
    assert done.code == 0, done.err
    assert "channels first" in done.out
    assert dlrun("resume", "run").code == 0
    assert dlrun("predict", "run", "x.npy", "--out", "p.csv", "--device", "cpu").code == 0
    with open("p.csv", newline="") as file:
        rows = {row["file"]: [float(row[f"p_{name}"]) for name in "123"] for row in csv.DictReader(file)}
    with np.load("run/predictions.npz") as stored:
        logits, ids = stored["test_logits"], stored["test_ids"].tolist()
    found = [rows[f"x.npy[{name.split('/')[1]}]"] for name in ids]
    np.testing.assert_allclose(found, torch.from_numpy(logits).softmax(1), atol=1.01e-6)
    assert dlrun("ensemble", "run", "--fresh", "--out", "e").code == 0
    np.save("y.npy", np.arange(120) % 3 + 1)
    done = dlrun("ensemble", "run", "--fresh", "--out", "f")
    assert done.code == 2
    assert "run" in done.err


def test_predict_reads_arrays_as_the_run_did(here: Path, dlrun: Callable[..., Outcome]) -> None:
    x = SIGNAL.transpose(0, 2, 3, 1) > 120
    np.savez("mine.npz", train_images=x, train_labels=np.eye(3)[np.arange(120) % 3])
    np.savez("more.npz", x_train=x[:4], x_test=x[4:9])
    np.save("first.npy", x.transpose(0, 3, 1, 2))
    words = ("dataset=arrays", "dataset.path=mine.npz", *TINY, "dataset.limit=0", "model=mlp", "check=none")
    assert dlrun("train", *words, "trainer.epochs=1", "run.dir=run").code == 0
    files = ("mine.npz", "more.npz", "first.npy")
    assert dlrun("predict", "run", *files, "--out", "p.csv", "--device", "cpu").code == 0
    with open("p.csv", newline="") as file:
        rows = {row["file"]: row["p_0"] for row in csv.DictReader(file)}
    assert len(rows) == 120 + 5 + 120
    for number in range(5):
        same = {rows[f"{name}[{number + k}]"] for name, k in (("mine.npz:train_images", 4), ("first.npy", 4))}
        assert same == {rows[f"more.npz:x_test[{number}]"]}


def test_a_config_of_an_earlier_version_reads_the_same(here: Path, dlrun: Callable[..., Outcome]) -> None:
    np.savez("mine.npz", x=SIGNAL.transpose(0, 2, 3, 1).astype(np.uint8), y=np.arange(120) % 3)
    from dlrun.training.shared_data import read_data

    node = {"_target_": "dlrun.data.files.arrays", "path": "mine.npz", "num_classes": 0, "layout": "NHWC"}
    data = read_data({**node, "val_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0}, [])
    assert np.array_equal(
        data.train.images.take(torch.tensor([0]))[0], np.load("mine.npz")["x"][int(data.train.ids[0].split("/")[1])]
    )
