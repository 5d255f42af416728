"""Layouts of image folders: which images are in which split, or the one line that refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.data import prepare
from dlrun.data.files import image_folder
from dlrun.errors import UserError
from support.stored import write


def fill(top: Path, layout: str) -> None:
    """Write two different images into each folder of a list."""
    for number, place in enumerate(layout.split()):
        (top / place).mkdir(parents=True, exist_ok=True)
        for k in range(2):
            pixels = np.random.default_rng([number, k]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(top / place / f"{k}.png")


PAIR = "{0}/ant {0}/bee"
LAYOUTS = {  # folders: how many images are in train, val and test; 0: carved from train
    "ant bee": (4, 0, 0),
    "photos/ant photos/bee": (4, 0, 0),
    "a/b/ant a/b/bee": (4, 0, 0),
    "ant bee __MACOSX/ant @eaDir/bee .cache/x": (4, 0, 0),
    "ant bee outputs/runs outputs/sweeps": (4, 0, 0),
    "ant bee outputs": (6, 0, 0),  # a class of that name, without anything of dlrun's
    "train car bus": (6, 0, 0),  # a class of that name
    PAIR.format("train"): (4, 0, 0),
    PAIR.format("Train") + " Test/ant": (4, 0, 2),
    PAIR.format("TRAINING") + " Testing/ant Validation/bee": (4, 2, 2),
    PAIR.format("train") + " valid/ant": (4, 2, 0),
    PAIR.format("train") + " dev/ant evaluation/ant evaluation/bee": (4, 2, 4),
    PAIR.format("seg_train/seg_train") + " seg_test/seg_test/ant seg_pred/seg_pred": (4, 0, 2),
    PAIR.format("set/train") + " set/test/ant": (4, 0, 2),
    PAIR.format("train") + " train/__MACOSX test/ant": (4, 0, 2),
    PAIR.format("train") + " notes": (4, 0, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_found_by_usual_names(tmp_path: Path, layout: str) -> None:
    fill(tmp_path, layout)
    raw = image_folder(str(tmp_path))
    test = raw.test() if raw.test else None
    assert (len(raw.train), len(raw.val or ()), len(test or ())) == LAYOUTS[layout]
    assert raw.classes == sorted({Path(name).parent.name for name in raw.train.ids})


REFUSED = {  # folders: what the line names
    "train test": "train/<class>/<image>",
    "Train valid Test": "train/<class>/<image>",
    "train dev bus": "train/<class>/<image>",
    "images masks": "<class>/<image>",
    "img annotations": "<class>/<image>",
    PAIR.format("train") + " training/ant": "training/",
    PAIR.format("train") + " val/ant valid/ant": "valid/",
    PAIR.format("train") + " tests/ant": "dataset.test_dir=tests",
    PAIR.format("train") + " vaild/ant": "dataset.val_dir=vaild",
    PAIR.format("train") + " test": "test/<class>/<image>",
    "test/ant val/ant": "train/",
}


@pytest.mark.parametrize("layout", REFUSED)
def test_what_would_be_learned_or_ignored_by_mistake_is_refused(tmp_path: Path, layout: str) -> None:
    fill(tmp_path, layout)
    with pytest.raises(UserError) as error:
        image_folder(str(tmp_path))
    assert REFUSED[layout] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_held_out_split_has_ids_as_the_others(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant train/bee test/ant")
    data = prepare(image_folder(str(tmp_path)), val_fraction=0.5, test_fraction=0.0, split_seed=0)
    assert data.test().ids == ["test/ant/0.png", "test/ant/1.png"]


def test_dlrun_typed_inside_the_folder_of_photos(here: Path, dlrun) -> None:  # type: ignore[no-untyped-def]
    for k in range(10):
        for name in ("ant", "bee"):
            (here / name).mkdir(exist_ok=True)
            pixels = np.random.default_rng([k, len(name), ord(name[0])]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / name / f"{k}.png")
    words = "dataset=image_folder dataset.root=. trainer.epochs=1 trainer.threads=1 check=none trainer.report=false"
    for _ in range(2):  # the second time beside the first run
        assert dlrun("train", *words.split(), "model.width=4").code == 0
    write(here / "deep/er/train/ant/note.txt", "")
    assert dlrun("train", *words.split(), "dataset.root=deep").code == 2
