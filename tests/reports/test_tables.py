"""`dlrun compare` for programs and papers: JSON, LaTeX, sorting, long tables, files that are broken (S10)."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.analysis import compare
from dlrun.reports import sweep_report, tables
from dlrun.search import summary
from dlrun.search.plan import Plan
from dlrun.search.results import Results
from dlrun.search.study import Trial
from support.commands import Outcome, without_torch
from support.members import member
from support.pages import section
from support.stored import config, result, write, write_run

PACKAGE = Path(compare.__file__).parents[1]


def two() -> None:
    write_run(Path("outputs/runs/a_b"), **result(config(optimizer__lr=0.1), 0.5, seconds=1.0))
    write_run(Path("outputs/sweeps/s/0000"), **result(config(optimizer__betas=[0.5, 0.9]), 0.75, seconds=20.0))


def test_json_is_alone_typed_and_without_nan(here: Path, dlrun: Callable[..., Outcome]) -> None:
    two()
    broken = result(config(optimizer__lr=0.3), 0.6, val_loss=float("nan"), test_loss=float("inf"), status="diverged")
    write_run(here / "outputs/2024", **broken)
    found = json.loads(dlrun("compare", "--json").out, parse_constant=pytest.fail)
    assert [row["run"] for row in found] == ["outputs/sweeps/s/0000", "outputs/runs/a_b", "outputs/2024"]
    assert [row["optimizer.lr"] for row in found] == [0.001, 0.1, 0.3]
    assert found[0]["optimizer.betas"] == [0.5, 0.9]
    assert (found[0]["val_acc"], found[0]["checks"]) == (0.75, None)
    assert (found[2]["val_loss"], found[2]["test_loss"], found[2]["val_acc"]) == (None, None, 0.6)
    assert not Path("outputs/compare.csv").exists()
    assert dlrun("compare", "--json", "--csv", "x.csv").code == 0
    assert Path("x.csv").exists()


def test_json_of_nothing_is_an_empty_list(here: Path, dlrun: Callable[..., Outcome]) -> None:
    assert json.loads(dlrun("compare", "--json").out) == []


def test_latex_is_alone_escaped_and_even(here: Path, dlrun: Callable[..., Outcome]) -> None:
    two()
    write_run(here / "outputs/runs/c", **result(config(choices__model="50%_{net}&^~\\#$<|>"), 0.1))
    lines = dlrun("compare", "--latex").out.splitlines()
    assert lines[0] == "% needs \\usepackage{booktabs}"
    kinds = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", lines[1])
    assert kinds is not None
    assert (lines[2], lines[4], lines[-2], lines[-1]) == ("\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}")
    body = [lines[3], *lines[5:-2]]
    assert len(body) == 4
    for line in body:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(kinds[1]) - 1
        assert not re.search(r"(?<!\\)[%_#]", line)
    assert "val\\_acc" in lines[3]
    assert r"\textbf{0.7500}" in lines[5]
    special = r"50\%\_\{net\}\&\textasciicircum{}\textasciitilde{}\textbackslash{}\#\$\textless{}\textbar{}"
    assert special in body[3]


def test_sorting(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for name, lr, acc in (("a", 1e-3, 0.5), ("b", 20.0, 0.7), ("c", 3.0, 0.6), ("d", 1e-8, None)):
        write_run(here / "outputs" / name, **result(config(optimizer__lr=lr), acc))

    def order(column: str) -> str:
        return "".join(row["run"][-1] for row in compare.sorted_by(compare.rows(["outputs"]), column))

    assert order("optimizer.lr") == "dacb"  # by size, not as text
    assert order("-optimizer.lr") == "bcad"
    assert order("val_acc") == "bcad"
    assert order("-val_acc") == "acbd"  # what has no value stays last
    assert order("val_loss") == "bcad"
    assert order("-run") == "dcba"
    refused = dlrun("compare", "--sort=val_ac")
    assert refused.code == 2
    assert refused.err.startswith("dlrun: --sort=val_ac: ")
    assert refused.err.endswith(" val_acc?\n")
    assert dlrun("compare", "--sort=-val_acc").out.splitlines()[1].startswith("a ")


def test_only_runs_that_are_done_are_best(here: Path) -> None:
    for name, status, acc in (("a", "completed", 0.5), ("b", "diverged", 0.9), ("c", "running", 0.8)):
        write_run(here / "outputs" / name, **result(config(seed=ord(name)), acc, status=status))
    write_run(here / "outputs/d", **result(config(seed=1), 0.4))
    rows = compare.rows(["outputs"])
    assert [Path(row["run"]).name for row in rows] == ["a", "d", "c", "b"]  # c was left behind: interrupted
    (accuracy,) = (c for c in tables._columns(rows) if c.name == "val_acc")
    assert accuracy.best == {0}


def test_a_terminal_shows_the_best_and_says_so(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        write_run(here / f"outputs/{number:04d}", **result(config(seed=number), number / 60))
    lines = dlrun("compare").out.splitlines()
    assert sum(line[:4].isdigit() for line in lines) == 60  # a pipe gets all of them
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    rows = compare.rows(["outputs"])
    assert len(tables.as_text(rows, 50).splitlines()) == 51
    assert len(tables.as_text(rows, None).splitlines()) == 61


def test_numbers_that_a_search_drew_are_short_on_screen_alone(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for lr in (0.0123456789012345, 8.0357777723346e-06):
        write_run(here / "outputs" / f"{lr}", **result(config(optimizer__lr=lr), 0.5))
    shown = dlrun("compare").out
    assert "0.01235" in shown
    assert "8.036e-06" in shown
    assert "0.0123456789012345" in Path("outputs/compare.csv").read_text()
    assert json.loads(dlrun("compare", "--json").out)[0]["optimizer.lr"] == 0.0123456789012345


def test_a_narrow_terminal_loses_columns_and_says_which(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    two()
    rows = compare.rows(["outputs"])

    def shown(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        return re.sub("\x1b[^m]*m", "", tables.as_text(rows))

    assert "no room" not in shown(140)
    assert "optimizer.lr" in shown(140)
    narrow = shown(76).splitlines()
    assert " val_loss, " in narrow[-1]
    assert max(map(len, narrow)) <= 76
    assert "0.7500" in narrow[1]  # the score that counts stays
    assert "optimizer.\n" not in shown(140)
    assert [line.split()[0] for line in narrow[1:3]] == ["s/0000", "a_b"]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", "null", '{"config": 3}', '{"config": null, "verdicts": 5}', "[" * 100_000]
)
def test_a_broken_result_breaks_its_own_row_alone(here: Path, dlrun: Callable[..., Outcome], text: str) -> None:
    two()
    write(here / "outputs/broken/config.yaml", "seed: 9\n")
    write(here / "outputs/broken/result.json", text)
    for words in ((), ("--group-seeds",), ("--json",)):
        outcome = dlrun("compare", *words)
        assert (outcome.code, outcome.err) == (0, ""), words
    rows = compare.rows(["outputs"])
    assert [Path(row["run"]).name for row in rows] == ["0000", "a_b", "broken"]
    assert rows[2]["status"] == "unreadable"


def test_mixed_runs_and_sweeps_each_once(here: Path, dlrun: Callable[..., Outcome]) -> None:
    two()
    (here / "latest").symlink_to("outputs/runs/a_b")
    found = json.loads(dlrun("compare", "outputs/sweeps/s", "outputs/runs/a_b", "outputs", "latest", "--json").out)
    assert [row["run"] for row in found] == ["outputs/sweeps/s/0000", "outputs/runs/a_b"]


def test_statistics_need_no_torch(here: Path) -> None:
    two()
    outcomes = without_torch([("compare", "--group-seeds"), ("compare", "--latex")], here)
    assert [o.code for o in outcomes] == [0, 0]


def test_a_run_that_went_on_after_a_failed_check_is_marked_in_every_table(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k, checks in enumerate(("fail", "pass", "warn")):
        run = member(here / "outputs" / "s" / f"{k:04d}", seed=k)
        told = json.loads((run / "result.json").read_text())
        write(run / "result.json", json.dumps(told | result(config(seed=k), 0.9 - 0.1 * k, checks=checks)))

    def marks(file: str) -> list[str]:
        return [row["checks"] for row in csv.DictReader(Path(file).read_text().splitlines())]

    assert dlrun("ensemble", "outputs/s", "--out", "outputs/e").code == 0
    assert sorted(marks("outputs/e/members.csv")) == ["fail", "pass", "warn"]
    shown = dlrun("compare").out
    assert sorted(marks("outputs/compare.csv")) == ["fail", "fail", "pass", "warn"]  # the ensemble has a marked member
    assert "checks" in shown.splitlines()[0]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    narrow = tables.as_text(compare.rows(["outputs/s"]))
    assert "checks" in narrow.splitlines()[0] + narrow.splitlines()[1]
    assert "no room for" in narrow
    assert "checks" not in narrow.partition("no room for")[2]
    assert dlrun("compare", "outputs/s", "--group-seeds").code == 0
    assert marks("outputs/compare.csv") == ["fail"]
    plan = Plan([], [], {}, {}, [])
    found = Results(here / "outputs/s", "val_acc", False, [Trial(k, {}) for k in range(3)])
    assert [row["checks"] for row in summary.rows(found, plan)] == ["fail", "pass", "warn"]
    page = sweep_report.write(here / "outputs/s").read_text()
    best = page.partition("<h2>Every trial")[0].partition("<h2>The best")[2]
    assert "<th" in best
    assert ">checks<" in best
    assert ">fail<" in best


def test_a_column_is_added_in_one_place(tmp_path: Path) -> None:
    """In a copy of the package; `val_top5_acc` stands for any new number of result.json."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "dlrun", ignore=shutil.ignore_patterns("__pycache__")))
    words, added = (copy / "vocabulary.py"), '    Number("val_top5_acc", score=True),\n'
    text = words.read_text()
    words.write_text(text.replace(before := '    Number("test_acc", score=True),\n', added + before))
    assert words.read_text() != text
    for seed, (lr, top5) in enumerate(((0.1, 0.9), (0.1, 0.8), (0.2, 0.7), (0.2, 0.6))):
        scores = {"val_top5_acc": top5, "seconds": 1.0}
        write_run(tmp_path / f"s/{seed:04d}", **result(config(seed=seed, optimizer__lr=lr), 0.5, **scores))
    kinds = [(), ("--json",), ("--latex",), ("--group-seeds", "--csv", "grouped.csv")]
    commands = [("compare", "s", *kind) for kind in kinds] + [("compare", "s", "--sort=val_top5_acc"), ("report", "s")]
    shown = without_torch([*commands], tmp_path, PYTHONPATH=str(tmp_path), COLUMNS="300")
    assert [outcome.code for outcome in shown] == [0] * 6, shown
    text, as_json, latex, grouped, ordered = (outcome.out for outcome in shown[:5])
    assert "val_top5_acc" in text.splitlines()[0].split()
    with open(tmp_path / "outputs/compare.csv", newline="") as file:
        assert sorted(row["val_top5_acc"] for row in csv.DictReader(file)) == ["0.6", "0.7", "0.8", "0.9"]
    assert sorted(row["val_top5_acc"] for row in json.loads(as_json)) == [0.6, 0.7, 0.8, 0.9]
    assert r"\textbf{0.9000}" in latex  # the highest is the best
    assert "0.8500 ± 0.0707" in grouped
    with open(tmp_path / "grouped.csv", newline="") as file:
        means = {row["optimizer.lr"]: float(row["val_top5_acc_mean"]) for row in csv.DictReader(file)}
    assert means == pytest.approx({"0.1": 0.85, "0.2": 0.65})
    assert [line.split()[0] for line in ordered.splitlines()[1:5]] == [f"{k:04d}" for k in range(4)]
    page = (tmp_path / "s/report.html").read_text()
    assert "data-value='0.9'" in section(page, "Every trial")
    assert "0.8500\u00a0±\u00a00.0707" in section(page, "Means over seeds")
