"""Predictions in the form of a sample: which column holds what, every id a row, and nothing if one is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.data.sheet import read
from dlrun.errors import UserError
from dlrun.inference.submission import form_of
from support.commands import Outcome

NAMED, NUMBERED = ("ant", "bee", "big cat"), ("0", "1")
FORMS = {  # the sample, the classes: the class of each column, {} for the class itself
    "one class": ("id,label\na,ant\nb,bee\n", NAMED, {}),
    "one class, nothing yet": ("id,label\na,\nb,\n", NAMED, {}),
    "one class, a number": ("id,label\na,0\nb,0\n", NUMBERED, {}),
    "the id second": ("label,id\nant,a\nbee,b\n", NAMED, {}),
    "one per class": ("id,ant,bee,big cat\na,0,0,0\n", NAMED, {"ant": 0, "bee": 1, "big cat": 2}),
    "in another order": ("id,bee,big cat,ant\na,0,0,0\n", NAMED, {"bee": 1, "big cat": 2, "ant": 0}),
    "with a prefix": ("id,p_ant,p_bee,p_big_cat\na,0,0,0\n", NAMED, {"p_ant": 0, "p_bee": 1, "p_big_cat": 2}),
    "with a suffix": ("id,ant p,bee p,big cat p\na,0,0,0\n", NAMED, {"ant p": 0, "bee p": 1, "big cat p": 2}),
    "numbers with a prefix": ("id;class_1;class_0\na;0;0\n", NUMBERED, {"class_1": 1, "class_0": 0}),
    "the probability of a class": ("id,bee\na,0.5\n", NAMED, {"bee": 1}),
    "the probability of 1": ("id,target\na,0.5\n", NUMBERED, {"target": 1}),
}  # fmt: skip
REFUSED = {
    "a class is missing": ("id,ant,bee\na,0,0\n", NAMED),
    "a class too many": ("id,ant,bee,big cat,cow\na,0,0,0,0\n", NAMED),
    "the id alone": ("id\na\n", NAMED),
    "the probability of what": ("id,target\na,0.5\n", NAMED),
    "numbers for names": ("id,label\na,0\nb,2\n", NAMED),
}


@pytest.mark.parametrize("kind", FORMS)
def test_columns_are_recognised(tmp_path: Path, kind: str) -> None:
    text, classes, expected = FORMS[kind]
    (tmp_path / "sample.csv").write_text(text)
    form = form_of(read(tmp_path / "sample.csv"), classes, {"a": 0, "b": 1})
    assert (form.id, form.classes) == ("id", expected)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_form_that_may_mean_two_things_is_refused(tmp_path: Path, kind: str) -> None:
    text, classes = REFUSED[kind]
    (tmp_path / "sample.csv").write_text(text)
    with pytest.raises(UserError, match=r"sample\.csv.*ant"):
        form_of(read(tmp_path / "sample.csv"), classes, {"a": 0, "b": 1})


WORDS = (
    *("dataset=table", "dataset.csv=train.csv", "dataset.images=images", "dataset.cache=none", "check=none"),
    *("model=mlp", "model.width=4", "trainer.epochs=1", "trainer.threads=1", "trainer.report=false"),
)


@pytest.fixture
def run(here: Path, dlrun: Callable[..., Outcome]) -> Path:
    """A run on a table of forty images, 00 to 39, of classes 0 and 1."""
    (here / "images").mkdir()
    for n in range(44):
        pixels = np.random.default_rng(n).integers(0, 128 + 100 * (n % 2), (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(here / f"images/{n:02}.png")
    (here / "images/43.png").write_bytes(b"broken")
    (here / "train.csv").write_text("id,label\n" + "".join(f"{n:02},{n % 2}\n" for n in range(40)))
    (here / "test.csv").write_text("id\n" + "".join(f"{n:02}\n" for n in range(40, 44)))
    done = dlrun("train", *WORDS, "run.dir=run")
    assert done.code == 0, done.err
    return here / "run"


def test_every_id_has_a_row_or_nothing_is_written(run: Path, dlrun: Callable[..., Outcome]) -> None:
    def submitted(sample: str, *words: str) -> tuple[int, str]:
        Path("sample.csv").write_text(sample)
        done = dlrun("predict", "run", *words, "--like", "sample.csv", "--out", "out.csv", "--force")
        return done.code, done.err if done.code else Path("out.csv").read_text()

    assert dlrun("predict", "run", "test.csv", "--out", "plain.csv").code == 0
    head, *plain = [line.split(",") for line in Path("plain.csv").read_text().splitlines()]
    assert head == ["file", "class", "confidence", "p_0", "p_1"]
    assert [row[0] for row in plain] == ["40", "41", "42"]
    labels, ones = ({row[0]: row[k] for row in plain} for k in (1, 4))
    assert submitted("id;label\n42;0\n40;0\n", "test.csv") == (0, f"id;label\n42;{labels['42']}\n40;{labels['40']}\n")
    by_class = f"ID,p_1,p_0\n41.png,{ones['41']},{1 - float(ones['41']):.6f}\n"
    assert submitted("ID,p_1,p_0\n41.png,0,0\n", "images") == (0, by_class)
    assert submitted("id,label\n42,0.5\n42,0.5\n", "sample.csv")[1].count(f"42,{ones['42']}\n") == 2
    for missing in ("43", "99"):  # one is broken, the other does not exist
        code, said = submitted(f"id,label\n42,0\n{missing},0\n", "test.csv")
        assert (code, missing in said, Path("out.csv").read_text().count("42")) == (1, True, 2)
    assert dlrun("predict", "run", "test.csv", "--images", ".", "--out", "again.csv").code == 0
    Path("bare.csv").write_text("40\n41\n")
    assert "40" in dlrun("predict", "run", "bare.csv", "--out", "no.csv").err
    Path("empty").mkdir()
    assert dlrun("predict", "run", "test.csv", "--images", "empty", "--out", "no.csv").code == 2
