"""The board: what its page holds of runs and sweeps, what is read again, and `dlrun board` with its mistakes."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.analysis import compare
from dlrun.folders.disk import lock, unlock
from dlrun.reports import board_runs
from dlrun.reports.board import Board
from dlrun.reports.board_runs import Runs, content
from support.boards import RATES, cells, data, hostile
from support.commands import Outcome, without_torch
from support.many_runs import curves, many, one
from support.pages import EVIL
from support.stored import config, write, write_run

MODELS = RATES.replace("a-rates", "b-models")


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty runs of twelve epochs and their page."""
    root = many(tmp_path_factory.mktemp("board") / "outputs", 40, epochs=12)
    Board(root, root / "board.html").update()
    return root


def test_the_command_writes_one_page_without_torch(tmp_path: Path) -> None:
    many(tmp_path / "outputs", 12, epochs=3)
    done = without_torch([("board",), ("board", "outputs/runs", "--out", "deep/all.html")], tmp_path)
    assert [outcome.code for outcome in done] == [0, 0]
    assert done[0].out.strip() == "12 runs: outputs/board.html"
    assert len(data(tmp_path / "outputs/board.html")["links"]) == 12
    few = data(tmp_path / "deep/all.html")
    assert len(few["links"]) == 10
    write(tmp_path / "outputs/runs" / Path(cells(few, "run")[3]).name / "report.html", "report")
    (again,) = without_torch([("board", "outputs/runs", "--out", "deep/all.html")], tmp_path)
    assert again.code == 0
    (linked,) = filter(None, data(tmp_path / "deep/all.html")["links"])
    assert (tmp_path / "deep" / linked).resolve().parent.name == Path(cells(few, "run")[3]).name


def test_rows_columns_and_links_are_those_of_the_comparison(forty: Path) -> None:
    found, rows = data(forty / "board.html"), compare.rows([str(forty)])
    assert cells(found, "run") == [row["run"] for row in rows]
    assert cells(found, "val_acc") == [row["val_acc"] for row in rows]
    settings = [column["name"] for column in found["columns"] if column["setting"]]
    assert set(settings) == {"model", "seed", "optimizer.lr", "regularizer.l2", "model.width"}
    for link, row in zip(found["links"], rows, strict=True):
        report = Path(row["run"]) / "report.html"
        assert bool(link) == report.exists()
        assert not link or (forty / link).resolve() == report.resolve()
    assert sum(map(bool, found["links"])) == 2


def test_curves_are_those_of_metrics_csv_with_steps_and_cumulative_time(tmp_path: Path) -> None:
    path = one(tmp_path / "o/a", 0.9, 5, random.Random(0))
    runs = Runs(tmp_path / "o")
    assert runs.refresh()
    (drawn,) = content(runs, tmp_path)["curves"]
    rows = (path / "metrics.csv").read_text().splitlines()
    seconds = [float(row.split(",")[6]) + float(row.split(",")[7]) for row in rows[1:]]
    assert drawn["epoch"] == [1, 2, 3, 4, 5]
    assert drawn["time"] == pytest.approx([sum(seconds[: k + 1]) for k in range(5)], rel=1e-4)
    assert drawn["val_acc"] == pytest.approx([float(row.split(",")[5]) for row in rows[1:]], rel=1e-4)
    assert drawn["steps"] == 100  # 6,400 images in batches of 64


def test_long_runs_are_thinned_but_keep_their_ends_and_their_best(tmp_path: Path) -> None:
    path = one(tmp_path / "o/a", 0.9, 2000, random.Random(0))
    lines = (path / "metrics.csv").read_text().splitlines()
    lines[1234] = re.sub(r"^1234,(.*?,.*?,.*?,.*?),[^,]*", r"1234,\1,0.999", lines[1234])
    write(path / "metrics.csv", "\n".join(lines) + "\n")
    runs = Runs(tmp_path / "o")
    runs.refresh()
    (drawn,) = content(runs, tmp_path)["curves"]
    assert len(drawn["epoch"]) <= board_runs.POINTS + 1
    assert {1, 1234, 2000} <= set(drawn["epoch"])
    assert max(drawn["val_acc"]) == 0.999


def test_a_sweep_brings_its_axes_scores_and_scale(forty: Path) -> None:
    found = data(forty / "board.html")
    named = {sweep["name"]: sweep for sweep in found["sweeps"]}
    assert set(named) == {RATES, MODELS}
    rates = named[RATES]
    axes = {axis["name"]: axis for axis in rates["axes"]}
    assert axes["optimizer.lr"]["log"]
    runs, scores = cells(found, "run"), cells(found, "val_acc")
    for row, score, rate in zip(rates["rows"], rates["scores"], axes["optimizer.lr"]["numbers"], strict=True):
        assert RATES in runs[row]
        assert score == (scores[row] if cells(found, "status")[row] == "completed" else None)
        assert rate == cells(found, "optimizer.lr")[row]


def test_bad_folders_are_left_out_with_their_reason(tmp_path: Path, dlrun: Callable[..., Outcome]) -> None:
    many(tmp_path / "outputs", 6, epochs=3)
    write(tmp_path / "outputs/runs/torn/config.yaml", "a: [1,\n")
    write(tmp_path / "outputs/runs/deep/config.yaml", "seed: 1\n")
    write(tmp_path / "outputs/runs/deep/result.json", '{"config": {"a": ' + '{"a": ' * 900 + "1" + "}" * 901 + "}")
    write_run(tmp_path / "outputs/runs/huge", config(), val_acc=10**400, status="completed")
    (one(tmp_path / "outputs/runs/curve", 0.5, 2, random.Random(0)) / "metrics.csv").write_bytes(b"\xff\xfe\x00epoch")
    write(tmp_path / "outputs/sweeps/20260101-000000-a-rates/sweep.yaml", "axes: {")
    outcome = dlrun("board")
    assert outcome.code == 0
    found = data(tmp_path / "outputs/board.html")
    left = dict(found["left_out"])
    assert {name.rpartition("/")[2] for name in left} >= {"torn", "huge", "curve"}
    assert "config.yaml" in left["outputs/runs/torn"]
    assert len(found["links"]) >= 7
    assert outcome.out.count("left out: ") == len(left)


def test_a_folder_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "closed/b", "c"):
        one(tmp_path / name, 0.5, 1, random.Random(0))
    scandir = os.scandir

    def closed(folder: Any) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    runs = Runs(tmp_path)
    runs.refresh()
    assert [path.name for path in runs.found] == ["a", "c"]
    assert list(runs.left_out) == [str(tmp_path / "closed")]


def test_only_what_has_changed_is_read_again(forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = many(tmp_path / "o", 20, epochs=3)
    read, seen = compare.read, []
    monkeypatch.setattr(compare, "read", lambda paths: seen.extend(paths) or read(paths))
    board = Board(root, root / "board.html")
    assert board.update()
    assert len(seen) == 20
    seen.clear()
    before = (root / "board.html").stat().st_mtime_ns
    assert not board.update()
    assert seen == []
    assert (root / "board.html").stat().st_mtime_ns == before
    path = next(iter(board.runs.found))
    curves(path, 7, 0.7, random.Random(1))
    assert board.update()
    assert seen == [str(path)]
    (drawn,) = [c for c in data(root / "board.html")["curves"] if c and len(c["epoch"]) == 7]
    assert drawn["epoch"] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_whose_owner_dies_is_interrupted_though_no_file_changes(tmp_path: Path) -> None:
    path = one(tmp_path / "o/a", None, 2, random.Random(0), status="running")
    runs = Runs(tmp_path / "o")
    handle = lock(path, "")
    try:
        runs.refresh()
        assert cells(content(runs, tmp_path), "status") == ["running"]
        assert not runs.refresh()
    finally:
        unlock(handle)
    assert runs.refresh()
    assert cells(content(runs, tmp_path), "status") == ["interrupted"]
    assert not runs.refresh()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("nowhere",), "nowhere"),
        (("--watch", "nowhere"), "nowhere"),
        (("--watch=0",), "--watch"),
        (("--out", "."), "--out"),
        ((), "outputs"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], part: str, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("board", *words)
    assert outcome.code == 2
    assert outcome.err.startswith("dlrun: ")
    assert part in outcome.err
    assert outcome.err.count("\n") == 1


def test_watch_follows_a_run_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    root = many(tmp_path / "outputs", 4, epochs=3)
    page = root / "board.html"
    words = [sys.executable, "-m", "dlrun", "board", "--watch=0.2"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: page.exists() and len(data(page)["links"]) == 4)
            assert data(page)["watch"] == 0.2
            first = page.stat().st_ino
            time.sleep(0.7)
            assert page.stat().st_ino == first  # nothing has changed, nothing is written
            one(root / "runs/new", None, 2, random.Random(0), status="running")
            until(lambda: len(data(page)["links"]) == 5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
    assert "outputs/board.html" in out
    assert data(page)["watch"] == 0  # a page that waits for nothing


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_no_text_of_a_run_ends_the_data_or_its_link(tmp_path: Path) -> None:
    root = hostile(tmp_path / "o")
    Board(root, root / "board.html").update()
    text = (root / "board.html").read_text()
    assert text.count("<script") == text.count("</script") == 3
    assert "\u2028" not in text
    assert "<img" not in text
    found = data(root / "board.html")
    assert [link for link in found["links"] if link] == [
        f"./javascript%3Aalert%281%29/{k:04d}/report.html" for k in (2, 1, 0)
    ]
    assert any(EVIL in str(cell) for cell in cells(found, "model"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"unsafe|https?:|'self'|\*", policy[1])


def test_the_chart_library_is_the_released_file_and_its_licence_is_on_the_page(forty: Path) -> None:
    uplot = Path(board_runs.__file__).with_name("vendor") / "uplot"
    script = (uplot / "uPlot.iife.min.js").read_bytes()
    released = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"  # 1.6.32
    assert hashlib.sha256(script).hexdigest() == released
    text = (forty / "board.html").read_text()
    assert script.decode() in text
    assert (uplot / "LICENSE").read_text() in text
