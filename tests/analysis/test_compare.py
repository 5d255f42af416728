"""`dlrun compare`: what differs between runs and what came of them, from result.json alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dlrun.analysis import compare
from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.reports import tables
from support import warm
from support.commands import TINY, Outcome
from support.stored import BASE, config, result, write, write_run


def columns(*results: dict[str, Any]) -> list[str]:
    """The columns between status and epochs for runs with these results."""
    for number, each in enumerate(results):
        write_run(Path(f"outputs/runs/{number}"), **each)
    names = list(compare.rows(["outputs"])[0])
    return names[names.index("verdicts") + 1 : names.index("epochs")]


def test_columns_are_the_keys_that_differ(here: Path) -> None:
    assert columns(result(config()), result(config(seed=2, optimizer__lr=0.1))) == ["seed", "optimizer.lr"]


def test_equal_runs_show_no_keys(here: Path) -> None:
    assert columns(result(config()), result(config(run__dir="x", check__enabled=False))) == []


def test_an_option_comes_first_and_without_what_it_brings_along(here: Path) -> None:
    sgd = config(choices__optimizer="sgd", optimizer={"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9})
    # momentum has one value among the runs that have it
    assert columns(result(config(seed=3)), result(sgd)) == ["optimizer", "seed", "optimizer.lr"]


def test_a_target_that_differs_within_an_option_shows(here: Path) -> None:
    other = config(optimizer___target_="mine.Adam")
    assert columns(result(config()), result(other)) == ["optimizer._target_"]


def test_a_key_that_follows_another_is_left_out(here: Path) -> None:
    longer = config(trainer__epochs=9, scheduler__epochs=9)
    assert columns(result(config()), result(longer)) == ["trainer.epochs"]
    apart = config(trainer__epochs=9, scheduler__epochs=5)
    assert columns(result(config()), result(apart)) == ["trainer.epochs", "scheduler.epochs"]


def order(*results: dict[str, Any]) -> list[str]:
    for number, each in enumerate(results):
        write_run(Path(f"outputs/runs/{number}"), **each)
    return [Path(row["run"]).name for row in compare.rows(["outputs"])]


def test_best_first_and_those_without_a_score_last(here: Path) -> None:
    failed = {"config": BASE, "status": "failed", "monitor": "val_acc"}
    diverged = result(config(), val_acc=float("nan"))
    assert order(result(BASE, 0.5), failed, result(BASE, 0.9), diverged, result(BASE, 0.7)) == list("24013")


def test_by_loss_where_all_watch_a_loss(here: Path) -> None:
    one, other = (config(trainer__monitor="val_loss", optimizer__lr=lr) for lr in (0.1, 0.2))
    runs = [result(one, 0.9, val_loss=0.3), result(other, 0.8, val_loss=0.2)]
    assert order(*runs) == ["1", "0"]
    assert order(*runs, result(BASE, 0.85)) == ["0", "2", "1"]


def test_csv_holds_the_numbers_in_full(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(here / "outputs/runs/a", **result(config(optimizer__lr=0.1), 2 / 3, best_epoch=2, seconds=12.3456))
    write_run(here / "outputs/runs/b", **result(config(optimizer__betas=[0.5, 0.9]), 0.5))
    outcome = dlrun("compare")
    assert outcome.code == 0
    text = (here / "outputs/compare.csv").read_text()
    first, second = list(csv.DictReader(io.StringIO(text)))
    assert first == {
        "run": "outputs/runs/a", "status": "completed", "checks": "", "verdicts": "", "optimizer.lr": "0.1",
        "optimizer.betas": "[0.9, 0.999]", "epochs": "3", "best_epoch": "2", "val_acc": str(2 / 3),
        "val_loss": str(1 - 2 / 3), "test_acc": str(2 / 3 - 0.01), "test_loss": str(1.1 - 2 / 3), "sparsity": "",
        "seconds": "12.3456",
    }  # fmt: skip
    assert second["optimizer.betas"] == "[0.5, 0.9]"
    assert second["seconds"] == ""
    assert pd.read_csv(here / "outputs/compare.csv")["val_acc"].tolist() == [2 / 3, 0.5]


def test_screen_gives_each_run_one_line_without_empty_columns(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    long = "x" * 150
    write_run(here / "outputs/runs/a", **result(config(trust=[], optimizer__lr=0.1), 0.5))
    write_run(here / "outputs/sweeps/s/0003", **result(config(choices__model=long), 0.6))
    lines = dlrun("compare", "outputs").out.splitlines()
    scores = ["val_acc", "test_acc", "model", "optimizer.lr", "val_loss", "test_loss"]
    assert lines[0].split() == ["run", "status", *scores, "epochs"]
    shown = lines[1].split()
    assert shown[:4] == ["s/0003", "completed", "0.6000", "0.5900"]
    assert shown[5:] == ["0.001", "0.4000", "0.5000", "3"]
    assert set(shown[4]) == {"x", "…"}
    assert lines[2].split()[0] == "a"
    assert re.fullmatch(r"2 runs; .* outputs/compare\.csv", lines[3])
    assert lines[4].startswith("best: s/0003, val_acc 0.6000")
    assert "`" not in lines[5]
    assert len(lines) == 6


def test_best_scores_are_marked_on_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    write_run(here / "outputs/a", **result(config(), 0.5))
    write_run(here / "outputs/b", **result(config(seed=2), 0.6))
    text = tables.as_text(compare.rows(["outputs"]))
    green = [word.split("\x1b[0m")[0] for word in text.split("\x1b[1;32m")[1:]]
    assert green == ["0.6000", "0.5900", "0.4000", "0.5000"]  # highest accuracies, lowest losses


def test_states(here: Path) -> None:
    live = claim("outputs/runs/live", "")
    write_run(live.path, **result(config(), 0.5, status="running"))
    write_run(here / "outputs/runs/dead", **result(config(), 0.4, status="running"))
    write(here / "outputs/runs/newborn/config.yaml", "seed: 9\n")
    write_run(here / "outputs/runs/marked", **result(config(), 0.3, checks="fail"))
    rows = {Path(row["run"]).name: row for row in compare.rows(["outputs"])}
    live.release()
    assert {name: row["status"] for name, row in rows.items()} == {
        "live": "running", "dead": "interrupted", "newborn": "interrupted", "marked": "completed"
    }  # fmt: skip
    assert (rows["newborn"]["seed"], rows["marked"]["checks"]) == ("9", "fail")
    assert "fail" in tables.as_text(list(rows.values()))


def test_a_run_of_another_process_is_shown_while_it_trains(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = [*TINY, "trainer.epochs=5000", "run.dir=outputs/runs/live"]
    child = warm.popen([sys.executable, "-m", "dlrun", "train", *words], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if len(reading.metrics(Path("outputs/runs/live"))) > 1:
                break
            time.sleep(0.1)
        (row,) = json.loads(dlrun("compare", "--json").out)
        assert row["status"] == "running"
        assert 1 <= row["epochs"] < 5000
        assert " running " in dlrun("compare").out
    finally:
        child.kill()
        child.wait()
    (row,) = json.loads(dlrun("compare", "--json").out)
    assert row["status"] == "interrupted"


def test_nothing_to_compare(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("compare")
    assert outcome.code == 0
    assert re.fullmatch(r"no runs .*outputs\b.*`dlrun train`\n", outcome.out)
    assert list(here.iterdir()) == []


def test_names_with_brackets_are_no_markup(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(here / "outputs/runs/[red]x", **result(config(), 0.5))
    assert "[red]x" in dlrun("compare").out


def test_csv_goes_where_it_is_sent(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(here / "runs/a", **result(config(), 0.5))
    assert dlrun("compare", "runs", "--csv", "tables/mine.csv").code == 0
    assert (here / "tables/mine.csv").exists()
    assert not (here / "outputs").exists()
    refused = dlrun("compare", "runs", "--csv", "runs")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "runs: cannot write: Is a directory" in refused.err


def test_a_reader_that_leaves_is_no_error(here: Path) -> None:
    for number in range(400):
        write_run(here / f"outputs/{number:04d}", **result(config(seed=number), number / 400))
    command = f"set -o pipefail; {sys.executable} -m dlrun compare | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:3] == ["run", "status", "val_acc"]
