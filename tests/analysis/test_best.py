"""One best: the epoch, trial, setting and member that every command and page names, also when scores tie."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.analysis import compare, scores, sweeps
from dlrun.folders.run import claim
from dlrun.reports import sweep_report, tables
from dlrun.reports.board_runs import Runs, content
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


SEEDS = 3
# for each setting the images of 60 that are right with each seed, and the val_loss of all: the first has the best run,
# the others tie in their mean, and the last two also in their val_loss
MEANS = (((60, 40, 41), 0.1), ((52, 54, 53), 0.4), ((54, 51, 54), 0.3), ((53, 53, 53), 0.3))
FIRST = ("0006", "0008", "0007")  # the runs of the third setting, best first; of two that tie the first trial


def seeded(folder: Path) -> Path:
    """A sweep of four settings with three seeds each."""
    axes = "- {key: optimizer.lr, words: ['1.0', '0.1', '0.01', '0.001'], low: 0.0, high: 0.0, log: true}\n"
    axes += "- {key: seed, words: ['0', '1', '2'], low: 0.0, high: 0.0, log: false}\n"
    write(folder / "sweep.yaml", f"search: {{metric: val_acc, direction: auto}}\naxes:\n{axes}rounds: []\n")
    for number, (rights, loss) in enumerate(MEANS):
        for seed, right in enumerate(rights):
            trial = SEEDS * number + seed
            path = member(folder / f"{trial:04d}", seed=trial, skill=9.0)
            arrays = dict(np.load(path / "predictions.npz"))
            arrays["val_logits"][right:] *= -1  # the class that is right has the lowest logit
            np.savez(path / "predictions.npz", **arrays)
            stored = json.loads((path / "result.json").read_text())
            more = result(config(optimizer__lr=10.0**-number, seed=seed), right / 60, val_loss=loss, best_epoch=7)
            more["data"] = stored["data"] | {"val": 60, "test": 60}
            write(path / "result.json", json.dumps(stored | more))
    return folder


def test_of_settings_with_seeds_every_place_names_the_one_with_the_best_mean(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = seeded(here / "outputs/sweeps/s")
    monkeypatch.setenv("COLUMNS", "160")
    # the terminal of the sweep: the mark, the first of the best three, the next commands
    values = [{"optimizer.lr": 10.0 ** -(k // SEEDS), "seed": k % SEEDS} for k in range(12)]
    trials = Results(folder, "val_acc", False, [Trial(k, v) for k, v in enumerate(values)])
    plan = Plan.asked([], [], {"sampler": "grid", "trials": 12, "seed": 0, "metric": "val_acc", "stages": []}, {})
    assert [f"{t.number:04d}" for t in trials.ranked()[:SEEDS]] == [*FIRST]
    marked = [k for k in range(12) if summary.line(trials, plan, k, again=False).endswith("  best")]
    assert marked == [int(FIRST[0])]
    ended = summary.ending(trials, plan, sweeps.read(folder), "", folder / "table.csv")
    assert next(line for line in ended if line.startswith("  00")).split()[0] == FIRST[0]
    # compare: rows in groups of a setting, the line that decides, settings with --group-seeds, JSON
    shown = dlrun("compare", "outputs").out.splitlines()
    assert [line.split()[0] for line in shown[1:4]] == [*FIRST]
    (decided,) = [line for line in shown if line.startswith("best: ")]
    assert decided.split()[1] == FIRST[0]
    assert "0.8833" in decided
    grouped = json.loads(dlrun("compare", "outputs", "--group-seeds", "--json").out)
    assert [Path(run).name for run in grouped[0]["runs"]] == ["0006", "0007", "0008"]
    rows = json.loads(dlrun("compare", "outputs", "--json").out)
    assert [Path(row["run"]).name for row in rows[:3]] == [*FIRST]
    # pages
    assert dlrun("report", str(folder)).code == 0
    page = (folder / "report.html").read_text()
    assert re.findall(r"\b00\d\d\b", section(page, "The best 3"))[0] == FIRST[0]
    assert re.findall(r"<td>(00\d\d)</td>", section(page, "Every trial"))[:3] == [*FIRST]
    assert [Path(cell).name for cell in board(here / "outputs")[:3]] == [*FIRST]
    # what the others name and use
    listed = dlrun("list", "outputs").out
    assert "54 of 60" in listed or "0.9000" in listed
    refused = dlrun("predict", str(folder), ".")
    assert f"/{FIRST[0]}," in refused.err
    used = dlrun("ensemble", str(folder), "--top", "3", "--out", "e").out
    assert f"/{FIRST[0]}, epoch 7, val 0.900 (54 of 60)" in used
    with open("e/members.csv", newline="") as file:
        assert [Path(row["member"]).name for row in csv.DictReader(file)] == [*FIRST]


def board(folder: Path) -> list[str]:
    """The runs of the board in its order."""
    runs = Runs(folder)
    runs.refresh()
    (cells,) = [c["cells"] for c in content(runs, folder)["columns"] if c["name"] == "run"]
    return [str(cell) for cell in cells]


def test_a_lucky_seed_is_not_marked_as_the_best(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = compare.read([str(seeded(here / "s"))])
    rows = compare.table(entries)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for ordered in (rows, rows[::-1]):
        columns = tables._columns(ordered, leader=rows[0]["run"])
        (marked,) = next(c.best for c in columns if c.name == "val_acc")
        assert Path(ordered[marked]["run"]).name == FIRST[0]


def test_runs_that_train_or_stopped_come_after_the_completed_ones(here: Path) -> None:
    for name, status, acc in (("a", "completed", 0.5), ("b", "paused", 0.9), ("c", "failed", 0.95)):
        write_run(here / "s" / name, **result(config(), acc, status=status))
    assert [Path(row["run"]).name for row in compare.rows(["s"])] == ["a", "b", "c"]


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
