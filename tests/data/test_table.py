"""Tables of labels as people keep them: which file has which label and split, or one line that says what to type."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlrun.data import sheet
from dlrun.data.splits import BadData, Raw
from dlrun.data.table import table
from dlrun.errors import UserError

FILES = ("001.png", "002.png", "003.png", "004.png", "deep/005.png", "deep/006.png", "twin.png", "twin.jpg")
CATS = {"001": "cat", "002": "dog", "003": "cat", "004": "dog"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, two of them in a folder below and two of one name."""
    top = tmp_path_factory.mktemp("images")
    (top / "deep").mkdir()
    for seed, name in enumerate(FILES):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(top / name)
    return top


def made(tmp_path: Path, folder: Path, content: str | bytes, name: str = "train.csv", **keys: Any) -> Raw:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return table(str(path), str(folder), **keys)


def labelled(raw: Raw) -> str:
    splits = {"": raw.train, "val/": raw.val, "test/": raw.test() if raw.test else None}
    return " ".join(
        f"{name}{Path(one).stem}={raw.classes[label]}"
        for name, split in splits.items()
        if split is not None
        for one, label in zip(split.ids, split.labels.tolist(), strict=True)
    )


TRAIN = "001=cat 002=dog 003=cat 004=dog"
PLAIN = "id,label\n001,cat\n002,dog\n003,cat\n004,dog\n"
UNDERSTOOD: dict[str, tuple[str | bytes, str, str]] = {  # the table, keys, the label of each image
    "id and label": (PLAIN, "", TRAIN),
    "with extension": (PLAIN.replace(",cat", ".png,cat").replace(",dog", ".png,dog"), "", TRAIN),
    "other names": (PLAIN.replace("id,label", "Image ID,Species"), "", TRAIN),
    "label first": ("label,file\ncat,001\ndog,002\ncat,003\ndog,004\n", "", TRAIN),
    "names that mean nothing": (PLAIN.replace("id,label", "a,b"), "", TRAIN),
    "keys": (PLAIN.replace("id,label", "p,q"), "id_column=p label_column=q", TRAIN),
    "keys in another case": (PLAIN.replace("id,label", "Pict,Kind"), "id_column=pict label_column=KIND", TRAIN),
    "semicolons": (PLAIN.replace(",", ";"), "", TRAIN),
    "tabs": (PLAIN.replace(",", "\t"), "", TRAIN),
    "bars": (PLAIN.replace(",", "|"), "", TRAIN),
    "commas inside quotes": (PLAIN.replace("cat", '"cat,tame"'), "", TRAIN.replace("cat", "cat,tame")),
    "quoted names": ('"id","label"\n"001","cat"\n"002","dog"\n"003","cat"\n"004","dog"\n', "", TRAIN),
    "spaces around": (PLAIN.replace(",", " , "), "", TRAIN),
    "Windows lines": (PLAIN.replace("\n", "\r\n"), "", TRAIN),
    "no last line end": (PLAIN.rstrip(), "", TRAIN),
    "empty lines": (PLAIN.replace("\n", "\n\n"), "", TRAIN),
    "a delimiter too many": (PLAIN.replace("cat", "cat,").replace("dog", "dog,"), "", TRAIN),
    "a mark at the start": (PLAIN.encode("utf-8-sig"), "", TRAIN),
    "UTF-16": (PLAIN.encode("utf-16"), "", TRAIN),
    "an older encoding": (PLAIN.replace("cat", "kätzchen").encode("cp1252"), "", TRAIN.replace("cat", "kätzchen")),
    "compressed": (gzip.compress(PLAIN.encode()), "", TRAIN),
    "row numbers of pandas": (",id,label\n0,001,cat\n1,002,dog\n2,003,cat\n3,004,dog\n", "", TRAIN),
    "folders in the id": (PLAIN.replace("\n0", "\nimages/0"), "", TRAIN),
    "absolute paths from elsewhere": (PLAIN.replace("\n0", "\n/data/kaggle/images/0"), "", TRAIN),
    "backslashes": (PLAIN.replace("\n0", "\nC:\\images\\0"), "", TRAIN),
    "files in a folder below": ("id,label\n001,cat\ndeep/005.png,dog\n006,dog\n", "", "001=cat 005=dog 006=dog"),
    "one of two extensions": ("id,label\ntwin.png,cat\n001,dog\n", "", "twin=cat 001=dog"),
    "path beside a number": ("id,path,label\n1,001.png,cat\n2,002.png,dog\n", "", "001=cat 002=dog"),
    "numbers sort as numbers": ("id,label\n001,10\n002,9\n003,-1\n", "", "001=10 002=9 003=-1"),
    "one column per class": ("id,ant,bee\n001,1,0\n002,0,1\n003,1,0\n", "", "001=ant 002=bee 003=ant"),
    "one column per class, floats": ("id,ant,bee\n001,1.0,0.0\n002,0.0,1.0\n", "", "001=ant 002=bee"),
    "columns per class by key": ("id,ant,bee,flash\n001,1,0,1\n002,0,1,1\n", "label_column=ant,bee", "001=ant 002=bee"),
    "number and name of the class": ("id,class_id,class_name\n001,0,cat\n002,1,dog\n", "", "001=cat 002=dog"),
    "splits": (
        "id,label,split\n001,cat,Train\n002,dog,train\n003,cat,VALID\n004,dog,testing\n", "",
        "001=cat 002=dog val/003=cat test/004=dog",
    ),
    "a test without labels": ("id,label,split\n001,cat,train\n002,dog,train\n003,,test\n", "", "001=cat 002=dog"),
    "a set that is no split": ("id,label,set\n001,cat,spring\n002,dog,summer\n", "", "001=cat 002=dog"),
    "splits refused": ("id,label,split\n001,cat,train\n002,dog,test\n", "split_column=none", "001=cat 002=dog"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_tables_that_are_understood(tmp_path: Path, folder: Path, kind: str) -> None:
    content, typed, expected = UNDERSTOOD[kind]
    keys = dict(word.split("=") for word in typed.split())
    keys = {name: value.split(",") if "," in value else value for name, value in keys.items()}
    raw = made(tmp_path, folder, content, **keys)
    assert labelled(raw) == expected
    numbers = all(name.lstrip("-").isdigit() for name in raw.classes)
    assert raw.classes == sorted(raw.classes, key=float if numbers else str)
    assert raw.notes[0].startswith(f"{tmp_path / 'train.csv'}: ")


REFUSED: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "empty": ("", {}, "train.csv"),
    "names alone": ("id,label\n", {}, "train.csv"),
    "a spreadsheet": (b"PK\x03\x04\0\0", {}, ".xlsx"),
    "binary": (b"id,label\n\0\1\2", {}, "Parquet"),
    "half a gzip": (gzip.compress(PLAIN.encode())[:20], {}, "train.csv"),
    "a value too many": ("id,label\n001,cat\n002,dog,x\n", {}, "line 3"),
    "a value too few": ("id,label\n001,cat\n002\n", {}, "line 3"),
    "an open quote": ('id,label\n001,"cat\n002,dog\n', {}, "line 3"),
    "a first line without end": ("id,label" + "x" * 200_000 + "\n001,cat\n", {}, "line 1"),
    "two columns of a name": ("id,label,label\n001,cat,dog\n", {}, "'label'"),
    "no such column": (PLAIN, {"label_column": "kind"}, "dataset.label_column=kind"),
    "no such id": (PLAIN, {"id_column": "file"}, "dataset.id_column=file"),
    "two labels": ("id,breed,species\n001,a,x\n002,a,y\n003,b,y\n", {}, "dataset.label_column"),
    "no label": ("id\n001\n002\n", {}, "dataset.label_column"),
    "two ones": ("id,ant,bee\n001,1,1\n002,0,1\n", {"label_column": ["ant", "bee"]}, "line 2"),
    "shares": ("id,ant,bee\n001,0.7,0.3\n002,0,1\n", {"label_column": ["ant", "bee"]}, "line 2"),
    "shares without a key": ("id,ant,bee\n001,0.7,0.3\n002,0.1,0.9\n", {}, "dataset.label_column"),
    "the wrong folder": ("id,label\nx1,cat\nx2,dog\n", {}, "dataset.images"),
    "no header": ("001.png,cat\n002.png,dog\n", {}, "first line"),
    "one number in two forms": ("id,label\n001,1\n002,1.0\n003,2\n", {}, "'1.0'"),
    "a strange split": ("id,label,split\n001,cat,train\n002,dog,holdout\n", {}, "'holdout'"),
    "no train": ("id,label,split\n001,cat,val\n002,dog,test\n", {}, "train"),
    "a class of test alone": ("id,label,split\n001,cat,train\n002,dog,train\n003,eel,test\n", {}, "'eel'"),
    "both kinds of groups": (
        "id,label,patient\n001,cat,a\n002,dog,b\n",
        {"group_pattern": ".", "group_column": "patient"},
        "group_pattern",
    ),
    "a pattern that is none": (PLAIN, {"group_pattern": "("}, "group_pattern=("),
    "a pattern that matches nothing": (PLAIN, {"group_pattern": "^x"}, "group_pattern=^x"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tables_that_are_refused_in_one_line(tmp_path: Path, folder: Path, kind: str) -> None:
    content, keys, named = REFUSED[kind]
    with pytest.raises(UserError) as error:
        made(tmp_path, folder, content, **keys)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a huge file", "a bomb"])
def test_tables_that_have_no_end_are_not_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.csv"
    match kind:
        case "a pipe":
            os.mkfifo(file)
        case "a device":
            file.symlink_to("/dev/zero")
        case "a huge file":
            file.touch()
            os.truncate(file, 1 << 41)
        case _:
            monkeypatch.setattr(sheet, "LARGEST", 1000)
            file.write_bytes(gzip.compress(b"id,label\n" + b"0" * 10_000))
    with pytest.raises(UserError, match=r"t\.csv[^\n]*$"):
        table(str(file))


BAD: dict[str, tuple[str, set[str], int]] = {  # added to four good rows: the bad ids, and how many rows are left
    "a row without a file": ("x9,cat\n", {"x9"}, 4),
    "a row without a label": ("twin.png,\n", {"twin.png"}, 4),
    "a label that pandas lost": ("twin.png,nan\n", {"twin.png"}, 4),
    "a row without an id": (",cat\n", {"line 6"}, 4),
    "a row for two files": ("twin,cat\n", {"twin"}, 4),
    "a row twice": ("002,dog\n", {"002"}, 4),
    "a row twice in two forms": ("002.png,dog\n", {"002.png"}, 4),
    "two labels for an image": ("002,cat\n", {"002"}, 3),
    "several at once": ("x9,cat\n004,cat\n,dog\n", {"x9", "004", "line 8"}, 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_cannot_be_used_are_named_and_may_be_omitted(tmp_path: Path, folder: Path, kind: str) -> None:
    added, names, left = BAD[kind]
    with pytest.raises(BadData) as error:
        made(tmp_path, folder, PLAIN + added)
    assert {one.id for one in error.value.bad} == names
    assert all(name in str(error.value) for name in names)
    raw = made(tmp_path, folder, PLAIN + added, on_bad="drop")
    assert len(raw.train) == left
    assert {one.id for one in raw.bad} == names


@pytest.mark.parametrize(("text", "good"), [("0", True), ("2.5", True), ("-1", False), ("nan", False), ("", False)])
def test_weights_are_numbers_that_are_not_negative(tmp_path: Path, folder: Path, text: str, good: bool) -> None:
    content = f"id,label,w\n001,cat,1\n002,dog,2\n003,dog,{text}\n"
    raw = made(tmp_path, folder, content, weight_column="w", on_bad="drop")
    assert raw.train.weights is not None
    assert raw.train.weights.tolist() == [1, 2, *([float(text)] if good else [])]
    assert [one.id for one in raw.bad] == ([] if good else ["003"])


def test_groups_come_from_a_column_or_from_a_pattern(tmp_path: Path, folder: Path) -> None:
    content = "id,label,patient\n001,cat,p1\n002,dog,p1\n003,cat,\n004,dog,p2\n"
    column = made(tmp_path, folder, content).train.groups
    pattern = made(tmp_path, folder, PLAIN, group_pattern="00[12]").train.groups
    first = made(tmp_path, folder, PLAIN, group_pattern="(0)0[124]").train.groups
    for found, same in ((column, [[0, 1]]), (pattern, []), (first, [[0, 1, 3]])):
        assert found is not None
        assert [[k for k in range(4) if found[k] == name] for name in set(found) if (found == name).sum() > 1] == same


def test_parquet_is_read_or_the_extra_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    frame = pandas.DataFrame({"id": list(CATS), "label": [1, 0, 1, None]})
    monkeypatch.setattr(pandas, "read_parquet", lambda path: frame.iloc[:3])
    assert labelled(made(tmp_path, folder, b"PAR1")) == "001=1 002=0 003=1"
    monkeypatch.setattr(pandas, "read_parquet", lambda path: (_ for _ in ()).throw(ImportError("pyarrow")))
    with pytest.raises(UserError, match=r"pip install 'dlrun\[parquet\]'"):
        made(tmp_path, folder, b"PAR1")


def test_files_without_a_row_are_counted_and_named(tmp_path: Path, folder: Path) -> None:
    raw = made(tmp_path, folder, PLAIN)
    (left,) = raw.notes[1:]
    assert raw.account is not None
    assert [Path(path).name for path in raw.account.paths["without a row"]] == [
        Path(name).name for name in sorted(FILES[4:])
    ]
    assert left.startswith("4 images")
    assert all(name in left for name in FILES[4:])


def test_the_folder_of_the_table_is_used_if_none_is_named(folder: Path) -> None:
    (folder / "own.csv").write_text(PLAIN)
    assert labelled(table(str(folder / "own.csv"))) == TRAIN
