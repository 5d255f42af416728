"""errors.csv ranks images by loss, confusions.csv counts pairs of classes; both from predictions.npz alone (D11)."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.analysis import errors
from dlrun.folders import contents, reading
from support.commands import Outcome
from support.members import member

CLASSES = ["ant", "bee", "cow"]
LOGITS = np.array([[2.0, 0, 0], [0, 3, 0], [1, 0, 0], [0, 4, 0], [0, 5, 0], [0, 0, 1]], np.float32)
LABELS = np.array([0, 0, 0, 0, 1, 1])
IDS = list("uvwxyz")


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_images_are_ranked_by_loss_within_split_class_and_pair() -> None:
    found = errors.ranked("val", LOGITS, LABELS, IDS, CLASSES)
    assert [tuple(row) for row in found] == [errors.COLUMNS] * 6
    order = [(row["rank"], row["id"], row["true"], row["predicted"]) for row in found]
    assert order == [
        (1, "x", "ant", "bee"), (2, "v", "ant", "bee"), (3, "z", "bee", "cow"),
        (4, "w", "ant", "ant"), (5, "u", "ant", "ant"), (6, "y", "bee", "bee"),
    ]  # fmt: skip
    assert [row["rank_in_class"] for row in found] == [1, 2, 1, 3, 4, 2]
    assert [row["rank_in_pair"] for row in found] == [1, 2, 1, 1, 2, 1]
    total = np.exp(4) + 2
    for name, value in {"confidence": np.exp(4) / total, "p_true": 1 / total, "loss": np.log(total)}.items():
        assert float(found[0][name]) == pytest.approx(value, rel=1e-5)


def test_large_logits_and_nan_are_ranked_first() -> None:
    logits = np.array([[0, 1e4, 0], [9, 0, 0], [np.nan, 0, 0]], np.float32)
    found = errors.ranked("val", logits, np.zeros(3, int), np.array(["far", "right", "broken"]), CLASSES)
    assert [row["id"] for row in found] == ["broken", "far", "right"]
    assert float(found[1]["loss"]) == 1e4


def test_confused_pairs_are_counted_by_split_the_most_frequent_first() -> None:
    both = errors.ranked("val", LOGITS, LABELS, IDS, CLASSES) + errors.ranked("test", LOGITS, LABELS, IDS, CLASSES)
    found = errors.confusions(both)
    assert [tuple(row) for row in found] == [errors.PAIRS] * 4
    assert [tuple(row.values()) for row in found][:2] == [
        ("val", "ant", "bee", 2, "0.5000", "x; v"),
        ("val", "bee", "cow", 1, "0.5000", "z"),
    ]
    assert [row["split"] for row in found] == ["val", "val", "test", "test"]


def test_a_gallery_has_the_highest_losses_then_the_worst_of_pairs_and_classes() -> None:
    # a, predicted b: losses falling from 9; b, predicted c: from 5; c, predicted a: one of 3; then one that is right
    steps = [(0, 1, 9 - k / 10) for k in range(9)] + [(1, 2, 5 - k / 10) for k in range(4)] + [(2, 0, 3), (1, 1, 9)]
    logits = np.stack([margin * np.eye(3)[guess] for _, guess, margin in steps]).astype(np.float32)
    labels = np.array([true for true, *_ in steps])
    assert errors.picked(logits, labels, 4, 0).tolist() == [0, 1, 2, 3]
    assert errors.picked(logits, labels, 4, 3).tolist() == [0, 1, 2, 3, 9, 10, 13]
    assert errors.picked(logits, labels, 20, 3).tolist() == list(range(14))
    assert errors.picked(logits[14:], labels[14:], 4, 3).tolist() == []


@pytest.mark.parametrize(
    ("changes", "splits"),
    [
        ({}, {"val", "test"}),
        ({"test_labels": np.full(60, 7)}, {"val"}),
        ({"val_logits": np.zeros((4, 3), np.float32)}, {"test"}),
        ({"val_ids": np.zeros(0), "test_labels": np.zeros(60)}, None),
    ],
)
def test_an_older_run_gets_the_tables_and_damaged_predictions_are_left_out(
    tmp_path: Path, changes: dict[str, Any], splits: set[str] | None
) -> None:
    run = member(tmp_path / "run", 1, skill=0.2, **changes)
    assert errors.write(run) == (splits is not None)
    table, pairs = reading.error_tables(run)
    assert table.exists() == pairs.exists() == (splits is not None)
    if splits is not None:
        assert {row["split"] for row in rows(table)} == splits
        assert {row["true"] for row in rows(table)} == set(CLASSES)
        wrong = sum(row["true"] != row["predicted"] for row in rows(table))
        assert sum(int(row["n"]) for row in rows(pairs)) == wrong > 0


def test_a_run_without_an_error_has_a_table_of_pairs_with_columns_alone(tmp_path: Path) -> None:
    assert errors.write(member(tmp_path / "run", 1, skill=20.0))
    assert (tmp_path / "run/confusions.csv").read_text() == ",".join(errors.PAIRS) + "\n"


def test_a_run_of_an_older_version_gets_them_with_report(here: Path, dlrun: Callable[..., Outcome]) -> None:
    with tarfile.open(Path(__file__).parents[1] / "stored/before_packages.tar.xz") as archive:
        archive.extractall(here, filter="data")
    assert dlrun("report", "finished").code == 0
    with np.load("finished/predictions.npz") as found:
        ids = [*found["val_ids"], *found["test_ids"]]
    assert {row["id"] for row in rows(here / "finished/errors.csv")} == set(ids)
    assert contents.foreign(contents.Found(here / "finished", "run")) == ""
