"""Data and modules of a user are looked at before anything starts: no torch, nothing run, no folder left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.commands import TINY, Outcome, without_torch
from support.stored import write

IMAGES = ("dataset=image_folder", "dataset.root=photos")
ARRAYS = ("dataset=arrays", "dataset.path=data.npz")
MODEL = ("model=custom", "trust=[mynet]")
RUNS = "raise SystemExit('this ran')\n"


@pytest.fixture
def there(here: Path) -> Path:
    """Data that cannot be used, and modules of which one cannot be parsed and one lacks a package."""
    (here / "photos").mkdir()
    write(here / "empty/train/cat/.hidden/x", "")
    write(here / "flat/labels.csv", "id,label\n")
    (here / "empty/train/dog").mkdir()
    np.savez(here / "data.npz", a=np.zeros((3, 8, 8)), b=np.zeros(3), y=np.zeros(3, int))
    write(here / "text.npz", "no archive")
    write(here / "mynet.py", f"class MyNet: ...\n{RUNS}")
    write(here / "broken.py", f"{RUNS}class MyNet:\n")
    write(here / "lacking.py", f"{RUNS}import nowhere.at.all\nclass MyNet: ...\n")
    return here


REFUSED = [
    ((*IMAGES,), "photos/<class>/<image>"),
    (("dataset=image_folder", "dataset.root=empty"), "empty/train/cat"),
    (("dataset=image_folder", "dataset.root=flat"), "dataset=table dataset.csv=flat/labels.csv"),
    (("dataset=image_folder", "dataset.root=text.npz"), "dataset.root=text.npz"),
    (("dataset=image_folder", "dataset.root=empty", "dataset.test_dir=2024"), "dataset.test_dir=2024"),
    ((*ARRAYS,), "'x', found a, b, y"),
    (("dataset=arrays", "dataset.path=text.npz"), "numpy.savez"),
    ((*MODEL, "model._target_=mynet.MyNett"), "mynet.MyNet?"),
    ((*MODEL, "model._target_=mynett.MyNet"), "trust=[mynett]"),
    (("model=custom", "trust=[gone]", "model._target_=gone.MyNet"), "gone.py"),
    (("model=custom", "trust=[broken]", "model._target_=broken.MyNet"), "broken.py, line"),
    (("model=custom", "trust=[lacking]", "model._target_=lacking.MyNet"), "nowhere"),
]


def test_what_is_missing_is_refused_before_a_folder_exists(there: Path) -> None:
    before = sorted(there.rglob("*"))
    commands = [("train", *flags, *words) for words, _ in REFUSED for flags in ((), ("-m", "seed=1,2"))]
    outcomes = without_torch(commands, there)
    for command, outcome in zip(commands, outcomes, strict=True):
        expected = next(text for words, text in REFUSED if words == command[-len(words) :])
        assert (outcome.code, outcome.err.count("\n"), expected in outcome.err) == (2, 1, True), (command, outcome)
    assert [path for path in sorted(there.rglob("*")) if "__pycache__" not in path.parts] == before


def test_what_only_torch_can_tell_leaves_no_folder_either(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "failing.py", "raise RuntimeError('no licence')\nclass MyNet: ...\n")
    write(here / "photos/cat/a.png", "no image")
    write(here / "photos/dog/a.png", "no image")
    for words in (
        ("model=custom", "model._target_=failing.MyNet", "trust=[failing]"),
        ("model=cnn", *IMAGES),
        ("model=cnn", "trainer.device=cuda:7"),
    ):
        outcome = dlrun("train", *words, "check=none", "trainer.threads=1", "run.dir=runs/mine")
        assert (outcome.code, outcome.err.splitlines()[-1].startswith("dlrun: ")) == (2, True), outcome
        assert not (here / "runs/mine").exists()
        assert not (here / "outputs/latest").is_symlink()
    assert dlrun("train", "run.dir=runs/mine", *TINY).code == 0  # the name is free


def test_what_others_put_into_a_folder_stays(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "runs/mine/.note", "mine")
    assert dlrun("train", "trainer.device=cuda:7", "run.dir=runs/mine").code == 2
    assert [path.name for path in (here / "runs/mine").iterdir()] == [".note"]
