"""A cross-validation: one run per fold, their mean, their vote on the fixed test, and out-of-fold predictions (D4)."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlrun.analysis import compare, seed_groups
from support.commands import Outcome
from support.stored import config, result, write_run

WORDS = (
    "dataset=arrays", "dataset.path=mine.npz", "model=mlp", "model.width=8", "check=none", "trainer.epochs=2",
    "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false", "optimizer.lr=0.01",
)  # fmt: skip


def write_arrays() -> None:
    draw = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = (draw.normal(size=(240, 4, 4, 1)) + y[:, None, None, None]).astype(np.float32)
    np.savez("mine.npz", x=x, y=y)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the three folds of 240 images in three classes, trained once for all tests."""
    import os

    from dlrun.folders.run import claim
    from dlrun.run.execute import execute
    from support.composed import composed

    top, before = tmp_path_factory.mktemp("folds"), os.getcwd()
    os.chdir(top)
    try:
        write_arrays()
        for fold in range(3):
            cfg = composed(*WORDS, "dataset.folds=3", f"dataset.fold={fold}")
            assert execute(cfg, claim(f"cv/{fold}", "fold"), quiet=True) == 0
    finally:
        os.chdir(before)
    return top


@pytest.fixture
def three(here: Path, trained: Path) -> Path:
    """The runs, where the commands run."""
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here / "cv"


def rows(file: str) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def arrays(run: str) -> dict[str, Any]:
    with np.load(f"{run}/predictions.npz") as found:
        return dict(found)


def test_the_vote_of_all_folds_is_measured_on_the_test_that_they_share(
    three: Path, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("ensemble", "cv", "--out", "e")
    assert done.code == 0, done.err
    members = [arrays(f"cv/{fold}") for fold in range(3)]
    p = [np.exp(m["test_logits"]) / np.exp(m["test_logits"]).sum(1, keepdims=True) for m in members]
    expected = (np.mean(p, axis=0).argmax(1) == members[0]["test_labels"]).mean()
    assert json.loads(Path("e/result.json").read_text())["test_acc"] == pytest.approx(expected)
    assert dlrun("predict", "e", "mine.npz", "--out", "p.csv").code == 0
    assert len(rows("p.csv")) == 240


def test_every_training_image_is_predicted_by_the_run_that_did_not_see_it(
    three: Path, dlrun: Callable[..., Outcome]
) -> None:
    assert dlrun("ensemble", "cv", "--out", "e").code == 0
    found = {row["id"]: row for row in rows("e/oof.csv")}
    members = [arrays(f"cv/{fold}") for fold in range(3)]
    test = set(members[0]["test_ids"].tolist())
    assert found.keys() == {f"train/{n}" for n in range(240)} - test
    for fold, m in enumerate(members):
        for name, logits, label in zip(m["val_ids"].tolist(), m["val_logits"], m["val_labels"], strict=True):
            row = found[name]
            assert (int(row["fold"]), int(row["label"]), int(row["class"])) == (fold, label, logits.argmax())
    right = np.mean([row["label"] == row["class"] for row in found.values()])
    assert json.loads(Path("e/result.json").read_text())["val_acc"] == pytest.approx(right)
    assert {row["id"] for row in rows("e/errors.csv") if row["split"] == "val"} == found.keys()
    assert {row["id"] for row in rows("cv/0/errors.csv")} == {*members[0]["val_ids"], *test}
    pytest.importorskip("cleanlab", reason="the extra suspects is not installed")
    assert dlrun("suspects", "cv", "--out", "of-runs").code == dlrun("suspects", "e", "--out", "of-votes").code == 0
    assert Path("of-runs/suspects.csv").read_text() == Path("of-votes/suspects.csv").read_text()


def test_suspects_of_all_folds_are_shown_with_their_images(three: Path, dlrun: Callable[..., Outcome]) -> None:
    pytest.importorskip("cleanlab", reason="the extra suspects is not installed")
    done = dlrun("suspects", "cv", "--out", "s")
    assert done.code == 0, done.err
    count = sum(len(arrays(f"cv/{fold}")["val_ids"]) for fold in range(3))
    assert f"of {count} images" in done.out
    assert Path("s/report.html").read_text().count("<figure ") == min(96, len(rows("s/suspects.csv"))) > 0
    Path("mine.npz").unlink()
    done = dlrun("suspects", "cv", "--out", "s")
    assert done.code == 0, done.err
    assert "mine.npz" in done.out
    assert "<figure " not in Path("s/report.html").read_text()


@pytest.mark.parametrize("words", [["--top", "2"], ["--greedy"], ["--average", "weights"]])
def test_folds_have_no_common_validation_to_choose_by(
    three: Path, dlrun: Callable[..., Outcome], words: list[str]
) -> None:
    done = dlrun("ensemble", "cv", *words, "--out", "e")
    assert done.code == 2
    assert words[0] in done.err
    assert not Path("e").exists()


def test_a_missing_fold_is_named(three: Path, dlrun: Callable[..., Outcome]) -> None:
    shutil.rmtree("cv/1")
    done = dlrun("ensemble", "cv", "--out", "e")
    assert done.code == 0
    assert re.search(r"folds .*: 1;", done.out)
    assert {row["fold"] for row in rows("e/oof.csv")} == {"0", "2"}


def test_folds_of_other_data_are_refused(three: Path, dlrun: Callable[..., Outcome]) -> None:
    stored = json.loads(Path("cv/2/result.json").read_text())
    stored["data"]["folds_identity"] = "0" * 64
    Path("cv/2/result.json").write_text(json.dumps(stored))
    done = dlrun("ensemble", "cv", "--out", "e")
    assert done.code == 2
    assert "cv/2" in done.err


def test_compare_gives_the_mean_over_folds(three: Path, dlrun: Callable[..., Outcome]) -> None:
    (row,) = json.loads(dlrun("compare", "cv", "--group-folds", "--json").out)
    scores = [json.loads(Path(f"cv/{fold}/result.json").read_text())["val_acc"] for fold in range(3)]
    assert (row["n"], row["folds"]) == (3, [0, 1, 2])
    assert row["val_acc_mean"] == pytest.approx(np.mean(scores))
    assert row["val_acc_std"] == pytest.approx(np.std(scores, ddof=1))
    assert len(json.loads(dlrun("compare", "cv", "--group-seeds", "--json").out)) == 3
    assert dlrun("compare", "cv", "--group-folds").code == 0


def test_runs_that_are_no_folds_are_not_grouped_by_fold(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(here / "outputs/one", **result(config(), 0.9))
    done = dlrun("compare", "--group-folds")
    assert done.code == 2
    assert "--group-folds" in done.err


def test_seeds_on_other_data_are_not_averaged(here: Path) -> None:
    for seed, (identity, acc) in enumerate([("a" * 64, 0.9), ("a" * 64, 0.8), ("b" * 64, 0.5), (None, None)]):
        about = {} if identity is None else {"data": {"identity": identity}}
        write_run(here / f"outputs/{seed}", **result(config(seed=seed), acc, **about))
    found = seed_groups.grouped(compare.read(["outputs"]))
    assert [(row["data"], row["n"]) for row in found] == [("aaaaaaaa", 2), ("bbbbbbbb", 1)]
    assert found[0]["val_acc_mean"] == pytest.approx(0.85)


def test_the_next_commands_of_a_sweep_over_folds(three: Path) -> None:
    from dlrun.search.plan import Plan, Round
    from dlrun.search.space import Axis
    from dlrun.search.summary import _next

    axis = Axis("dataset.fold", ("0", "1", "2"))
    plan = Plan([], [axis], {}, {}, [Round(1, 0, 0, 3, [axis])])
    best = [SimpleNamespace(values={"dataset.fold": fold}) for fold in range(3)]
    lines = _next(Path("cv"), plan, best)  # type: ignore[arg-type]
    assert [line.split()[1] for line in lines] == ["compare", "ensemble"]
    assert "--group-folds" in lines[0]
