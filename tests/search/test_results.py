"""The leader of a sweep and its table cost the same after each trial, however many there are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dlrun.search import table
from dlrun.search.plan import Plan, Round
from dlrun.search.results import Results
from dlrun.search.space import Axis
from dlrun.search.study import Trial
from dlrun.vocabulary import Status

RATES, SEEDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (1, 2, 3)


def sweep(folder: Path) -> Results:
    points = [{"optimizer.lr": rate, "seed": seed} for rate in RATES for seed in SEEDS]
    return Results(folder, "val_acc", False, [Trial(n, dict(values)) for n, values in enumerate(points)])


@pytest.mark.parametrize("seed", range(5))
def test_the_leader_is_that_of_all_trials_whatever_changes(tmp_path: Path, seed: int) -> None:
    results, rng, led = sweep(tmp_path), random.Random(seed), set()
    assert results.leader() is None
    for _ in range(150):
        number = rng.randrange(len(results.trials))
        if rng.random() < 0.2:
            results.forget(number)  # it starts again: there is no file
        else:
            status = rng.choice([Status.COMPLETED, Status.COMPLETED, Status.PAUSED, Status.PRUNED, Status.DIVERGED])
            results.keep(number, {"status": status, "val_acc": rng.choice([0.1, 0.5, rng.random()])})
        fit = [n for n in results.trials if results.status(n) in (Status.COMPLETED, Status.PAUSED)]
        assert results.leader() == next(iter(results.ranked(fit)), None)
        led.add(results.leader() and results.leader().number)
    assert len(led) > 3


def test_only_the_setting_that_changed_is_compared_with_the_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, looked = Results(tmp_path, "val_acc", False, []), list[int]()
    ranked = results.ranked

    def counted(numbers: Sequence[int] | None = None) -> list[Trial]:
        looked.append(len(numbers or results.trials))
        return ranked(numbers)

    monkeypatch.setattr(results, "ranked", counted)
    for number in range(300):
        results.trials[number] = Trial(number, {"optimizer.lr": float(number)})
        results.keep(number, {"status": Status.COMPLETED, "val_acc": number % 7 / 10})
        results.leader()
    assert max(looked) == 2
    assert results.leader() == results.trials[6]  # the first of equals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a table takes 0.1 s of, and the times at which one was written."""
    now = [0.0]

    def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
        now.append(now[0])
        now[0] += 0.1
        return folder / "table.csv"

    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(table.sweep_folder, "write_table", write)
    return now


def test_tables_take_a_twentieth_of_the_time_and_lack_no_trial_for_long(tmp_path: Path, clock: list[float]) -> None:
    axes = [Axis("optimizer.lr", low=0.0, high=1.0), Axis("seed", words=("1", "2", "3"))]
    kept = table.Table(tmp_path, sweep(tmp_path), Plan([], axes, {}, {}, [Round(1, 0, 0, 18, axes)]))
    clock[0] = 1.0
    kept.changed()
    assert len(clock) == 2  # at once
    for _ in range(1000):
        clock[0] += 0.01
        kept.changed()
    assert len(clock) - 2 <= 0.05 * (clock[0] - 1.0) / 0.1 + 1
    before = len(clock)
    for _ in range(300):
        clock[0] += 0.01
        kept.look()
    assert len(clock) == before + 1  # what was left out, and nothing else
