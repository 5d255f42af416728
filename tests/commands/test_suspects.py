"""`dlrun suspects`: labels that were swapped are found in predictions by runs that did not train on the images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.commands import suspects
from support.commands import Outcome
from support.members import member
from support.pages import EVIL, page

pytest.importorskip("cleanlab", reason="the extra suspects is not installed")
CLASSES = ["ant", "bee", "cow"]
TRUE = np.arange(120) % 3
SWAPPED = (7, 20, 50, 91)
GIVEN = np.where(np.isin(np.arange(120), SWAPPED), (TRUE + 1) % 3, TRUE)
IDS = np.array([f"train/{k}.png" for k in range(120)])
DATA = {"folds": 3, "folds_identity": "0" * 64}


def run(path: Path, rows: Any, seed: int = 0, **about: Any) -> Path:
    """A run that is right about the true labels of the images of these rows, and surest of the swapped ones."""
    logits = np.random.default_rng(seed).normal(size=(120, 3)) + 5 * np.eye(3)[TRUE]
    logits[list(SWAPPED)] = 7 * np.eye(3)[TRUE[list(SWAPPED)]]
    arrays = {"val_logits": logits.astype(np.float32)[rows], "val_labels": GIVEN[rows], "val_ids": IDS[rows]}
    member(path, 1, **arrays)
    stored = json.loads((path / "result.json").read_text())
    stored["data"] |= about
    (path / "result.json").write_text(json.dumps(stored))
    return path


def table(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/suspects.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def named(folder: str) -> set[tuple[str, str, str]]:
    return {(row["id"], row["label"], row["suggested"]) for row in table(folder)}


ALL = {(str(IDS[k]), CLASSES[GIVEN[k]], CLASSES[TRUE[k]]) for k in SWAPPED}


def test_one_run_covers_its_validation_split_and_says_how_to_cover_more(
    here: Path, dlrun: Callable[..., Outcome]
) -> None:
    before = sorted(file.stat().st_mtime_ns for file in run(here / "one", slice(0, 120)).iterdir())
    done = dlrun("suspects", "one", "--out", "s")
    assert done.code == 0, done.err
    assert named("s") == ALL
    assert "dataset.folds=5" in done.out
    assert "4 of 120" in done.out
    assert [int(row["rank"]) for row in table("s")] == [1, 2, 3, 4]
    scores = [float(row["score"]) for row in table("s")]
    assert scores == sorted(scores)
    assert all(float(row["probability"]) > 0.5 > float(row["score"]) for row in table("s"))
    assert sorted(file.stat().st_mtime_ns for file in Path("one").iterdir()) == before
    assert dlrun("suspects", "one", "--out", "s").code == 0  # its own files may be replaced
    assert dlrun("suspects", "one", "--out", "one").code == 2


def test_folds_cover_all_images_and_a_missing_one_is_named(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for fold in range(3):
        run(here / f"cv/{fold}", slice(40 * fold, 40 * fold + 40), fold=fold, **DATA)
    done = dlrun("suspects", "cv", "--out", "s")
    assert done.code == 0, done.err
    assert named("s") == ALL
    assert "dataset.folds=5" not in done.out
    done = dlrun("suspects", "cv/0", "cv/2", "--out", "two")
    assert "fold 1 " in done.out
    assert named("two") == {one for one in ALL if one[0] != f"train/{SWAPPED[2]}.png"}


def test_seeds_are_averaged_and_runs_on_other_images_are_refused(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for seed in range(2):
        run(here / f"seeds/{seed}", slice(0, 120), seed)
    assert dlrun("suspects", "seeds", "--out", "s").code == 0
    assert named("s") == ALL
    run(here / "seeds/2", slice(0, 60))
    done = dlrun("suspects", "seeds", "--out", "t")
    assert done.code == 2
    assert "seeds/2" in done.err
    assert not Path("t").exists()


def test_without_a_suspect_the_table_has_its_columns(here: Path, dlrun: Callable[..., Outcome]) -> None:
    run(here / "one", np.setdiff1d(np.arange(120), SWAPPED))
    assert dlrun("suspects", "one", "--out", "s").code == 0
    assert Path("s/suspects.csv").read_text() == "rank,id,label,suggested,score,probability\n"


def test_the_page_escapes_what_a_run_contains(here: Path, dlrun: Callable[..., Outcome]) -> None:
    run(here / "one", slice(0, 120), classes=[EVIL, "bee", "cow"])
    assert dlrun("suspects", "one", "--out", "s").code == 0
    assert EVIL not in page(here / "s")


def test_one_class_alone_is_refused(here: Path, dlrun: Callable[..., Outcome]) -> None:
    run(here / "one", np.flatnonzero(GIVEN == 1))
    done = dlrun("suspects", "one")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_a_missing_package_is_named(here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "find_spec", lambda _: None)
    done = dlrun("suspects", "one")
    assert done.code == 2
    assert "'dlrun[suspects]'" in done.err
