"""`dlrun train -m search=default`: the most important keys first, each on its own scale, within search.hours (S7)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dlrun.analysis import steps as gained
from dlrun.analysis import sweeps
from dlrun.config.compose import composer
from dlrun.search import budget, steps
from dlrun.search.plan import Plan
from dlrun.search.space import Axis, read
from dlrun.search.study import Trial
from dlrun.vocabulary import Exit
from support.commands import TINY, Outcome
from support.instant import instantly
from support.moods import rows
from support.stored import write
from support.swept import trial

DEFAULT = ("search=default",)


def planned(*words: str) -> tuple[Plan, list[Axis]]:
    with composer({}, words) as made:
        axes, fixed = read(made, words)
        plain = made.config(made.parse([*fixed, *(a.ends()[0] for a in axes)]))
        axes = steps.planned(made, axes, fixed, plain)
        plan = Plan.asked(fixed, axes, plain["search"], {})
        plan.rounds = [steps.first(plan, plain)]
    return plan, axes


def names(*words: str) -> list[str]:
    return [a.name for a in planned(*DEFAULT, *words)[1]]


def test_the_axes_are_those_that_the_config_has_in_the_order_of_the_practice(here: Path) -> None:
    """S7: rate, momentum, batch size, penalties, dropout."""
    last = ["trainer.batch_size", "optimizer.weight_decay", "regularizer.dropout"]
    assert names("optimizer=adam") == ["optimizer.lr", "optimizer.betas", *last]
    assert names("optimizer=lbfgs")[:3] == ["optimizer.lr", "trainer.batch_size", "regularizer.l2"]
    assert "regularizer.dropout" not in names("model=custom", "model._target_=dlrun.models.cnn.CNN")


def test_what_is_typed_keeps_its_value_or_its_range(here: Path) -> None:
    found = names("optimizer=sgd", "optimizer.momentum=0.9", "regularizer.l2=1e-4", "model.width=4,8", "seed=1,2")
    assert found == ["seed", "optimizer.lr", "trainer.batch_size", "regularizer.dropout", "model.width"]
    axis = next(a for a in planned(*DEFAULT, "optimizer.lr=loguniform:0.1:0.2")[1] if a.name == "optimizer.lr")
    assert (axis.low, axis.high) == (0.1, 0.2)


def test_scales_are_the_own_of_each_key(here: Path) -> None:
    found = {a.name: a for a in planned(*DEFAULT, "optimizer=sgd")[1]}
    assert list(found)[:3] == ["optimizer.lr", "optimizer.momentum", "trainer.batch_size"]
    rate, penalty, dropout = (found[n] for n in ("optimizer.lr", "optimizer.weight_decay", "regularizer.dropout"))
    assert (rate.log, rate.low, rate.high) == (True, pytest.approx(1e-3), pytest.approx(1))
    assert (penalty.log, penalty.low, penalty.high) == (True, 1e-6, 0.1)
    assert (dropout.log, dropout.low, dropout.high) == (False, 0, 0.6)
    assert found["trainer.batch_size"].words == ("8", "16", "64", "128")


def test_a_step_holds_what_earlier_ones_found_and_the_rate_near_its_best(here: Path) -> None:
    plan, axes = planned(*DEFAULT, "optimizer=sgd", "seed=1,2")
    assert (plan.rounds[0].stage, plan.rounds[0].new) == (0, 2)  # the defaults, with each seed
    best = [Trial(0, {"seed": 1, "optimizer.lr": 0.02})]
    shapes = []
    while (now := steps.following(plan, best)) is not None:
        plan.rounds.append(now)
        shapes.append({a.name: a for a in now.axes})
        best[0].values[now.axes[-1].key] = now.axes[-1].at(0.4)
    assert [list(s)[-1] for s in shapes] == [a.name for a in axes[1:]]
    assert [r.new for r in plan.rounds] == [2, 16, 8, 8, 12, 8]
    assert [r.first for r in plan.rounds] == [0, 2, 18, 26, 34, 46]
    for shape in shapes[1:]:
        lr = best[0].values["optimizer.lr"]
        assert (shape["optimizer.lr"].low, shape["optimizer.lr"].high) == pytest.approx((lr / 3, lr * 3))
    assert shapes[-1]["optimizer.momentum"].words == ("0.9",)
    assert Plan.recorded(plan.record()) == plan
    few = planned(*DEFAULT, "optimizer=sgd", "search.trials=14")[0]
    best = [Trial(0, {"optimizer.lr": 0.02})]
    while (now := steps.following(few, best)) is not None:
        few.rounds.append(now)
    assert sum(r.new for r in few.rounds) == 14


def test_a_key_that_no_trial_of_the_best_set_keeps_its_default(here: Path) -> None:
    plan, _ = planned(*DEFAULT, "optimizer=sgd")
    for _ in range(3):  # the momentum brought nothing
        now = steps.following(plan, [Trial(3, {"optimizer.lr": 0.02})])
        assert now is not None
        plan.rounds.append(now)
    assert [a.name for a in plan.rounds[-1].axes] == ["optimizer.lr", "trainer.batch_size"]


def test_each_step_has_its_share_of_the_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(*DEFAULT, "optimizer=sgd", "search.hours=1")
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    kept = budget.Budget(plan, 30)
    kept.started(0, plan.rounds[0])
    clock.now = 100.0
    kept.ended(0)
    assert [round(steps.share(plan, k), 2) for k in range(6)] == [0.04, 0.33, 0.48, 0.63, 0.85, 1.0]
    plan.rounds.append(steps.following(plan, [Trial(0, {"optimizer.lr": 0.02})]))  # type: ignore[arg-type]
    clock.now = 3600 * 0.33 - 150
    assert not kept.closed(plan.rounds[-1], first=True)
    clock.now += 75  # a trial takes 100 seconds
    assert kept.closed(plan.rounds[-1], first=True)
    assert not kept.over()
    kept.keep()
    again = budget.Budget(Plan.recorded(plan.record()), 30)  # another call continues the clock
    clock.now += 3600 * 0.7
    assert again.over()


WORDS = ("train", "-m", *DEFAULT, *TINY, "optimizer=sgd", "search.trials=9", "search.steps=[learning_rate,dropout]")
WORDS += ("hydra.launcher.workers=1", "sweep.dir=s")


def learned(config: dict[str, Any]) -> float:
    """Best at a rate of 0.02, and with little dropout."""
    apart = abs(math.log10(config["optimizer"]["lr"] / 0.02))
    return 0.9 - 0.2 * apart - 0.1 * float(config["regularizer"]["dropout"])


def test_the_command_alone_searches_and_says_what_was_worth_it(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: one table, what each step gained, and a search that continues as it was planned."""
    instantly(monkeypatch, learned)
    outcome = dlrun(*WORDS)
    assert outcome.code == Exit.FINE, outcome.err
    table = rows(here / "s")
    assert [table[str(n)]["stage"] for n in range(9)] == ["0", *"11111", *"222"]
    assert float(table["0"]["optimizer.lr"]) == 0.1
    assert [table[str(n)]["regularizer.dropout"] != "" for n in range(9)] == [False] * 6 + [True] * 3
    lines = [line for line in outcome.out.splitlines() if line.startswith("step ") and " trials: " in line]
    assert [line.split()[1].rstrip(",") for line in lines] == ["optimizer.lr", "regularizer.dropout"]
    best = max((float(r["val_acc"]), float(r["optimizer.lr"])) for r in list(table.values())[:6])
    rates = [float(table[str(n)]["optimizer.lr"]) for n in (6, 7, 8)]
    assert all(best[1] / 3 <= rate <= best[1] * 3 for rate in rates)
    shutil.rmtree(here / "s/0008")  # a kill in the last step
    again = instantly(monkeypatch, learned)
    assert dlrun("resume", "s").code == Exit.FINE
    assert [job.number for job in again.jobs] == [8]
    assert [r["val_acc"] for r in rows(here / "s").values()] == [r["val_acc"] for r in table.values()]


@pytest.mark.slow
def test_a_real_search(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun(*(word for word in WORDS if word != "trainer.report=false"), "search.trials=5")
    assert outcome.code == Exit.FINE, outcome.err
    assert {r["status"] for r in rows(here / "s").values()} == {"completed"}
    assert "<h2>Steps</h2>" in (here / "s/report.html").read_text()


def test_no_trial_starts_after_the_time(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    instantly(monkeypatch, learned)
    outcome = dlrun(*WORDS, "search.hours=1e-9")
    assert outcome.code in (Exit.FINE, Exit.SOME_FAILED), outcome.err
    assert not list((here / "s").glob("0*"))


def test_a_trial_that_found_no_room_until_the_time_is_over_is_left_out(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, made = SimpleNamespace(now=0.0), instantly(monkeypatch, learned)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    ends, killed = made.submit, list[int]()

    def submit(job: Any) -> None:
        clock.now += 5000.0 if job.number else 10.0
        if not job.number:
            ends(job)

    monkeypatch.setattr(made, "submit", submit)
    monkeypatch.setattr(made, "kill", killed.append, raising=False)
    words = ("train", "-m", "seed=1,2,3", "model=mlp", "check=none", "trainer.report=false", "sweep.dir=s")
    outcome = dlrun(*words, "search.hours=1")
    assert (outcome.code, killed) == (Exit.FINE, [1]), outcome.err
    assert "search.hours=1: trials left out: 1" in outcome.out
    assert [file.parent.name for file in (here / "s").glob("0*/result.json")] == ["0000"]


STAGED = (
    "train",
    "-m",
    "search=staged",
    "search.fresh=0",
    "optimizer.lr=loguniform:1e-4:1e-1",
    "model=mlp",
    "check=none",
)
STAGED += ("search.trials=8", "trainer.epochs=9", "trainer.report=false", "hydra.launcher.workers=1", "sweep.dir=s")


@pytest.mark.parametrize(
    ("hours", "statuses"),
    [
        # 8 × 1 + 3 × 4 + 1 × 4 epochs of 10 seconds take 240
        pytest.param(1, {"completed": 1, "pruned": 7}, marks=pytest.mark.slow),
        # of 200 seconds each stage has its share: 7 trials until 78, 2 of 3 until 172, and one to the end
        (0.0556, {"completed": 1, "pruned": 6}),
        (0.012, {"pruned": 1}),  # nothing comes to the end, and nothing waits for a stage that never comes
    ],
)
def test_no_trial_of_a_staged_search_stays_paused_after_the_time(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, hours: float, statuses: dict[str, int]
) -> None:
    clock, made = SimpleNamespace(now=0.0), instantly(monkeypatch, lambda config: 0.5 + config["optimizer"]["lr"])
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    ends, reached = made.submit, dict[int, int]()

    def submit(job: Any) -> None:
        ends(job)
        stop = job.config["trainer"]["stop_after"]
        clock.now += 10.0 * ((stop or 9) - reached.get(job.number, 0))
        reached[job.number] = stop
        if stop:
            file = Path(job.folder, "result.json")
            file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "paused", "epochs": stop}))

    monkeypatch.setattr(made, "submit", submit)
    outcome = dlrun(*STAGED, f"search.hours={hours}")
    assert outcome.code == Exit.FINE, outcome.err
    found = [json.loads(file.read_text())["status"] for file in (here / "s").glob("0*/result.json")]
    assert {status: found.count(status) for status in set(found)} == statuses
    assert clock.now <= 3600 * hours + 10


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("search.steps=[speed]",), "search.steps"),
        (("search.steps=[dropout]", "regularizer.dropout=0.1"), "search.steps"),
        (("search.hours=-1",), "search.hours"),
    ],
)
def test_wrong_input_is_one_line(here: Path, dlrun: Callable[..., Outcome], words: tuple[str, ...], key: str) -> None:
    outcome = dlrun("train", "-m", *DEFAULT, *words)
    assert (outcome.code, outcome.err.count("\n"), key in outcome.err) == (Exit.USAGE, 1, True), outcome.err


def test_the_gain_of_each_step_is_told_from_chance(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for acc, lr, decay in ((0.5, 0.1, 0.0), (0.4, 0.5, 0.0), (0.9, 0.01, 0.0), (0.91, 0.01, 1e-4), (0.6, 0.01, 0.1)):
        trial(folder, acc, optimizer__lr=lr, optimizer__weight_decay=decay)
    axes = [{"key": k, "words": []} for k in ("optimizer.lr", "optimizer.weight_decay")]
    shapes = ((0, 0, 1, axes[:1]), (1, 1, 2, axes[:1]), (2, 3, 2, axes))
    rounds = [{"stage": s, "first": f, "new": n, "axes": a} for s, f, n, a in shapes]
    search = {"steps": ["learning_rate", "penalty"], "metric": "val_acc"}
    write(folder / "sweep.yaml", yaml.safe_dump({"fixed": [], "axes": axes, "search": search, "rounds": rounds}))
    found = gained.gains(folder, sweeps.read(folder))
    assert [(r["step"], r["trials"], r["before"], r["after"]) for r in found] == [
        ("optimizer.lr", 2, 0.5, 0.9),
        ("optimizer.weight_decay", 2, 0.9, 0.91),
    ]
    assert [r["after"] - r["before"] > r["chance"] for r in found] == [True, False]  # on 100 images
    assert ["within" in line for line in gained.sentences(found, "val_acc")] == [False, True]
