"""Stored files of a newer dlrun are refused in one line, those without a version are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from dlrun.folders import ensemble, reading
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.run import claim, reopen, settle
from dlrun.folders.version import NewerFormat
from dlrun.vocabulary import FORMAT
from support.commands import Outcome
from support.members import member
from support.stored import config, write
from support.swept import trial

NEWER = FORMAT + 1


@pytest.fixture(autouse=True)
def image(here: Path) -> None:
    """Something to predict."""
    np.save("x.npy", np.zeros((1, 8, 8), np.uint8))


def age(file: Path, version: object) -> None:
    """Give a stored file another version; None takes it away."""
    content = yaml.safe_load(file.read_text())
    content.pop("version", None)
    content |= {} if version is None else {"version": version}
    file.write_text(json.dumps(content))


def refused(outcome: Outcome, file: Path | str) -> None:
    """One line that names the file and both formats."""
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert str(file) in outcome.err
    assert f"format {NEWER}, " in outcome.err
    assert f" {FORMAT})" in outcome.err


def test_what_is_written_has_the_version(here: Path) -> None:
    run = claim("r", "")
    run.update_result(status="running")
    age(run.path / "result.json", None)
    run.release()
    write(here / "r/config.yaml", "seed: 1\n")
    again = reopen("r")
    again.update_result(val_acc=0.5)
    again.release()
    assert json.loads((here / "r/result.json").read_text()) == {"version": FORMAT, "status": "running", "val_acc": 0.5}
    sweep_folder.write_plan(here, {"axes": []})
    assert sweep_folder.plan(here) == {"version": FORMAT, "axes": []}
    ensemble.write(here, {"members": [{"run": "r"}]}, {}, {}, {})
    assert ensemble.read(here)["version"] == reading.stored(here)["version"] == FORMAT


@pytest.mark.parametrize("verb", [("resume",), ("report",), ("predict", "x.npy"), ("export", "--to", "torch_export")])
def test_a_run_of_a_newer_version_is_refused(here: Path, dlrun: Callable[..., Outcome], verb: tuple[str, ...]) -> None:
    run = member(here / "r", 0)
    write(run / "config.yaml", yaml.safe_dump(config()))
    age(run / "result.json", NEWER)
    refused(dlrun(verb[0], "r", *verb[1:]), "r/result.json")
    with pytest.raises(NewerFormat):
        settle(run, status="failed")
    age(run / "result.json", None)
    reopen("r").release()  # the refusal has let it go


def test_newer_runs_and_ensembles_are_rows_and_no_members(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k in range(3):
        member(here / f"runs/{k}", seed=k)
    age(here / "runs/0/result.json", NEWER)
    assert dlrun("ensemble", "runs", "--out", "e").code == 0
    assert [m["run"] for m in ensemble.read(here / "e")["members"]] == ["../runs/1", "../runs/2"]
    refused(dlrun("ensemble", "runs/0"), "runs/0/result.json")
    age(here / "e/result.json", NEWER)
    outcome = dlrun("compare", ".")
    assert outcome.code == 0
    with open("outputs/compare.csv", newline="") as file:
        rows = {row["run"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}
    assert {run: status for run, (status, _) in rows.items()} == {
        "runs/1": "completed",
        "runs/2": "completed",
        "runs/0": "unreadable",
        "e": "unreadable",
    }
    assert all((f"{run}/result.json" in reason) == (status == "unreadable") for run, (status, reason) in rows.items())
    assert dlrun("compare", ".", "--group-seeds").code == 0
    assert dlrun("report", "runs").code == 0
    age(here / "e/result.json", None)
    age(here / "e/ensemble.yaml", NEWER)
    refused(dlrun("predict", "e", "x.npy"), "e/ensemble.yaml")


def test_a_sweep_of_a_newer_version_is_refused_and_its_runs_are_rows(here: Path, dlrun: Callable[..., Outcome]) -> None:
    trial(here / "s", 0.5, optimizer__lr=0.1)
    write(here / "s/sweep.yaml", "{}")
    age(here / "s/sweep.yaml", NEWER)
    again = ("train", "-m", "seed=1,2", "sweep.dir=s")
    for words in (("resume", "s"), ("report", "s"), again, ("predict", "s", "x.npy")):
        refused(dlrun(*words), "s/sweep.yaml")
    assert dlrun("compare", "s").code == 0


def test_lists_show_a_newer_run_and_its_differences_are_refused(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k in range(2):
        member(here / f"runs/{k}", seed=k)
    age(here / "runs/1/result.json", NEWER)
    outcome = dlrun("list", "runs")
    assert outcome.code == 0
    assert {line.split()[0]: line.split()[1] for line in outcome.out.splitlines()[1:3]} == {
        "runs/0": "completed",
        "runs/1": "unreadable",
    }
    refused(dlrun("diff", "runs/0", "runs/1"), "runs/1/result.json")
    assert dlrun("board", "runs").code == 0
    assert dlrun("rm", "runs/1", "--yes").code == 0
    assert [path.name for path in (here / "runs").iterdir() if path.is_dir()] == ["0"]


@pytest.mark.parametrize("version", [None, 0, FORMAT, "x", [9], True])
def test_what_is_not_newer_is_read(here: Path, version: object) -> None:
    run = member(here / "r", 0)
    age(run / "result.json", version)
    assert reading.stored(run)["status"] == "completed"
