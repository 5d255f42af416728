"""Folders as people have them: how many images each split has and what is left out, or the line that refuses them."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data.changes import Rows
from dlrun.data.files import image_folder
from dlrun.data.listing import CYCLE, Account, Folders
from dlrun.errors import UserError
from support.commands import Outcome
from support.trees import plant

AB = "ant/0.png ant/1.png bee/0.png bee/1.png"
DIVIDED = "train/ant/0.png train/ant/1.png train/bee/0.png train/bee/1.png"
HEIC = ".heic (pip install 'dlrun[heic]')"
READ: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], dict[str, int]]] = {
    # tree, keys, images of train, val and test, what is left out
    "nothing else": (AB, {}, (4, 0, 0), {}),
    "extensions in capitals": ("ant/0.PNG ant/1.Jpg bee/0.TIFF bee/1.WebP", {}, (4, 0, 0), {}),
    "less usual extensions": ("ant/0.jfif ant/1.jpe bee/0.jp2 bee/1.avif bee/2.pfm bee/3.bmp", {}, (6, 0, 0), {}),
    "no extension": (f"{AB} ant/photo bee/photo", {}, (4, 0, 0), {"without an extension": 2}),
    "texts beside images": (
        f"{AB} ant/0.txt bee/list.csv ant/0.json",
        {},
        (4, 0, 0),
        {".txt": 1, ".csv": 1, ".json": 1},
    ),
    "texts beside classes": (f"{AB} README.md labels.csv", {}, (4, 0, 0), {".md": 1, ".csv": 1}),
    "raw photographs beside images": (f"{AB} ant/0.cr2 ant/1.CR2", {}, (4, 0, 0), {".cr2": 2}),
    "HEIC without its package": (f"{AB} ant/2.heic bee/2.HEIC", {}, (4, 0, 0), {HEIC: 2}),
    "a Mac": (f"{AB} .DS_Store ant/.DS_Store ant/._0.png __MACOSX/ant/._0.png", {}, (4, 0, 0), {"hidden": 4}),
    "Windows": (f"{AB} Thumbs.db ant/Thumbs.db ant/desktop.ini", {}, (4, 0, 0), {"hidden": 3}),
    "a file server": (f"{AB} @eaDir/x/0.png ant/@eaDir/0.png", {}, (4, 0, 0), {"hidden": 2}),
    "a hidden folder": (f"{AB} .git/x.png ant/.ipynb_checkpoints/0.png", {}, (4, 0, 0), {"hidden": 2}),
    "outputs of dlrun": (f"{AB} outputs/runs/1/a.png", {}, (4, 0, 0), {}),
    "images beside the classes": (f"{AB} 0.png 1.jpg", {}, (4, 0, 0), {"beside the class folders": 2}),
    "images beside the splits": (f"{DIVIDED} logo.png train/lost.png", {}, (4, 0, 0), {"beside the class folders": 2}),
    "a folder beside the splits": (f"{DIVIDED} notes/a.png paper/b.pdf", {}, (4, 0, 0), {"other folders": 2}),
    "a file beside the folder around": (
        f"{AB.replace('ant', 'p/ant').replace('bee', 'p/bee')} note.txt",
        {},
        (4, 0, 0),
        {".txt": 1},
    ),
    "an empty folder in a class": (f"{AB} ant/new/", {}, (4, 0, 0), {"without images": 1}),
    "texts in a folder in a class": (f"{AB} ant/xml/0.xml", {}, (4, 0, 0), {"without images": 1, ".xml": 1}),
    "an empty class of test": (f"{DIVIDED} test/ant/0.png test/bee/", {}, (4, 0, 1), {"without images": 1}),
    "a class folder that is a link": ("ant/0.png bee->../far/bee ../far/bee/0.png", {}, (2, 0, 0), {}),
    "a split that is a link": (
        "train->far far/ant/0.png far/bee/0.png test/ant/0.png",
        {},
        (2, 0, 1),
        {"other folders": 1},
    ),
    "images that are links": (
        "ant/0.png->store/0.png bee/0.png->store/1.png store/0.png store/1.png",
        {},
        (4, 0, 0),
        {},
    ),
    "a link to the folder around": (f"{AB} ant/all->. bee/up->..", {}, (4, 0, 0), {"links to a folder around them": 2}),
    "a link to the whole disk": (f"{AB} ant/disk->/", {}, (4, 0, 0), {"links to a folder around them": 1}),
    "links that name each other": (f"{AB} ant/x->ant/y ant/y->ant/x", {}, (4, 0, 0), {"links to nothing": 2}),
    "a pipe": (f"{AB} ant/pipe.png|", {}, (4, 0, 0), {"pipes or devices": 1}),
    "a device": (f"{AB} ant/zero.png->/dev/zero", {}, (4, 0, 0), {"pipes or devices": 1}),
    "names that are not UTF-8": (f"{AB} ant/caf\udce9.png ant/caf\udce9.t\udcff", {}, (5, 0, 0), {".t\\xff": 1}),
    "splits by keys in a project": (
        "photos/ant/0.png photos/bee/0.png tests/data/x.py eval/run/x.sh notes.txt",
        {"train_dir": "photos"},
        (2, 0, 0),
        {},
    ),
    "code beside the splits": (f"{DIVIDED} tests/x.py eval/run/x.sh", {}, (4, 0, 0), {"other folders": 2}),
    "splits with a word behind": (
        "train_set/a/0.png train_set/b/0.png Test-Images/a/0.png val2017/b/0.png",
        {},
        (2, 1, 1),
        {},
    ),
    "folders of documents beside the one with the classes": (
        "food/images/a/0.png food/images/b/0.png food/meta/a.txt food/licence.pdf",
        {},
        (2, 0, 0),
        {"other folders": 1, ".pdf": 1},
    ),
    "classes that end in the name of a split": ("bullet_train/0.png crash_test/0.png car/0.png", {}, (3, 0, 0), {}),
    "a copy inside": (f"{DIVIDED} copy/train/a/0.png", {}, (4, 0, 0), {"other folders": 1}),
    "splits by keys": (
        "a/ant/0.png a/bee/0.png b/ant/0.png c/bee/0.png",
        {"train_dir": "a", "val_dir": "b", "test_dir": "c"},
        (2, 1, 1),
        {},
    ),
    "a key beside usual names": (f"{DIVIDED} test/ant/0.png holdout/ant/0.png", {"val_dir": "holdout"}, (4, 1, 1), {}),
    "another test than the one there": (
        f"{DIVIDED} test/ant/0.png new/ant/0.png new/bee/0.png",
        {"test_dir": "new"},
        (4, 0, 2),
        {"other folders": 1},
    ),
    "classes in root, test by a key": (f"{AB} mine/ant/0.png", {"test_dir": "mine"}, (4, 0, 1), {}),
    "classes in root, test by its name": (f"{AB} test/ant/0.png", {"train_dir": "."}, (4, 0, 1), {}),
    "a split outside": (f"{AB} ../far/ant/0.png", {"test_dir": "../far"}, (4, 0, 1), {}),
    "an unlabelled test folder": (f"{DIVIDED} test/0.png", {"test": "none"}, (4, 0, 0), {"other folders": 1}),
    "an unlabelled test folder in one more": (
        f"{DIVIDED} test/all/0.png",
        {"test": "none"},
        (4, 0, 0),
        {"other folders": 1},
    ),
    "an unlabelled test beside classes": (f"{AB} test/0.png", {"test": "none"}, (4, 0, 0), {"other folders": 1}),
    "deeper folders as one class": (
        "ant/2019/0.png ant/2020/06/0.png ant/0.png bee/0.png",
        {"class_level": 1},
        (4, 0, 0),
        {},
    ),
    "leaves": ("insects/ant/0.png insects/bee/0.png cat/0.png", {"class_level": "leaf"}, (3, 0, 0), {}),
    "leaves in splits": (
        "train/insects/ant/0.png train/insects/bee/0.png test/insects/bee/0.png",
        {"class_level": "leaf"},
        (2, 0, 1),
        {},
    ),
    "an empty leaf": (
        "x/ant/0.png x/bee/0.png y/cat/0.png y/dog/",
        {"class_level": "leaf"},
        (3, 0, 0),
        {"without images": 1},
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_every_file_is_read_or_counted(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    tree, keys, images, left = READ[kind]
    plant(tmp_path / "root", tree)
    raw = image_folder(str(tmp_path / "root"), image_size=4, **keys)
    test = raw.test() if raw.test else None
    assert (len(raw.train), len(raw.val or ()), len(test or ())) == images
    assert raw.account is not None
    assert dict(raw.account.counts) == left
    assert raw.account.images == sum(images)
    assert all(str(count) in raw.notes[0] for count in left.values())


def test_classes_that_a_split_lacks_or_that_look_alike_are_noted(tmp_path: Path) -> None:
    plant(tmp_path, "train/Cat/0.png train/cat/0.png train/dog/0.png test/cat/0.png")
    (note,) = image_folder(str(tmp_path), image_size=4).notes
    assert re.search("test .*Cat, dog", note)
    assert re.search("alone: Cat, cat$", note)


def test_a_format_that_is_left_out_of_one_class_alone_is_said_so(tmp_path: Path) -> None:
    plant(tmp_path, f"{AB} ant/0.cr2 ant/1.cr2 ant/0.txt bee/0.txt")
    (note,) = image_folder(str(tmp_path), image_size=4).notes
    assert "2 .cr2 in ant/" in note
    assert "2 .txt" in note.replace("2 .txt in", "")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {  # tree, keys, what the line has
    "a class that is all HEIC": ("ant/0.png bee/0.heic bee/1.heic", {}, "bee.*2 .heic.*dlrun\\[heic\\]"),
    "a class of another format": ("ant/0.png bee/0.dcm bee/1.dcm", {}, "bee.*2 .dcm"),
    "a class of another format beside deeper ones": (
        "pet/cat/0.png pet/dog/0.png bee/0.dcm",
        {},
        "pet.*class_level=leaf|bee",
    ),
    "an empty class": ("ant/0.png bee/0.png new/", {}, "new"),
    "a class that is a link to nothing": (f"{AB} cat->gone/cat", {}, "root/cat.*gone/cat"),
    "images without a class": ("0.png 1.png", {}, "<class>/<image>.*2 images"),
    "folders in a class": (f"{AB} ant/2020/0.png", {}, "'2020'.*class_level=1.*class_level=leaf"),
    "splits in a class": ("ant/train/0.png ant/test/0.png bee/train/0.png", {}, "ant.*class_level=1"),
    "splits as leaves": ("ant/train/0.png bee/train/0.png", {"class_level": "leaf"}, "ant.*class_level=1"),
    "a test of HEIC": (f"{DIVIDED} test/ant/0.heic", {}, r"test/ant.*dlrun\[heic\]"),
    "splits with a word before": ("seg_train/0.png seg_test/0.png", {}, "seg_test/ and seg_train/"),
    "one split without classes": ("train/0.png", {}, "train/<class>"),
    "labels in a table": ("train/0.png test/0.png test.csv train.csv", {}, "dataset=table dataset.csv=.*/train.csv"),
    "labels in a table, one folder": ("0.png labels.csv", {}, "dataset=table .*images="),
    "two versions": ("v1/train/a/0.png v1/train/b/0.png v2/train/a/0.png", {}, "dataset.root=.*/v1"),
    "folds": ("f1/a/0.png f1/b/0.png f2/a/0.png f2/b/0.png", {}, "train_dir=f1 dataset.test_dir=f2"),
    "COCO": ("train2017/0.png val2017/0.png annotations/x.json", {}, "train2017/ and val2017/.*<class>"),
    "images beside leaves": (
        "ant/0.png ant/queen/0.png bee/0.png",
        {"class_level": "leaf"},
        "ant .*queen.*class_level=1",
    ),
    "an unlabelled test folder": (f"{DIVIDED} test/0.png", {}, "test.*dataset.test=none.*`dlrun predict`"),
    "an unlabelled test folder in one more": (f"{DIVIDED} test/all/0.png", {}, "'all'.*dataset.test=none"),
    "an unlabelled test beside classes": (f"{AB} test/0.png", {}, "dataset.test=none"),
    "classes in root and a test folder": (f"{AB} test/ant/0.png", {}, "dataset.train_dir="),
    "a class in other letters": (f"{DIVIDED} val/Ant/0.png", {}, "'Ant'.*'ant'"),
    "a class with another form of a letter": (
        "train/bie\u0300n/0.png train/bee/0.png val/bi\u00e8n/0.png",
        {},
        "train has",
    ),
    "a key for a folder that is not there": (AB, {"val_dir": "valid"}, "val_dir=valid.*root"),
    "two keys for one folder": (f"{DIVIDED}", {"train_dir": "train", "val_dir": "./train"}, "val_dir.*train_dir"),
    "a test folder and none": (f"{DIVIDED} t/ant/0.png", {"test": "none", "test_dir": "t"}, "test=none.*test_dir=t"),
    "a test folder as the other key": (f"{DIVIDED} t/ant/0.png", {"test": "t"}, "dataset.test_dir=t"),
    "another level": (AB, {"class_level": 2}, "class_level=2.*leaf"),
    "two test folders": (f"{DIVIDED} test/ant/0.png Testing/ant/0.png", {}, "dataset.test_dir=T|t"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    tree, keys, named = REFUSED[kind]
    plant(tmp_path / "root", tree)
    with pytest.raises(UserError, match=named) as error:
        image_folder(str(tmp_path / "root"), image_size=4, **keys)
    assert "\n" not in str(error.value)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, AB)
    listed = os.scandir

    def refused(place: Path) -> Any:
        if place.name == "bee":
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr("dlrun.data.listing.os.scandir", refused)
    with pytest.raises(UserError, match=r"/bee: .*Permission denied"):
        image_folder(str(tmp_path), image_size=4)


def test_a_link_to_an_image_that_is_gone_is_a_bad_image(tmp_path: Path) -> None:
    plant(tmp_path, f"{AB} ant/2.png->gone/2.png ant/loop.png->ant/loop.png")
    train = image_folder(str(tmp_path), image_size=4).train
    for name, reason in (("2.png", r"ant/2\.png: .*gone/2\.png"), ("loop.png", r"ant/loop\.png: .*links")):
        number = torch.tensor([train.ids.index(f"ant/{name}")])
        with pytest.raises(UserError, match=reason):
            train.images.take(number)


def test_folders_that_all_link_to_each_other_are_read_in_time(tmp_path: Path) -> None:
    names = [f"n{k}" for k in range(12)]  # which have 479,001,600 orders
    plant(tmp_path, " ".join(f"{a}/0.png " + " ".join(f"{a}/{b}->{b}" for b in names if a != b) for a in names))
    account = Account()
    found = list(Folders().below(tmp_path, account))
    assert {file.relative_to(tmp_path).parts[0] for file in found} == {*names}
    assert len(found) < 10_000
    assert account.counts[CYCLE] > 0


SMALL = "dataset=image_folder dataset.root=photos trainer.epochs=1 trainer.threads=1 check=none trainer.report=false"
SMALL += " model.width=4 dataset.cache=none"


@pytest.fixture
def photos(here: Path) -> Path:
    """A folder with all splits, a class folder that is a link, and a name that is not UTF-8."""
    tree = " ".join(
        f"{split}/{name}/{k}.pgm" for split in ("train", "test") for name in ("ant", "bee") for k in range(4)
    )
    plant(
        here / "photos",
        f"{tree} train/cow->../far/cow ../far/cow/0.pgm ../far/cow/1.pgm train/cow/caf\udce9.pgm note.txt",
    )
    return here / "photos"


def test_a_broken_image_of_test_stops_a_run_before_its_first_epoch(photos: Path, dlrun: Callable[..., Outcome]) -> None:
    (photos / "test/bee/3.pgm").write_bytes(b"P5 4 4 255 half")
    outcome = dlrun("train", *SMALL.split(), "run.dir=broken")
    assert (outcome.code, "test/bee/3.pgm" in outcome.err) == (2, True)
    assert not Path("broken/metrics.csv").exists()
    assert dlrun("train", *SMALL.split(), "run.dir=dropped", "dataset.on_bad=drop").code == 0
    assert json.loads(Path("dropped/result.json").read_text())["data"]["dropped"]["test"] == 1


def test_predict_sees_the_files_that_training_sees(photos: Path, dlrun: Callable[..., Outcome]) -> None:
    plant(
        photos,
        "train/ant/.hidden.pgm train/ant/x.PGM train/ant/a.pgm| outputs/runs/a.pgm train/@eaDir/0.pgm test/ant/2.txt",
    )
    outcome = dlrun("train", *SMALL.split(), "run.dir=run")
    assert outcome.code == 0, outcome.err
    data = json.loads(Path("run/result.json").read_text())["data"]
    assert data["left_out"] == {"hidden": 2, ".txt": 2, "pipes or devices": 1}
    listed = [
        row for row in csv.DictReader(Path("run/audit.csv").read_text().splitlines()) if row["kind"] == "left_out"
    ]
    assert {"photos/note.txt", "photos/train/ant/a.pgm"} < {row["id"] for row in listed}
    assert len(listed) == 5
    predicted = dlrun("predict", "run", "photos", "--out", "all.csv")
    assert (predicted.code, "(a.pgm)" in predicted.out) == (0, True)
    os.mkfifo("pipe.pgm")
    refused = dlrun("predict", "run", "pipe.pgm", "--out", "none.csv")
    assert (refused.code, "pipe.pgm" in refused.err) == (2, True)
    rows = list(csv.DictReader(Path("all.csv").read_text(encoding="utf-8").splitlines()))
    with np.load("run/identity.npz") as identity:
        ids = Rows.read(identity).ids
    assert sorted(row["file"] for row in rows) == sorted(f"photos/{name}" for name in ids)
    assert len(rows) == data["train"] + data["val"] + data["test"] == 20
    with np.load("run/predictions.npz") as file:
        stored, shown = dict(file), {row["file"]: row for row in rows}
    for split in ("val", "test"):
        odds = np.exp(stored[f"{split}_logits"].astype(np.float64))
        for name, logits in zip(stored[f"{split}_ids"], odds / odds.sum(1, keepdims=True), strict=True):
            found = [float(shown[f"photos/{name}"][f"p_{one}"]) for one in data["classes"]]
            assert found == pytest.approx(logits.tolist(), abs=2e-6)


def test_evaluate_finds_the_classes_where_training_found_them(here: Path, dlrun: Callable[..., Outcome]) -> None:
    plant(
        here / "photos", " ".join(f"{name}/{k}.pgm" for name in ("insect/ant", "insect/bee", "cat") for k in range(6))
    )
    assert dlrun("train", *SMALL.split(), "run.dir=run", "dataset.class_level=leaf").code == 0
    plant(here / "new", "insect/ant/8.pgm insect/bee/8.pgm insect/bee/9.pgm cat/8.pgm")
    outcome = dlrun("evaluate", "run", "new", "--out", "scores")
    assert outcome.code == 0, outcome.err
    assert " 4 images" in outcome.out
    plant(here / "deeper", "cat/tabby/8.pgm cat/9.pgm insect/ant/8.pgm")
    assert "dataset.class_level=1" in dlrun("evaluate", "run", "deeper", "dataset.class_level=auto").err
    refused = dlrun("evaluate", "run", "deeper", "dataset.class_level=1")  # a class that is unknown
    assert (refused.code, "insect" in refused.err, "class_level" in refused.err) == (2, True, False)
