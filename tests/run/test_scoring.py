"""The scores of a run beside loss and accuracy: by epoch, at the end, by class, in tables and searches."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn import metrics

from dlrun.folders import reading
from dlrun.reports import run_report
from dlrun.vocabulary import COLUMNS, FURTHER, PER_EPOCH, minimised
from support.commands import TINY, Outcome
from support.swept import trial

SKLEARN = {
    "balanced_acc": metrics.balanced_accuracy_score,
    "macro_f1": lambda y, p: metrics.f1_score(y, p, average="macro", zero_division=0),
    "kappa": metrics.cohen_kappa_score,
}


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def run(here: Path, dlrun: Callable[..., Outcome]) -> tuple[Path, dict[str, Any], Outcome]:
    """A run that monitored macro F1, its result and what it printed."""
    words = [*TINY, "trainer.epochs=3", "optimizer.lr=0.01", "trainer.ema=0.5", "trainer.keep=top3", "run.dir=run"]
    done = dlrun("train", *words, "trainer.monitor=val_macro_f1")
    assert done.code == 0
    return here / "run", json.loads((here / "run/result.json").read_text()), done


def test_the_monitored_score_chooses_and_every_score_is_stored(run: tuple[Path, dict[str, Any], Outcome]) -> None:
    folder, result, done = run
    arrays = reading.arrays(folder, "predictions")
    for split in ("val", "test"):
        y, p = arrays[f"{split}_labels"], arrays[f"{split}_logits"].argmax(1)
        for name, function in SKLEARN.items():
            assert result[f"{split}_{name}"] == pytest.approx(function(y, p))
    assert set(FURTHER) <= result.keys()
    epochs = rows(folder / "metrics.csv")
    best = max(max(float(row[f"{kind}val_macro_f1"]) for kind in ("", "ema_")) for row in epochs)
    assert f"macro_f1 {float(epochs[0]['val_macro_f1']):.4f}" in done.out
    at = epochs[result["best_epoch"] - 1]
    assert max(float(at["val_macro_f1"]), float(at["ema_val_macro_f1"])) == best == result["val_macro_f1"]
    assert all("val_macro_f1" in file.name for file in reading.epoch_checkpoints(folder))
    low, high = result["bootstrap"]["test_macro_f1"]
    assert low < result["test_macro_f1"] < high
    assert f"{low:.4f} to {high:.4f}" in done.out
    assert (result["bootstrap"]["resamples"], result["bootstrap"]["seed"]) == (1000, 0)
    each = rows(folder / "per_class.csv")
    f1 = metrics.f1_score(y, p, average=None, labels=range(10), zero_division=0)
    assert [float(row["test_f1"]) for row in each] == pytest.approx(list(f1))
    assert sum(int(row["test_n"]) for row in each) == len(y)
    page = run_report.write(folder).read_text()
    for value in (result["test_mcc"], result["val_auc"], low):
        assert f"{value:.4f}" in page
    assert (
        page.index("<button>validation<") < page.index("<button>test<") < page.index("<button>95 % interval of test<")
    )


def test_tables_show_further_scores_when_they_are_monitored_or_asked_for(
    run: tuple[Path, dict[str, Any], Outcome], here: Path, dlrun: Callable[..., Outcome]
) -> None:
    folder, result, _ = run
    worse = result | {"val_macro_f1": result["val_macro_f1"] - 0.01, "val_acc": 1.0, "val_auc": 1.0, "test_ece": None}
    (here / "other").mkdir()
    for name in ("config.yaml", "metrics.csv"):
        (here / "other" / name).write_bytes((folder / name).read_bytes())
    (here / "other/result.json").write_text(json.dumps(worse))
    assert dlrun("compare", "run", "other").out.splitlines()[1].startswith("run ")  # by val_macro_f1
    found = json.loads(dlrun("compare", "run", "other", "--json", "--sort=val_auc", "--columns=test_ece").out)
    assert [row["run"] for row in found] == ["other", "run"]
    assert [row["test_ece"] for row in found] == [None, result["test_ece"]]
    assert {"val_macro_f1", "test_macro_f1"} <= found[0].keys()
    assert "test_mcc" not in found[0]
    for row in (result, worse):
        row["monitor"] = "val_acc"
    (folder / "result.json").write_text(json.dumps(result))
    (here / "other/result.json").write_text(json.dumps(worse))
    assert dlrun("compare", "run", "other", "--columns", "val_kappa").out.splitlines()[1].startswith("other ")
    grouped = json.loads(dlrun("compare", "run", "--group-seeds", "--columns=val_mcc", "--json").out)
    assert grouped[0]["val_mcc_mean"] == result["val_mcc"]
    filtered = dlrun("compare", "run", "other", "--filter", "val_auc>=1", "--json").out
    assert [row["run"] for row in json.loads(filtered)] == ["other"]


@pytest.mark.parametrize(("loss", "mean"), [("loss=hinge", True), ("loss.weight=balanced", False)])
def test_a_monitored_loss_has_an_interval_if_it_is_a_mean_over_images(
    loss: str, mean: bool, here: Path, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("train", *TINY, "dataset.limit=105", "trainer.monitor=val_loss", loss, "run.dir=run")
    assert done.code == 0, done.err
    result = json.loads((here / "run/result.json").read_text())
    assert ("test_loss" in result["bootstrap"]) == mean
    if mean:
        low, high = result["bootstrap"]["test_loss"]
        assert low < result["test_loss"] < high


def test_a_sweep_is_ranked_by_a_score_of_the_end(here: Path) -> None:
    from dlrun.search.results import Results
    from dlrun.search.study import Trial

    trials = [Trial(k, {"optimizer.lr": lr}) for k, lr in enumerate((0.1, 0.2, 0.3))]
    for one, value in zip(trials, (0.7, 0.9, None), strict=True):
        folder = trial(here / "s", 0.5, optimizer__lr=one.values["optimizer.lr"])
        found = json.loads((folder / "result.json").read_text()) | {"val_auc": value}
        (folder / "result.json").write_text(json.dumps(found))
    results = Results(here / "s", "val_auc", minimised("val_auc", "auto"), trials)
    assert [one.number for one in results.ranked()] == [1, 0]


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (("trainer.monitor=val_auc",), "search.metric=val_auc"),
        (("trainer.monitor=f1",), "trainer.monitor=val_macro_f1"),
        (("-m", "seed=1,2", "search=staged", "search.metric=val_mcc"), "search.metric=val_macro_f1"),
        (("-m", "seed=1,2", "search.metric=val_ece", "search.prune=median"), "search.metric=val_macro_f1"),
        (
            (
                "-m",
                "seed=1,2",
                "search.metric=roc_auc",
            ),
            "search.metric=val_auc",
        ),
    ],
)
def test_a_score_that_is_not_computed_then_is_refused(
    words: tuple[str, ...], typed: str, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("train", *words)
    assert (done.code, typed in done.err, done.err.count("\n")) == (2, True, 1)


def test_a_run_that_an_older_dlrun_began_keeps_its_columns(here: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *TINY, "trainer.epochs=3", "trainer.stop_after=1", "run.dir=run").code == 0
    file = here / "run/metrics.csv"
    newer = [f"val_{name}" for name in PER_EPOCH] + ["train_eval_acc", "nonlinear"]
    old = [name for name in COLUMNS if name not in newer]
    assert len(old) == len(COLUMNS) - 5
    file.write_text("".join(",".join(line.split(",")[: len(old)]) + "\n" for line in file.read_text().splitlines()))
    assert dlrun("resume", "run").code == 0
    found = rows(file)
    assert [row["epoch"] for row in found] == ["1", "2", "3"]
    assert {None} & {key for row in found for key in row} == set()
    assert list(found[0]) == old
    assert isinstance(json.loads((here / "run/result.json").read_text())["val_kappa"], float)
