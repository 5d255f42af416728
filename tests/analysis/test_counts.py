"""Every score on fewer than 1,000 images is shown with how many are right or with its interval, wherever it stands."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.analysis import scores
from dlrun.console import Screen
from dlrun.reports.board import Board
from dlrun.search import summary
from dlrun.search.plan import Plan
from dlrun.search.results import Results
from dlrun.search.study import Trial
from dlrun.training import recording
from support.boards import data
from support.browser import watch_page
from support.commands import Outcome
from support.many_runs import curves
from support.members import member
from support.pages import section
from support.stored import config, result, write

INTERVAL = re.compile(r"[01]\.\d{4} ±0\.\d{3}")
RIGHT = (54, 51, 30)  # of 60 images, by run


@pytest.fixture
def few(here: Path) -> Path:
    """A sweep of three runs with 60 images for validation and for the test."""
    folder = here / "outputs/sweeps/s"
    write(folder / "sweep.yaml", "search: {metric: val_acc, direction: auto}\naxes: []\nrounds: []\n")
    for k, right in enumerate(RIGHT):
        path = member(folder / f"{k:04d}", seed=k, skill=1.0)
        curves(path, 3, right / 60, random.Random(k))
        stored = json.loads((path / "result.json").read_text())
        more = result(config(optimizer__lr=10.0**-k), right / 60, test_acc=right / 60, best_epoch=3, tested_epoch=3)
        more["data"] = stored["data"] | {"train": 90, "val": 60, "test": 60}
        write(path / "result.json", json.dumps(stored | more))
        write(path / "config.yaml", json.dumps({"seed": k, "dataset": {}, "model": {}, "optimizer": {}, "trainer": {}}))
    return folder


def test_the_numbers_of_a_split_are_those_of_its_column() -> None:
    stored = {"data": {"train": 90, "val": 60}, "test_samples": 10}
    assert scores.counted("train_acc", 0.5, stored) == "0.500 (45 of 90)"
    assert scores.counted("ema_val_acc", 0.5, stored) == "0.500 (30 of 60)"
    assert scores.counted("plain_test_acc", 0.5, stored) == "0.500 (5 of 10)"
    beside = scores.beside(stored, {"val_acc": "0.5", "val_loss": "0.1", "test_acc": "", "raw_val_acc": "x"})
    assert list(beside) == [
        "val_acc",
        "val_acc ±",
        "val_loss",
        "test_acc",
        "test_acc ±",
        "raw_val_acc",
        "raw_val_acc ±",
    ]
    assert beside["val_acc ±"] == f"{scores.margin(0.5, 60):.3f}"
    assert beside["test_acc ±"] == beside["raw_val_acc ±"] == ""


def test_on_the_terminal(few: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert dlrun("ensemble", str(few), "--out", "outputs/e").code == 0
    listed = dlrun("list", "outputs").out.splitlines()
    assert [bool(re.search(r"[01]\.\d{3} \(\d+ of 60\)", line)) for line in listed[1:3]] == [True, True]
    assert "0.850 (51 of 60)" in dlrun("list", str(few)).out
    different = dlrun("diff", str(few / "0000"), str(few / "0001")).out
    for column in ("val_acc", "test_acc"):
        line = next(line for line in different.splitlines() if line.split()[:1] == [column])
        assert re.split(r"\s{2,}", line.strip())[1:] == ["0.900 (54 of 60)", "0.850 (51 of 60)"]
    compared = dlrun("compare", "outputs").out.splitlines()
    assert [len(INTERVAL.findall(line)) for line in compared[1:5]] == [2] * 4  # three runs and an ensemble
    alone = dlrun("compare", "outputs", "--group-seeds").out.splitlines()
    assert [re.findall(r"\((\d+) of 60\)", line) for line in alone[1:4]] == [[str(n)] * 2 for n in RIGHT]
    voted = dlrun("ensemble", str(few), "--out", "f").out.splitlines()
    rows = [line for line in voted if " % " in line]
    assert len(rows) == 6
    assert all(len(re.findall(r"\d % |% ± \d", line)) >= 2 and line.count("±") == 2 for line in rows)


def test_on_the_screen_of_a_sweep(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Results(few, "val_acc", False, [Trial(k, {"optimizer.lr": 10.0**-k}) for k in range(3)])
    plan = Plan.asked([], [], {"sampler": "grid", "trials": 3, "seed": 0, "metric": "val_acc", "stages": []}, {})
    assert "val_acc 0.850 (51 of 60)" in summary.line(trials, plan, 1, again=False)
    shown: list[str] = []
    screen = Screen()
    screen.live = True
    monkeypatch.setattr(screen, "count", lambda done, total, label, text: shown.append(text))
    summary.bar(screen, trials, plan, 3)
    assert "0000 val_acc 0.900 (54 of 60)" in shown[0]


def epoch(width: int, right: tuple[float, float], images: int) -> str:
    import io

    from rich.console import Console

    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=width, soft_wrap=True, highlight=False)
    screen.live = True
    row: dict[str, Any] = {"epoch": 7, "lr": 1e-3, "train_loss": 2.2109, "val_loss": 2.0783, "train_seconds": 0.5}
    row |= {"eval_seconds": 0.1, "samples_per_second": 1553.0}
    shares = {split: recording.right(share, images) for split, share in zip(("train", "val"), right, strict=True)}
    screen.epoch(row, 30, True, shares)
    return str(screen.console.file.getvalue()).rstrip("\n")  # type: ignore[attr-defined]


def test_in_the_line_of_an_epoch() -> None:
    assert "acc 0.200 (12 of 60)  val loss 2.0783 acc 0.400 (24 of 60)" in epoch(160, (0.2, 0.4), 60)
    narrow = epoch(80, (0.2, 0.4), 900)
    assert "acc 180/900  val loss 2.0783 acc 360/900" in narrow
    assert len(narrow) <= 80
    assert "acc 0.2000  val loss 2.0783 acc 0.4000" in epoch(160, (0.2, 0.4), 1000)


def columns(page: str, title: str) -> list[str]:
    return re.findall(r"<th[^>]*><button>([^<]*)</button>", section(page, title))


def test_on_pages(few: Path, dlrun: Callable[..., Outcome]) -> None:
    runs = [str(few / f"{k:04d}") for k in range(3)]
    for words in (("report", runs[0]), ("report", *runs), ("report", str(few)), ("ensemble", *runs, "--out", "e")):
        done = dlrun(*words)
        assert done.code == 0, done.err
    pages = {
        "Every epoch": few / "0000/report.html",
        "Result": Path("outputs/overlay.html"),
        "Every trial": few / "report.html",
        "The best 3": few / "report.html",
        "Votes": Path("e/report.html"),
        "Members": Path("e/report.html"),
    }
    for title, file in pages.items():
        named = columns(file.read_text(), title)
        for column in ("val_acc", "test_acc") if title != "Every epoch" else ("val_acc", "train_acc"):
            assert named[named.index(column) + 1] == f"{column} ±", (title, column)
    for file in {few / "0000/report.html", few / "report.html", Path("e/report.html")}:
        head = file.read_text().partition("<div class=numbers>")[2].partition("<section>")[0]
        assert len(re.findall(r"\(\d+ of 60\)", head)) == 2, file


@pytest.mark.slow
def test_on_the_board(few: Path, tmp_path: Path) -> None:
    Board(few.parents[1], tmp_path / "board.html").update()
    assert data(tmp_path / "board.html")["images"] == [{"train": 90, "val": 60, "test": 60}] * 3
    script = """
      const at = (name) => all("#head th").findIndex((th) => th.dataset.name === name);
      const read = (name) => all("tbody tr").map((row) => row.cells[at(name)].textContent);
      return [read("val_acc"), read("test_acc"), read("val_loss"), all("tbody td.best").map((c) => c.textContent)];"""
    val, test, loss, best = watch_page(tmp_path / "board.html", tmp_path, script)
    assert val == test == ["0.900 (54 of 60)", "0.850 (51 of 60)", "0.500 (30 of 60)"]
    assert not any("of" in text for text in loss)
    assert "0.900 (54 of 60)" in best
