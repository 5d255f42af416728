"""`dlrun ladder`: capacity grows while validation improves by more than noise, and is regularised afterwards (M8)."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dlrun.analysis import ladder as climbing
from dlrun.analysis import steps
from dlrun.analysis.spread import margin
from dlrun.analysis.sweeps import read as trials_of
from dlrun.config.compose import composer
from dlrun.search import ladder
from dlrun.search.plan import Plan
from dlrun.search.space import read
from dlrun.vocabulary import Exit
from support.commands import TINY, Outcome
from support.instant import instantly
from support.moods import QUICK, rows
from support.stored import write
from support.swept import trial

TWO = ("model.depth=2,4,6", "model.width=16,32,64", "seed=1,2")


def planned(*words: str) -> Plan:
    with composer({}, words) as made:
        axes, fixed = read(made, words)
        plain = made.config(made.parse([*fixed, *(a.ends()[0] for a in axes)]))
        axes, fixed, purpose = ladder.asked(made, axes, fixed, plain)
    plan = Plan.asked(fixed, axes, plain["search"], {})
    plan.purpose, plan.rounds = purpose, [ladder.first(plan)]
    return plan


def climbed(plan: Plan, scored: Callable[[dict[str, str]], float], spread: float = 0.01) -> climbing.Climb:
    """Climb to the end with scores that are a function of the values, a little apart for two seeds."""

    def score(number: int) -> float | None:
        now = next(r for r in plan.rounds if r.first <= number < r.first + r.new)
        place = number - now.first
        values = {}
        for axis in now.axes[::-1]:
            place, digit = divmod(place, len(axis.words))
            values[axis.name] = axis.words[digit]
        return scored(values) + (spread if values["seed"] == "2" else -spread)

    class Scored(dict[int, Any]):
        def __contains__(self, number: object) -> bool:
            return True

    results: Any = SimpleNamespace(metric="val_loss", minimise=False, trials=Scored(), score=score)
    while (following := ladder.following(plan, results)[0]) is not None:
        plan.rounds.append(following)
    assert Plan.recorded(plan.record()) == plan
    return climbing.climb(plan.record()["rounds"], plan.purpose["ladder"]["grow"], score, lower=False)


def test_capacity_grows_in_turns_until_nothing_improves(here: Path) -> None:
    """M8: every key stops at its last improvement; the rest is regularised."""

    def scored(values: dict[str, str]) -> float:
        depth, width = int(values["model.depth"]), int(values["model.width"])
        return 0.5 + 0.1 * min(depth, 4) + 0.005 * min(width, 32) - 100 * float(values["optimizer.weight_decay"])

    found = climbed(planned(*TWO), scored)
    grown = [(r.values["model.depth"], r.values["model.width"], r.kept) for r in found.rungs if r.grows]
    assert grown == [
        ("2", "16", True),
        ("4", "16", True),
        ("4", "32", True),
        ("6", "32", False),
        ("4", "64", False),
    ]
    assert found.chosen is found.grown is found.rungs[2]
    assert still_open(found) == []
    tried = [(r.key, r.values[r.key]) for r in found.rungs if not r.grows]
    assert tried == [
        *(("optimizer.weight_decay", word) for word in ladder.PENALTIES),
        *(("regularizer.dropout", word) for word in ladder.DROPOUTS),
    ]
    assert {r.values["regularizer.dropout"] for r in found.rungs if r.grows} == {"0"}  # it overfits first


def still_open(found: climbing.Climb) -> list[str]:
    """The keys whose last value was still an improvement."""
    table = [{"rung": rung.number} for rung in found.rungs]
    return [line.partition("=")[0] for line in climbing.sentences(found, table, "val_loss") if "last value" in line]


def test_a_key_that_improved_to_its_last_value_is_named(here: Path) -> None:
    assert still_open(climbed(planned("model.depth=2,4", "seed=1,2"), lambda v: float(v["model.depth"]))) == [
        "model.depth"
    ]


def test_regularisation_that_improves_is_kept_for_the_next(here: Path) -> None:
    def scored(values: dict[str, str]) -> float:
        return 0.9 + (0.05 if values["optimizer.weight_decay"] == "0.001" else 0)

    found = climbed(planned("model.depth=2,4", "seed=1,2"), scored)
    assert found.chosen is not None
    assert found.chosen.values["optimizer.weight_decay"] == "0.001"
    assert {r.values["optimizer.weight_decay"] for r in found.rungs if r.key == "regularizer.dropout"} == {"0.001"}


@pytest.mark.parametrize(("spread", "kept"), [(0.003, True), (0.005, False)])
def test_an_improvement_within_the_noise_of_seeds_is_none(here: Path, spread: float, kept: bool) -> None:
    found = climbed(planned("model.depth=2,4", "seed=1,2"), lambda v: 0.5 + 0.01 * int(v["model.depth"]), spread)
    assert found.rungs[1].gain == pytest.approx(0.02)
    assert found.rungs[1].noise == pytest.approx(margin([(0, 2 * spread)] * 2, 2, 2))
    assert found.rungs[1].kept is kept


def test_noise_is_that_of_the_pooled_spread() -> None:
    # variances 2 and 0, two degrees of freedom: 4.303 standard errors of 1
    assert margin([(1.0, 3.0), (5.0, 5.0), (9.0,)], 2, 2) == pytest.approx(4.303, abs=1e-3)
    assert math.isnan(margin([(1.0,)], 1, 1))  # one seed has no spread


def test_what_the_config_regularises_with_is_tried_and_nothing_else(here: Path) -> None:
    words = ("augment=crop_flip", "regularizer=l2", "regularizer.l2=0.01", "objective=mixup", "optimizer=sgd")
    plan = planned("model.depth=2,4", *words, "regularizer.dropout=0.3", "regularizer.label_smoothing=0.1")
    first = {a.name: a.words for a in plan.rounds[0].axes}
    assert first["augment"] == ("none",)
    assert (first["objective"], first["regularizer.l2"], first["regularizer.dropout"]) == (
        ("supervised",),
        ("0",),
        ("0",),
    )
    lists = {a.name: a.words[1:] for a in plan.axes if a.name in plan.purpose["ladder"]["regularise"]}
    assert lists == {
        "augment": ("crop_flip",),
        "objective": ("mixup",),
        "regularizer.l2": ("0.01",),
        "regularizer.dropout": ("0.3",),
        "regularizer.label_smoothing": ("0.1",),
    }
    assert not [w for w in plan.fixed if w.startswith(("augment=", "objective="))]


LADDER = ("model.width=2,4,8", "optimizer.weight_decay=1e-3", "regularizer.dropout=0.1", "seed=1,2", *QUICK)
LADDER += ("hydra.launcher.workers=1", "sweep.dir=s")


def learned(config: dict[str, Any]) -> float:
    """Better up to a width of 4, and with dropout."""
    width, dropout = min(config["model"]["width"], 4), float(config["regularizer"]["dropout"])
    return float(0.4 + 0.1 * width + dropout + 0.001 * config["seed"])


def test_a_ladder_is_a_sweep(here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """M8: one table, one picture, the chosen rung, the next command; compared, reported and resumed."""
    instantly(monkeypatch, learned)
    outcome = dlrun("ladder", *LADDER)
    assert outcome.code == Exit.FINE, outcome.err
    table = rows(here / "s")
    rungs = [(r["model.width"], r["optimizer.weight_decay"], r["regularizer.dropout"]) for r in table.values()][::2]
    assert rungs == [("2", "0", "0"), ("4", "0", "0"), ("8", "0", "0"), ("4", "0.001", "0"), ("4", "0", "0.1")]
    (command,) = (line for line in outcome.out.splitlines() if line.startswith("  dlrun train"))
    assert re.search(r"model\.width=4 .*weight_decay=0 regularizer\.dropout=0\.1$", command)
    assert dlrun("report", "s").code == Exit.FINE
    assert (here / "s/plots/ladder.png").stat().st_size > 10_000
    assert "<h2>Ladder</h2>" in (here / "s/report.html").read_text()
    assert dlrun("compare", "s").code == Exit.FINE
    shutil.rmtree(here / "s/0009")
    again = instantly(monkeypatch, learned)
    assert dlrun("resume", "s").code == Exit.FINE
    assert [job.number for job in again.jobs] == [9]
    assert rows(here / "s") == table
    other = dlrun("train", "-m", "model.width=2,4", *QUICK, "sweep.dir=s")
    assert (other.code, "s contains a ladder" in other.err) == (Exit.USAGE, True)


@pytest.mark.slow
def test_a_real_ladder(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("ladder", *LADDER)
    assert outcome.code == Exit.FINE, outcome.err
    assert {r["status"] for r in rows(here / "s").values()} == {"completed"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "capacity"),
        (("model.depth=2",), "model.depth=2"),
        (("model.depht=2,4",), "model.depth"),
        (("model.depth=4,2",), "model.depth=4,2"),
        (("model.depth=int:2:4",), "model.depth=int:2:4"),
        (("model.depth=2,0",), "model.depth"),
        (("model.depth=2,4", "search=tpe"), "search="),
    ],
)
def test_wrong_input_is_one_line(here: Path, dlrun: Callable[..., Outcome], words: tuple[str, ...], named: str) -> None:
    outcome = dlrun("ladder", *words, *(w for w in TINY if not w.startswith("model.")))
    assert (outcome.code, outcome.err.count("\n"), named in outcome.err) == (Exit.USAGE, 1, True), outcome.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "rounds",
    [
        [{"first": 0}],
        [{"first": 0, "new": 1_000_000, "axes": []}],
        [{"first": 0, "new": 1, "axes": [{"key": "std", "words": ["a"]}]}],
    ],
)
def test_the_ladder_of_a_damaged_or_foreign_sweep_is_none(tmp_path: Path, rounds: list[dict[str, Any]]) -> None:
    trial(tmp_path, 0.5, seed=1)
    plan = {"fixed": [], "axes": [], "search": {"metric": "val_acc"}, "purpose": {"ladder": {"grow": ["seed"]}}}
    write(tmp_path / "sweep.yaml", yaml.safe_dump({**plan, "rounds": rounds}))
    assert climbing.read(tmp_path, trials_of(tmp_path)) is None


@pytest.mark.parametrize("one", [{"first": 0, "new": 1}, {"stage": 1, "first": 0, "new": 1, "axes": []}])
def test_the_steps_of_a_damaged_or_foreign_sweep_are_none(tmp_path: Path, one: dict[str, Any]) -> None:
    trial(tmp_path, 0.5, seed=1).rename(tmp_path / "²")  # is a digit, and no number
    search = {"metric": "val_acc", "steps": ["momentum"]}
    write(tmp_path / "sweep.yaml", yaml.safe_dump({"fixed": [], "axes": [], "search": search, "rounds": [one]}))
    assert steps.gains(tmp_path, trials_of(tmp_path)) == []
