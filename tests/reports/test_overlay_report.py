"""Several runs over each other: their results, their curves, and every setting in which they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from support.commands import Outcome, without_torch
from support.members import member
from support.pages import EVIL, section
from support.stored import write_run

HEADER = "epoch,train_loss,train_acc,val_loss,val_acc\n"


def run(path: Path, lr: float, epochs: int = 3, **more: Any) -> Path:
    config = {
        **{"seed": 1, "optimizer": {"lr": lr}, "search": {"trials": int(lr * 1000)}},
        **{"choices": {"model": "cnn", "optimizer": "adam"}},
    }
    write_run(path, status="completed", val_acc=1 - lr, val_loss=lr, best_epoch=epochs, config=config, **more)
    rows = "".join(f"{k},{1 / k},{1 - 1 / k},{2 / k},{1 - lr / k}\n" for k in range(1, epochs + 1))
    (path / "metrics.csv").write_text(HEADER + rows)
    return path


@pytest.fixture
def two(here: Path) -> Path:
    run(here / "a/x", 0.1)
    run(here / "b/x", 0.2, epochs=5)
    return here


def shown(file: Path, title: str) -> list[list[str]]:
    """The cells of the table of a section."""
    rows = re.findall(r"<tr>(.*?)</tr>", section(file.read_text(), title))
    return [
        [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in rows
    ]


def test_runs_are_laid_over_each_other(two: Path, dlrun: Callable[..., Outcome]) -> None:
    (two / "b/x/report.html").write_text("its page")
    outcome = dlrun("report", "a/x", "b/x")
    assert (outcome.code, outcome.err, outcome.out.strip()) == (0, "", "outputs/overlay.html")
    page = two / "outputs/overlay.html"
    head, *rows = shown(page, "Result")
    assert [row[0] for row in rows] == ["a/x", "b/x"]
    assert [row[head.index("val_acc")] for row in rows] == ["0.9", "0.8"]
    assert re.findall(r"<a href='([^']*)'>", page.read_text()) == ["../b/x/report.html"]
    assert section(page.read_text(), "Curves").count("data:image/png;base64,") == 4


def test_the_table_of_differences_has_what_matters(two: Path, dlrun: Callable[..., Outcome]) -> None:
    run(two / "c", 0.1, host="elsewhere")
    assert dlrun("report", "a/x", "b/x", "c", "--out", "deep/page.html").code == 0
    head, *rows = shown(two / "deep/page.html", "What differs")
    assert head == ["of", "key", "a/x", "b/x", "two/c"] or head[:4] == ["of", "key", "a/x", "b/x"]
    assert {row[1]: row[2:] for row in rows} == {
        "optimizer.lr": ["0.1", "0.2", "0.1"],
        "host": ["–", "–", "elsewhere"],
    }


def test_the_legend_names_every_run_and_each_has_its_colour(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.reports import overlay_report

    figures = []
    monkeypatch.setattr(overlay_report, "figure_bytes", lambda figure, dpi: figures.append(figure) or b"")
    overlay_report.write([two / "a/x", two / "b/x"], two / "page.html")
    assert len(figures) == 4
    for figure in figures:
        (axes,) = figure.axes
        assert [text.get_text() for text in figure.legends[0].texts] == ["a/x", "b/x"]
        assert [len(line.get_xdata()) for line in axes.lines] == [3, 5]
        assert len({line.get_color() for line in axes.lines}) == 2


def test_a_folder_stands_for_its_runs_and_the_same_run_counts_once(two: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("report", "a", "a/x", "b/x").code == 0
    assert len(shown(two / "outputs/overlay.html", "Result")) == 1 + 2


def test_runs_that_differ_in_nothing_have_a_card(two: Path, dlrun: Callable[..., Outcome]) -> None:
    run(two / "c", 0.1)
    assert dlrun("report", "a/x", "c").code == 0
    assert section((two / "outputs/overlay.html").read_text(), "What differs").count("class='card fine'") == 1


def test_what_cannot_be_laid_over_each_other_is_one_line(two: Path, dlrun: Callable[..., Outcome]) -> None:
    for k in range(9):
        run(two / f"many/{k}", 0.1)
    for k in range(2):
        member(two / f"members/{k}", k)
    assert dlrun("ensemble", "members", "--out", "ens").code == 0
    (two / "empty").mkdir()
    for words, named in (
        (("a/x", "nowhere"), "nowhere"),
        (("a/x", "empty"), "empty"),
        (("a/x", "ens"), "ens"),
        (("a/x", "many"), "10"),
        (("a/x", "b/x", "--out", "a"), "--out=a"),
        (("a/x", "--out", "p.html"), "--out=p.html"),
    ):
        outcome = dlrun("report", *words)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), words
        assert outcome.err.startswith(f"dlrun: {named}"), words
    assert not (two / "outputs").exists()


def test_nothing_in_a_file_becomes_markup(two: Path, dlrun: Callable[..., Outcome]) -> None:
    evil = run(two / "javascript:alert(1)", 0.3, name=EVIL, reason=EVIL)
    (evil / "report.html").write_text("")
    result = json.loads((evil / "result.json").read_text())
    result["config"][EVIL] = EVIL
    (evil / "result.json").write_text(json.dumps(result | {"status": EVIL}))
    outcome = dlrun("report", "a/x", "javascript:alert(1)", "--out", "page.html")
    assert (outcome.code, outcome.err) == (0, "")
    text = (two / "page.html").read_text()
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert "href='javascript:" not in text


def test_it_needs_no_torch(two: Path) -> None:
    (outcome,) = without_torch([("report", "a/x", "b/x")], two)
    assert (outcome.code, outcome.out.strip()) == (0, "outputs/overlay.html")
