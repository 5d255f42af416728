"""`dlrun train -m`: Hydra's order, numbered folders, and no run that takes the others along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Outcome

from dlrun import rundir
from dlrun.composing import composer
from dlrun.config import UserError
from dlrun.search.sweeper import points


def swept(*overrides: str) -> list[str]:
    with composer({}) as made:
        return [" ".join(words) for words, _ in points(made, overrides)]


def test_order_and_values_are_hydras(here: Path) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    lists = [
        "seed=1,2",
        "model=cnn,mlp",
        "optimizer.lr=0.1,1e-3",
        "trainer.epochs=range(1,6,2)",
        "run.dir=null",
    ]
    expected = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lists[:4]), None)[0]
    assert swept(*lists[:4]) == [" ".join(words) for words in expected]


def test_points_hold_their_values(here: Path) -> None:
    with composer({}) as made:
        found = [cfg for _, cfg in points(made, ["optimizer=sgd,adam", "optimizer.lr=0.1,0.01", "seed=3"])]
    assert [(c["choices"]["optimizer"], c["optimizer"]["lr"], c["seed"]) for c in found] == [
        ("sgd", 0.1, 3), ("sgd", 0.01, 3), ("adam", 0.1, 3), ("adam", 0.01, 3)
    ]  # fmt: skip
    assert found[0]["optimizer"]["momentum"] == 0.9
    assert "momentum" not in found[2]["optimizer"]


def test_options_by_pattern(here: Path) -> None:
    assert swept("model=glob(resnet1*)") == ["model=resnet18"]
    assert swept("optimizer=choice(sgd,adam)") == ["optimizer=sgd", "optimizer=adam"]


def test_presets_can_be_swept(here: Path) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    for name, text in {"a": "seed: 5", "b": "seed: 6"}.items():
        (here / f"conf/experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    with composer({}) as made:
        assert [cfg["seed"] for _, cfg in points(made, ["experiment=a,b"])] == [5, 6]


def test_every_point_is_checked_before_the_first_starts(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("train", "-m", "optimizer=sgd,adam", "optimizer.momentum=0.5,0.9", *TINY)
    assert (outcome.code, outcome.out) == (2, "")
    assert "point 3 of the sweep (optimizer=adam optimizer.momentum=0.5): optimizer.momentum" in outcome.err
    assert list(here.iterdir()) == []


@pytest.fixture
def executed(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Stand in for training: note folder and seed; seed 2 fails, 3 is refused, 4 is interrupted."""
    import dlrun.running

    seen: list[tuple[str, int]] = []

    def execute(cfg: Any, run: rundir.Run) -> int:
        seen.append((run.path.name, cfg.seed))
        run.release()
        if cfg.seed == 3:
            raise UserError("three is refused")
        return {2: 4, 4: 130}.get(cfg.seed, 0)

    monkeypatch.setattr(dlrun.running, "execute", execute)
    return seen


def test_a_failing_run_takes_no_other_along(executed: list[tuple[str, int]], dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("train", "seed=1,2,3,5", "-m", "optimizer=adam")
    assert outcome.code == 5
    assert executed == [("0000", 1), ("0001", 2), ("0002", 3), ("0003", 5)]
    assert "dlrun: three is refused" in outcome.out
    assert "2 of 4 runs completed" in outcome.out


def test_an_interrupt_ends_the_sweep(executed: list[tuple[str, int]], dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", "-m", "seed=1,4,5", "sweep.dir=mine").code == 130
    assert executed == [("0000", 1), ("0001", 4)]
    assert dlrun("train", "-m", "seed=1,5", "sweep.dir=mine").code == 2  # it holds runs


def test_a_sweep_trains(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("train", "optimizer=sgd,adam", "-m", "optimizer.lr=0.1,0.01", *TINY, "sweep.dir=s")
    assert outcome.code == 0, outcome.err
    runs = rundir.find(["s"])
    assert [run.name for run in runs] == ["0000", "0001", "0002", "0003"]
    told = [rundir.result(run) for run in runs]
    assert [r["status"] for r in told] == ["completed"] * 4
    assert [(r["config"]["choices"]["optimizer"], r["config"]["optimizer"]["lr"]) for r in told] == [
        ("sgd", 0.1), ("sgd", 0.01), ("adam", 0.1), ("adam", 0.01)
    ]  # fmt: skip
    table = dlrun("compare", "s").out
    assert {"run", "status", "optimizer", "optimizer.lr"} <= set(table.splitlines()[0].split())
