"""run.name, run.tags and run.note: stored and shown, and without influence on what a run is."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dlrun.analysis import compare, seed_groups
from dlrun.checks import receipts, runner
from dlrun.training.experiment import build
from support.commands import TINY, Outcome, without_torch
from support.composed import composed

ABOUT = ("run.name=wide one", "run.tags=[baseline,paper-2]", "run.note='more <units>, since underfitted'")


def test_name_tags_and_note_are_stored_and_shown(here: Path, dlrun: Callable[..., Outcome]) -> None:
    first = dlrun("train", *TINY, *ABOUT)
    other = dlrun("train", *TINY, "run.dir=plain")
    assert (first.code, other.code) == (0, 0)
    # the next command shows the run, also if it is not among the outputs
    assert "`dlrun compare`" in first.out
    assert "`dlrun compare plain`" in other.out
    assert "plain" in dlrun("compare", "plain").out
    (run,) = Path("outputs/runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-wide one-[0-9a-f]{4}", run.name)
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["tags"] == ["baseline", "paper-2"]
    result = json.loads((run / "result.json").read_text())
    assert (result["name"], result["tags"]) == ("wide one", ["baseline", "paper-2"])
    assert result["note"] == "more <units>, since underfitted"

    rows = {row["run"]: row for row in compare.rows([str(run), "plain"])}
    assert [rows[str(run)][key] for key in ("name", "tags", "note")] == [
        result["name"],
        json.dumps(result["tags"]),
        result["note"],
    ]
    assert not {"run.name", "run.tags", "run.note"} & set(rows["plain"])
    read, printed = without_torch(
        [("compare", str(run), "plain", "--csv", "all.csv"), ("compare", str(run), "plain", "--json")], here
    )
    assert (read.code, printed.code) == (0, 0)
    with open("all.csv", newline="") as file:
        assert {row["name"]: row["note"] for row in csv.DictReader(file)} == {"wide one": result["note"], "": ""}
    assert [row["tags"] for row in json.loads(printed.out) if row["name"]] == [["baseline", "paper-2"]]

    assert dlrun("report", str(run)).code == 0
    head = (run / "report.html").read_text().partition("</header>")[0]
    for word in ("<h1>wide one</h1>", "baseline, paper-2", "more &lt;units&gt;, since underfitted", "digits cnn"):
        assert word in head


def test_they_change_neither_seed_groups_nor_receipts(dlrun: Callable[..., Outcome]) -> None:
    for seed in (1, 2):
        words = (f"run.name=n{seed}", f"run.tags=[t{seed}]", f"run.note={seed}", f"seed={seed}", f"run.dir=r{seed}")
        assert dlrun("train", *TINY, *words).code == 0
    entries = compare.read(["r1", "r2"])
    assert len(seed_groups.grouped(entries)) == 1
    assert compare.varying([entry.config for entry in entries]) == ["seed"]

    keys = []
    for about in ((), ABOUT):
        setup = receipts.setup(build(composed(*TINY, *about)))
        keys.append({name: receipts.key(check, setup) for name, check in runner.CHECKS.items()})
    assert keys[0] == keys[1]


def test_a_sweep_has_the_name_and_may_be_given_another_note(dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", "-m", "seed=1,2", *TINY, *ABOUT).code == 0
    (sweep,) = Path("outputs/sweeps").iterdir()
    assert "-wide one-" in sweep.name
    assert json.loads((sweep / "0001/result.json").read_text())["name"] == "wide one"
    done = dlrun("train", "-m", "seed=1,2", *TINY, "run.note=again", f"sweep.dir={sweep}")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("run.name=a/b", "run.name=a/b"),
        ("run.name=..", "run.name=.."),
        ("run.name=[a]", "run.name=[a]"),
        (f"run.name={'n' * 81}", "run.name=n"),
        ("run.name=", "run.name="),
        ("run.tags=[a b]", "run.tags=[a b]"),
        ("run.tags=a", "run.tags=[a]"),
    ],
)
def test_what_cannot_be_a_name_is_refused_before_anything_is_made(
    dlrun: Callable[..., Outcome], word: str, key: str
) -> None:
    done = dlrun("train", *TINY, word)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert key in done.err
    assert not Path("outputs").exists()
