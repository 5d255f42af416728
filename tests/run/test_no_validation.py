"""Runs without a validation split, and on all images: nothing is selected, and every later verb copes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data import prepare
from dlrun.data.raw import merged
from dlrun.folders import reading
from support.commands import TINY, Outcome
from support.samples import made, raw

WORDS = (*TINY, "trainer.epochs=2", "trainer.diagnostics=false", "dataset.val_fraction=0")
KEYS = {"test_fraction": 0.2, "split_seed": 0}


def result(name: str) -> dict[str, Any]:
    return json.loads(Path(name, "result.json").read_text())


@pytest.mark.parametrize("split", ["content", "position"])
def test_all_images_but_those_of_test_train(split: str) -> None:
    source = raw(made([30, 40]))
    whole = prepare(source, val_fraction=0.0, split=split, **KEYS)
    parts = prepare(source, val_fraction=0.3, split=split, **KEYS)
    assert len(whole.val) == 0
    assert {*whole.train.ids} == {*parts.train.ids, *parts.val.ids}
    assert whole.test().ids == parts.test().ids
    every = prepare(source, val_fraction=0.3, split=split, folds=4, fold=2, fit_all=True, **KEYS)
    assert (every.train.ids, every.identity("train", "val")) == (whole.train.ids, whole.identity("train", "val"))


def test_a_validation_split_of_its_own_joins_train() -> None:
    train, val = made([30, 40]), made([5, 6])
    data = prepare(
        raw(train, val=val), val_fraction=0.3, fit_all=True, split="position", **{**KEYS, "test_fraction": 0.1}
    )
    assert len(data.train) + len(data.test().ids) == 81
    assert len(data.val) == 0
    joined = merged(raw(train, val=val)).train
    assert torch.equal(joined.images.take(torch.arange(70, 81)), val.images.take(torch.arange(11)))
    assert torch.equal(joined.labels, torch.cat([train.labels, val.labels]))
    assert len(prepare(raw(train, val=val), val_fraction=0.0, split="position", **KEYS).val) == 11


REFUSED = {
    "trainer.patience=2": "trainer.patience=2",
    "scheduler=plateau": "scheduler=plateau",
    "trainer.keep=top3": "trainer.keep=top3",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_needs_a_validation_score_is_refused(dlrun: Callable[..., Outcome], word: str) -> None:
    done = dlrun("train", *WORDS, word)
    assert (done.code, REFUSED[word] in done.err, "trainer.monitor=train_loss" in done.err) == (2, True, True)


def test_two_runs_without_validation_vote_predict_and_compare(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for number in (1, 2):
        more = ("trainer.ema=0.5", "trainer.stop_after=1") if number == 2 else ()
        done = dlrun("train", *WORDS, f"seed={number}", f"run.dir=r{number}", *more)
        assert done.code == 0, done.err
        assert "no validation split" in done.out
    assert dlrun("resume", "r2").code == 0
    for name in ("r1", "r2"):
        found = result(name)
        assert (found["monitor"], found["best_epoch"], found["data"]["val"]) == ("train_loss", 2, 0)
        assert not [key for key in found if key.startswith("val_") and found[key] is not None]
        assert found["test_acc"] > 0.05
        rows = reading.metrics(Path(name))
        assert [row["val_loss"] for row in rows] == ["", ""]
        assert sorted(path.name for path in Path(name, "checkpoints").iterdir()) == ["last.pt"]
        assert not {"unfinished", "gap", "overfitting", "capacity"} & {one["name"] for one in found["verdicts"]}
    assert result("r2")["weights"] == "ema"
    np.save("x.npy", np.zeros((3, 8, 8, 1), np.uint8))
    assert dlrun("ensemble", "r1", "r2", "--top", "1").code == 2
    assert dlrun("ensemble", "r1", "r2", "--out", "votes").code == 0
    with open("votes/table.csv", newline="") as file:
        table = {row["vote"]: row for row in csv.DictReader(file)}
    assert float(table["first member"]["test_acc"]) == pytest.approx(result("r1")["test_acc"])
    assert "val_acc" not in table["majority"]
    assert dlrun("predict", "votes", "x.npy", "--out", "p.csv").code == 0
    assert len(Path("p.csv").read_text().splitlines()) == 4
    shown = dlrun("compare", "r1", "r2", "votes")
    assert shown.code == 0
    assert "validation" in shown.out
    assert dlrun("compare", "r1", "r2", "--group-seeds").code == 0
    for verb in (("report", "r1"), ("board",), ("list", "."), ("diff", "r1", "r2")):
        assert dlrun(*verb).code == 0, verb


def test_the_best_recipe_is_repeated_on_all_images(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = (*TINY, "trainer.diagnostics=false", "trainer.epochs=4", "trainer.patience=3")
    assert dlrun("train", *words, "optimizer.lr=0.01", "run.dir=base").code == 0
    found = result("base")
    changed = {**found, "best_epoch": 3}  # whatever came out
    Path("base/result.json").write_text(json.dumps(changed))
    assert dlrun("train", "--from", "base", "trainer.fit_all=true", "run.dir=all").code == 0
    again = result("all")
    assert (again["epochs"], again["config"]["trainer"]["epochs"], again["config"]["scheduler"]["epochs"]) == (3, 3, 3)
    assert again["data"]["train"] == found["data"]["train"] + found["data"]["val"]
    assert again["data"]["test_identity"] == found["data"]["test_identity"]
    assert again["config"]["trainer"]["patience"] == 0
    assert dlrun("train", "--from", "base", "trainer.fit_all=true", "trainer.epochs=1", "run.dir=one").code == 0
    assert result("one")["epochs"] == 1
    del changed["best_epoch"]
    Path("base/result.json").write_text(json.dumps(changed))
    assert dlrun("train", "--from", "base", "trainer.fit_all=true").code == 2


def test_checks_run_without_validation(dlrun: Callable[..., Outcome]) -> None:
    only = "check.only=[labels,inputs,data_audit,data_duplicates,garbage]"
    done = dlrun("check", *[word for word in WORDS if word != "check=none"], only, "--json")
    statuses = {row["check"]: row["status"] for row in json.loads(done.out)}
    assert {statuses[name] for name in ("labels", "inputs", "data_duplicates")} == {"pass"}
