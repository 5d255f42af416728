"""Data sets of the library `datasets`, all of them local: what is found in them, and one line for each wrong one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

pytest.importorskip("datasets", reason="the extra huggingface is not installed")

from dlrun.data import prepare
from dlrun.data.bad import BadData
from dlrun.data.huggingface import huggingface
from dlrun.data.images import read
from dlrun.errors import UserError
from support.commands import Outcome
from support.tars import jpeg

COUNT = 24
ROWS = [{"bytes": jpeg(n), "path": None} for n in range(COUNT)]
LABELS = [n % 2 for n in range(COUNT)]
SIZE = {"image_size": [12, 16]}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))


def parquet(folder: Path, split: str = "train", **columns: tuple[list[Any], str]) -> str:
    """Write one split; of each column its values, and image, class, bytes, or the name of a type."""
    from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value

    kinds = {"image": Image(), "class": ClassLabel(names=["ant", "bee"]), "bytes": Value("binary")}
    kinds["struct"] = {"bytes": Value("binary"), "path": Value("string")}
    kinds["numbers"] = {"bytes": Value("int64")}
    kinds["paths"] = {"bytes": Value("null"), "path": Value("string")}
    kinds["list"] = Sequence(Value("int64"))
    features = Features({name: kinds.get(kind) or Value(kind) for name, (_, kind) in columns.items()})
    made = Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)
    folder.mkdir(parents=True, exist_ok=True)
    made.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return str(folder)


IMAGES, CLASSES = (ROWS, "image"), (LABELS, "class")


def test_parquet_is_read_row_by_row_in_any_order(tmp_path: Path) -> None:
    raw = huggingface(parquet(tmp_path / "d", image=IMAGES, label=CLASSES), **SIZE)
    assert [raw.classes, raw.train.labels.tolist(), raw.train.ids[:2]] == [
        ["ant", "bee"],
        LABELS,
        ["train/0", "train/1"],
    ]
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    found = torch.cat(list(read(raw.train.images, order.split(5), workers=2))).numpy()
    known = [np.asarray(Pillow.open(io.BytesIO(ROWS[int(n)]["bytes"]))) for n in order]
    assert np.array_equal(found, np.stack(known))
    data = prepare(raw, val_fraction=0.2, test_fraction=0.2, split_seed=0, memory_gb=0)
    assert len(data.train) + len(data.val) + len(data.test().split) == COUNT


def test_an_image_folder_is_read_from_its_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for n in range(8):
            path = tmp_path / "photos" / split / ("ant", "bee")[n % 2] / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(n))
    raw = huggingface(str(tmp_path / "photos"), **SIZE)
    assert raw.classes == ["ant", "bee"]
    assert raw.train.ids[0] == "train/ant/0.jpg"
    assert raw.test is not None
    assert len(raw.test()) == 8


@pytest.mark.parametrize(
    ("columns", "keys", "classes"),
    [
        (
            {"picture": ([row["bytes"] for row in ROWS], "bytes"), "label": (["cat", "dog"] * 12, "string")},
            {},
            "cat dog",
        ),
        ({"image": IMAGES, "label": (LABELS, "int64")}, {}, "0 1"),
        ({"image": IMAGES, "kind": (LABELS, "int64")}, {"label_column": "kind"}, "0 1"),
        ({"a": IMAGES, "b": IMAGES, "y": (LABELS, "int64")}, {"image_column": "b"}, "0 1"),
    ],
)
def test_columns(tmp_path: Path, columns: dict[str, Any], keys: dict[str, str], classes: str) -> None:
    raw = huggingface(parquet(tmp_path / "d", **columns), **SIZE, **keys)
    assert raw.classes == classes.split()
    assert len(raw.train) == COUNT


WRONG: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no label": ({"image": IMAGES, "w": (LABELS, "int64")}, {}, "no column of labels; it has image, w"),
    "several images": ({"a": IMAGES, "b": IMAGES, "label": CLASSES}, {}, "a and b; type dataset.image_column=a"),
    "no image": ({"t": (["x"] * COUNT, "string"), "label": CLASSES}, {}, "no column holds images; it has t, label"),
    "floats": (
        {"image": IMAGES, "label": ([0.5] * COUNT, "float32")},
        {},
        "class numbers or names, found 0.5",
    ),
    "no bytes": (
        {"image": ([{"bytes": n} for n in LABELS], "numbers"), "label": CLASSES},
        {},
        "bytes of images, found",
    ),
    "nobody's home": ({"image": IMAGES, "label": CLASSES}, {"path": "~nobody-here/x"}, "no such folder"),
    "gap": ({"image": IMAGES, "label": ([0, 2] * 12, "int64")}, {}, "has no 1, but 2"),
    "column": (
        {"image": IMAGES, "label": CLASSES},
        {"label_column": "x"},
        "has label; type dataset.label_column=label",
    ),
    "images": ({"image": IMAGES, "label": CLASSES}, {"image_column": "label"}, "type dataset.image_column=image"),
    "labels": ({"image": IMAGES, "label": CLASSES}, {"label_column": "image"}, "dataset.label_column=image: expected "),
    "list": ({"image": IMAGES, "label": ([[n] for n in LABELS], "list")}, {}, "dataset.label_column=label: expected "),
    "split": (
        {"image": IMAGES, "label": CLASSES},
        {"train_split": "x"},
        "dataset.train_split=x: no such split with rows; {path} has train; type dataset.train_split=train",
    ),
    "test": ({"image": IMAGES, "label": CLASSES}, {"test_split": "x"}, "has train; omit it, and dataset.test_fraction"),
    "empty": ({"image": ([], "image"), "label": ([], "class")}, {}, "dataset.path={path}: no rows in train"),
    "name": ({"image": IMAGES, "label": CLASSES}, {"name": "x"}, "has default; type dataset.name=default"),
    "no path": ({"image": IMAGES, "label": CLASSES}, {"path": ""}, "dataset.path=: no such folder"),
    "number": ({"image": IMAGES, "label": CLASSES}, {"path": 5}, "dataset.path=5: no such folder"),
}


@pytest.mark.parametrize("case", [*WRONG])
def test_wrong_tables_are_one_line(case: str, tmp_path: Path) -> None:
    columns, keys, expected = WRONG[case]
    path = parquet(tmp_path / "d", **columns)
    with pytest.raises(UserError) as error:
        huggingface(**{"path": path, **SIZE, **keys})
    assert expected.replace("{path}", path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_without_rows_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    for split in ("test", "validation"):
        parquet(tmp_path / "d", split, image=([], "image"), label=([], "class"))
    raw = huggingface(parquet(tmp_path / "d", image=IMAGES, label=CLASSES), **SIZE)
    assert (len(raw.train), raw.val, raw.test) == (COUNT, None, None)
    with pytest.raises(UserError, match=r"dataset\.test_split=test: no such split.*; omit it"):
        huggingface(str(tmp_path / "d"), test_split="test", **SIZE)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": IMAGES, "kind": CLASSES}, "columns image, kind, "),
        ({"image": IMAGES, "label": (["x"] * COUNT, "string")}, "the label 'x' "),
    ],
)
def test_splits_that_are_unlike_are_one_line(
    columns: dict[str, Any], expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = parquet(tmp_path / "d", image=IMAGES, label=CLASSES)
    parquet(tmp_path / "d", "test", **columns)
    capfd.readouterr()
    with pytest.raises(UserError) as error:
        huggingface(folder, **SIZE)
    assert str(error.value).startswith(f"dataset.path={folder}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # nor does the library say it once more


def test_folders_without_usable_files_and_damaged_files_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, files, expected in (
        ("empty", (), "folder without files; "),
        ("classes", ("ant/", "bee/"), "without files; expected"),
        ("notes", ("a.md", "b.md"), "only .md files; expected"),
        ("flat", ("1.jpg", "2.jpg"), "into a folder"),
        ("cut", ("train.parquet",), "train.parquet: Parquet file size is"),
    ):
        (tmp_path / name).mkdir()
        for file in files:
            place = tmp_path / name / file
            place.mkdir() if file.endswith("/") else place.write_bytes(
                jpeg(1) if place.suffix == ".jpg" else b"PAR1xxPAR1"
            )
        with pytest.raises(UserError) as error:
            huggingface(str(tmp_path / name), **SIZE)
        assert str(error.value).startswith(f"dataset.path={tmp_path / name}: ")
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_label_that_is_no_class_is_bad(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as files

    folder = parquet(tmp_path / "d", image=IMAGES, label=CLASSES)
    (path,) = Path(folder).iterdir()
    table = files.read_table(path)
    labels = pyarrow.array([*LABELS[:-1], 7])
    files.write_table(table.set_column(1, "label", labels).replace_schema_metadata(table.schema.metadata), path)
    raw = huggingface(folder, **SIZE)
    with pytest.raises(BadData, match="train/23: has label 7, expected 0 to 1"):
        prepare(raw, val_fraction=0.2, test_fraction=0.2, split_seed=0, memory_gb=0)


def test_a_number_beyond_64_bits_is_no_label(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as files

    labels = pyarrow.array([2**63 + label for label in LABELS], pyarrow.uint64())
    table = pyarrow.table({"image": [row["bytes"] for row in ROWS], "label": labels})
    files.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"expected numbers of 64 bits, found {2**63}"):
        huggingface(str(tmp_path), **SIZE)


def test_code_in_a_data_set_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.py").write_text("open('trapped', 'w')\n")
    with pytest.raises(UserError, match="no longer supported"):
        huggingface(str(tmp_path / "d"), **SIZE)
    parquet(tmp_path / "d", image=IMAGES, label=CLASSES)
    with pytest.raises(UserError, match="no longer supported"):
        huggingface(str(tmp_path / "d"), **SIZE)
    assert not Path("trapped").exists()


@pytest.mark.parametrize("name", ["1.tar", "1.csv", "1.h5"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(b"x,label\n1,2\n")
    with pytest.raises(UserError, match="expected Parquet, Arrow"):
        huggingface(str(tmp_path / "d"), **SIZE)


@pytest.mark.parametrize("kind", ["struct", "paths"])
def test_a_row_may_not_name_a_file_of_this_machine(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    rows = [{"bytes": None, "path": str(tmp_path / "secret.jpg")} for _ in range(COUNT)]
    with pytest.raises(BadData, match=r"train/0: names the file .*secret"):
        huggingface(parquet(tmp_path / "d", image=(rows, kind), label=CLASSES), **SIZE)


def test_an_image_folder_may_not_name_files_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(8):
        for top in ("photos", "other"):
            path = tmp_path / top / ("ant", "bee")[n % 2] / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(n))
    about = f"---\nconfigs:\n- config_name: default\n  data_files: {tmp_path}/other/**\n---\n"
    (tmp_path / "photos" / "README.md").write_text(about)
    with pytest.raises(BadData, match=r"names the file .*other"):
        huggingface(str(tmp_path / "photos"), **SIZE)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other")
    )  # where the hub keeps its own
    assert huggingface(str(tmp_path / "photos"), **SIZE).train.ids[0] == "train/0/0.jpg"


def test_rows_that_cannot_be_used_are_bad(tmp_path: Path) -> None:
    rows = [*ROWS[:3], None, {"bytes": b"", "path": None}, *ROWS[5:]]
    labels = [*LABELS[:7], None, *LABELS[8:]]
    folder = parquet(tmp_path / "d", image=(rows, "image"), label=(labels, "class"))
    raw = huggingface(folder, on_bad="drop", **SIZE)
    reasons = {bad.id: bad.reason for bad in raw.bad}
    assert [*reasons] == ["train/3", "train/4", "train/7"]
    assert ["image" in reasons["train/3"], "0 bytes" in reasons["train/4"], "label" in reasons["train/7"]] == [True] * 3
    assert len(raw.train) == COUNT - 3


def test_a_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "d", image=IMAGES, label=CLASSES)
    parquet(tmp_path / "d", "test", image=(ROWS[:3], "image"), label=([-1] * 3, "class"))
    raw = huggingface(folder, **SIZE)
    assert raw.test is None
    assert any("left out" in note for note in raw.notes)


def test_a_folder_with_the_name_of_a_format_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train-other.parquet").write_bytes(b"of nobody's data set")
    for name in ("parquet", "imagefolder"):
        parquet(tmp_path / name, image=IMAGES, label=CLASSES)
        assert len(huggingface(f"{name}/", **SIZE).train.images) == COUNT
    monkeypatch.chdir(tmp_path / "parquet")
    with pytest.raises(UserError, match="parquet: no such folder"):
        huggingface("parquet")


def test_names_on_the_hub_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def builder(path: str, name: str | None, **more: Any) -> Any:
        asked.append((path, name, more))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(UserError, match=r"dataset\.path=ethz/food101: no such folder here.* no network"):
        huggingface("ethz/food101", "small", "v1")
    assert asked == [("ethz/food101", "small", {"revision": "v1"})]  # nothing that trusts code


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, here: Path, dlrun: Callable[..., Outcome]) -> None:
    parquet(here / "d", image=IMAGES, label=CLASSES)
    words = (
        "dataset=huggingface", "dataset.path=d", "dataset.image_size=8", "dataset.memory_gb=0", "dataset.cache=none",
        "model=mlp", "model.width=4", "trainer.threads=1", "trainer.report=false", "check=none", "trainer.epochs=3",
    )  # fmt: skip
    whole = dlrun("train", *words, "run.dir=whole")
    assert whole.code == 0, whole.err
    assert dlrun("train", *words, "run.dir=parts", "trainer.stop_after=1").code == 0
    assert dlrun("resume", "parts").code == 0
    one, two = (torch.load(f"{run}/checkpoints/last.pt", weights_only=True)["model"] for run in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert dlrun("evaluate", "whole", "--out", "own").code == 0


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (["ant", "bee"], ["ant", "wasp"], "only {test} has wasp, only {train} has bee; "),
        (["ant", "bee"], ["ant", "bee", "wasp"], "only {test} has wasp; "),
        (["ant", "bee"], ["bee", "ant"], "class 0 is bee in {test} and ant in {train}; "),
        (["ant", "bee", *map(str, range(9))], ["ant", "bee"], "only {train} has 0, 1, 2, 3, 4 and 4 more; "),
        (["ant", "bee"], ["ant", "bee"], ""),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_splits_that_name_different_classes_are_one_line(
    first: list[str], second: list[str], line: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    names = {"train": f"train-0.{kind}", "test": f"test-0.{kind}"}
    for split, classes in (("train", first), ("test", second)):
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
        labels = [n % len(classes) for n in range(COUNT)]
        made = datasets.Dataset.from_dict({"image": ROWS, "label": labels}, features=features)
        write_table(made, tmp_path / "d" / names[split])
    capfd.readouterr()
    folder = str(tmp_path / "d")
    if not line:
        assert huggingface(folder, **SIZE).classes == first
        return
    with pytest.raises(UserError) as error:
        huggingface(folder, **SIZE)
    start = "dataset.path={path}: column label of {test} and of {train} ".format(path=folder, **names)
    assert str(error.value).startswith(start)
    assert f" classes: {line.format(**names)}" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def write_table(made: Any, path: Path) -> None:
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        made.to_parquet(str(path))
        return
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, made.data.schema) as writer:
        writer.write_table(made.data.table)
