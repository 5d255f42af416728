"""One best: the epoch, trial, setting and member that every command and page names, also when scores tie."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.analysis import compare, scores, sweeps
from dlrun.folders.run import claim
from dlrun.reports import sweep_report
from dlrun.search import summary
from dlrun.search.plan import Plan
from dlrun.search.results import Results
from dlrun.search.study import Trial
from dlrun.training import choosing
from dlrun.training.checkpoint import State
from dlrun.vocabulary import place
from support.commands import Outcome
from support.members import member
from support.pages import section
from support.stored import config, result, write, write_run

# three trials that tie on val_acc, by number; the third and the second also tie on val_loss
LOSSES = (0.0162, 0.0069, 0.0069)
BEST = 1


@pytest.fixture
def tied(here: Path) -> Path:
    folder = here / "outputs/sweeps/s"
    write(folder / "sweep.yaml", "search: {metric: val_acc, direction: auto}\naxes: []\nrounds: []\n")
    for k, loss in enumerate(LOSSES):
        path = member(folder / f"{k:04d}", seed=k, skill=9.0)  # all validation images are right
        stored = json.loads((path / "result.json").read_text())
        more = result(config(optimizer__lr=10.0**-k), 1.0, val_loss=loss, best_epoch=7, tested_epoch=7)
        data = stored["data"] | {"val": 60, "test": 60}
        write(path / "result.json", json.dumps(stored | more | {"data": data}))
    return folder


def results(folder: Path) -> Results:
    return Results(folder, "val_acc", False, [Trial(k, {"optimizer.lr": 10.0**-k}) for k in range(3)])


def test_every_command_and_page_names_the_same_best_of_tied_trials(tied: Path, dlrun: Callable[..., Outcome]) -> None:
    name = f"{BEST:04d}"
    found = sweeps.read(tied)
    assert [e.path.name for e in found.entries] == ["0001", "0002", "0000"]
    assert found.entries[found.best[0]].path.name == name
    # the terminal of the sweep: the mark, the three best, the next commands
    trials = results(tied)
    plan = Plan([], [], {}, {}, [])
    assert [t.number for t in trials.ranked()] == [1, 2, 0]
    marks = [summary.line(trials, plan, k, again=False).endswith("  best") for k in range(3)]
    assert marks == [False, True, False]
    # its table and page
    assert [Path(row["run"]).name for row in compare.rows([str(tied)])] == ["0001", "0002", "0000"]
    page = section(sweep_report.write(tied).read_text(), "The best 3")
    assert re.findall(r"\b000\d\b", page)[0] == name
    # the models that predict and ensemble use
    refused = dlrun("predict", str(tied), ".")
    assert refused.code == 2
    assert f"/{name}," in refused.err
    assert dlrun("ensemble", str(tied), "--out", "e").code == 0
    with open("e/members.csv", newline="") as file:
        assert [Path(row["member"]).name for row in csv.DictReader(file)] == ["0001", "0002", "0000"]
    assert dlrun("ensemble", str(tied), "--top", "1", "--out", "one").out.count(name) >= 1


def test_the_three_best_of_a_sweep_are_those_of_its_page(tied: Path) -> None:
    trials = results(tied)
    plan = Plan.asked([], [], {"sampler": "grid", "trials": 3, "seed": 0, "metric": "val_acc", "stages": []}, {})
    lines = summary.ending(trials, plan, sweeps.read(tied), "", tied / "table.csv")
    assert [line.split()[0] for line in lines if line.startswith("  000")] == ["0001", "0002", "0000"]
    assert "1.000 (60 of 60)" in lines[1]


def test_settings_that_tie_in_their_mean_are_ranked_by_the_mean_loss(here: Path) -> None:
    for k, (lr, seed, loss) in enumerate(((0.1, 1, 0.5), (0.1, 2, 0.3), (0.2, 1, 0.3), (0.2, 2, 0.3))):
        write_run(here / f"s/{k:04d}", **result(config(optimizer__lr=lr, seed=seed), 0.5, val_loss=loss))
    found = sweeps.read(here / "s")
    assert [found.entries[k].path.name for k in found.best] == ["0002", "0001"]


def test_the_best_epoch_is_by_the_same_rule() -> None:
    rows = [{"epoch": k, "val_acc": 1.0, "val_loss": loss} for k, loss in enumerate(LOSSES, 1)]
    state = State()
    assert [choosing.advance(state, row, "val_acc") for row in rows] == [True, True, False]
    assert (state.best or {})["epoch"] == BEST + 1


@pytest.mark.parametrize("lower", [False, True])
def test_score_then_loss_then_number_and_nothing_last(lower: bool) -> None:
    good, bad = (0.1, 0.9) if lower else (0.9, 0.1)
    order: list[tuple[Any, Any, int]] = [
        *((good, 0.2, 3), (good, 0.2, 4), (good, 0.3, 1), (good, None, 0), (bad, 0.1, 2)),
        *((None, 0.0, 5), (float("nan"), 0.0, 6), ("", 0.0, 7)),
    ]
    assert sorted([*reversed(order)], key=lambda one: place(*one, lower=lower)) == order


def latest() -> str:
    return Path("outputs/latest").resolve().name


def test_latest_leads_to_the_newest_completed_run(here: Path) -> None:
    first = claim("outputs/runs/first", "")
    assert latest() == "first"  # nothing has completed
    second = claim("outputs/runs/second", "")
    assert latest() == "second"
    first.update_result(status="completed")
    assert latest() == "first"
    second.update_result(status="failed")
    third = claim("outputs/runs/third", "")
    assert latest() == "first"
    third.update_result(status="completed")
    assert latest() == "third"
    for run in (first, second, third):
        run.release()


def test_latest_leads_to_the_best_of_a_sweep(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("dataset.limit=100", "trainer.epochs=1", "check=none", "model.width=4", "trainer.threads=1")
    done = dlrun("train", "-m", *words, "optimizer.lr=0.02,1e-7", "trainer.report=false", "sweep.dir=s")
    assert done.code == 0, done.err
    best = compare.rows(["s"])[0]["run"]
    assert Path("outputs/latest").resolve() == Path(best).resolve()
    shown = next(line for line in done.out.splitlines() if line.startswith("  000"))
    assert shown.split()[0] == Path(best).name
    kept = scores.used(Path("outputs/latest"))
    assert kept.startswith(f"with s/{Path(best).name}, epoch 1, val ")
    assert re.search(r"\d\.\d{3} \(\d+ of 10\)$", kept)
    predicted = dlrun("predict", "outputs/latest", "missing")
    assert predicted.code == 2
    exported = dlrun("ensemble", "outputs/latest", "--out", "e")
    assert kept.removeprefix("with ") in exported.out


def test_the_interval_is_wilsons() -> None:
    assert scores.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert scores.wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    low, high = scores.wilson(44 / 60, 60)
    assert scores.margin(44 / 60, 60) == pytest.approx((high - low) / 2)
    assert scores.counted("val_acc", 44 / 60, {"data": {"val": 60}}) == "0.733 (44 of 60)"
    assert scores.counted("val_acc", 0.5, {"data": {"val": 1000}}) == "0.5000"
    assert scores.counted("test_acc", 0.5, {"test_samples": 8}) == "0.500 (4 of 8)"
    assert scores.counted("val_loss", 0.5, {"data": {"val": 60}}) == "0.5000"


def test_a_lead_counts_when_newcombes_interval_begins_above_zero() -> None:
    # Newcombe 1998, table II, column b: 9/10 and 3/10 differ by 0.6, by method 10 from 0.1705 on
    assert 0.6 - scores.noise(0.3, 0.9, 10) == pytest.approx(0.1705, abs=1e-4)
    assert scores.noise(1.0, 1.0, 144) == pytest.approx(1 - scores.wilson(1.0, 144)[0])
