"""Later commands hold images against those that a run recorded: predict, ensemble --fresh, distill (D4)."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import Outcome

WORDS = (
    "dataset=image_folder", "dataset.root=photos", "dataset.cache=none", "model=mlp", "model.width=4", "check=none",
    "trainer.epochs=1", "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false",
)  # fmt: skip


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def run(here: Path, dlrun: Callable[..., Outcome]) -> Path:
    """A completed run on sixty images of two classes."""
    for number in range(30):
        photo(here / f"photos/ant/{number:02}.png", number)
        photo(here / f"photos/bee/{number:02}.png", 100 + number)
    done = dlrun("train", *WORDS, "run.dir=run")
    assert done.code == 0, done.err
    return here / "run"


def used(run: Path, split: str) -> list[str]:
    with np.load(run / "identity.npz") as found:
        ids = found["ids"].tobytes().decode().split("\0")
        return [name for name, own in zip(ids, found["splits"], strict=True) if own == split]


def test_predict_counts_the_images_that_the_run_was_trained_on(run: Path, dlrun: Callable[..., Outcome]) -> None:
    mixed = Path("mixed")
    for number, name in enumerate([*used(run, "train")[:3], *used(run, "test")[:4]]):
        mixed.mkdir(exist_ok=True)
        shutil.copy(Path("photos") / name, mixed / f"{number}.png")  # under another name
    done = dlrun("predict", "run", "mixed", "--out", "p.csv")
    assert done.code == 0, done.err
    assert "\n3 of these images" in done.out
    shutil.rmtree("mixed")
    for number in range(3):
        photo(Path(f"mixed/{number}.png"), 500 + number)
    assert "of these images" not in dlrun("predict", "run", "mixed", "--out", "q.csv").out


def test_an_evaluation_of_a_folder_that_has_grown_uses_the_recorded_images(
    run: Path, dlrun: Callable[..., Outcome]
) -> None:
    shutil.copytree("run", "two")
    assert dlrun("ensemble", "run", "two", "--fresh", "--out", "before").code == 0
    for number in range(20):
        photo(Path(f"photos/ant/0{number}a.png"), 700 + number)
    done = dlrun("ensemble", "run", "two", "--fresh", "--out", "after")
    assert done.code == 0, done.err
    tables = []
    for name in ("before", "after"):
        with open(f"{name}/table.csv", newline="") as lines:
            tables.append([(row["val_loss"], row["test_loss"]) for row in csv.DictReader(lines)])
    assert tables[0] == tables[1]
    (Path("photos") / used(run, "test")[0]).unlink()
    done = dlrun("ensemble", "run", "two", "--fresh", "--out", "gone")
    assert done.code == 2
    assert used(run, "test")[0] in done.err


def test_members_with_other_test_images_of_the_same_names_are_refused(run: Path, dlrun: Callable[..., Outcome]) -> None:
    shutil.copytree("run", "two")
    stored = json.loads(Path("two/result.json").read_text())
    stored["data"]["test_identity"] = "0" * 64
    Path("two/result.json").write_text(json.dumps(stored))
    done = dlrun("ensemble", "run", "two", "--out", "e")
    assert done.code == 2
    assert "two" in done.err


@pytest.mark.parametrize("member", ["of another fold", "of another fold in an ensemble"])
def test_a_teacher_trained_on_other_folds_is_refused(run: Path, dlrun: Callable[..., Outcome], member: str) -> None:
    teacher = "run"
    if member.endswith("ensemble"):
        shutil.copytree("run", "two")
        assert dlrun("ensemble", "run", "two", "--out", "e").code == 0
        stored = json.loads(Path("two/result.json").read_text())
        stored["data"]["identity"] = "0" * 64
        Path("two/result.json").write_text(json.dumps(stored))
        teacher, words = "e", ()
    else:
        words = ("dataset.split_seed=3",)
    distill = ("objective=distill", f"objective.teacher={teacher}", "run.dir=student")
    done = dlrun("train", *WORDS, *words, *distill)
    assert done.code == 2
    assert ("two" if teacher == "e" else "split_seed") in done.err
    assert dlrun("train", *WORDS, "objective=distill", "objective.teacher=run", "run.dir=fine").code == 0
