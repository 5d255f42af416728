"""Early stopping, which epoch is best, and which checkpoints are kept (O8, O9)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlrun.config.rules import METRICS
from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.run import Run, claim, reopen
from dlrun.training import checkpoint, choosing, loop
from dlrun.training.checkpoint import State
from dlrun.training.experiment import build
from support.composed import SMALL, composed


def fit(folder: Path, *overrides: str, until: int | None = None) -> tuple[Run, State]:
    """Train, in one go or, with `until`, dying in the middle of that epoch's save and going on in a new process."""
    exp = build(composed(*SMALL, *overrides))
    run = claim(str(folder), "test", folder.parent)
    if until is not None:
        run.write_config(exp.cfg.plain)
        real = checkpoint.write_atomic

        def dying(path: Path, data: bytes, also: Sequence[Path] = (), **more: Any) -> None:
            if path.name == "last.pt" and len(reading.metrics(folder)) == until:
                for other in also:  # the files that are replaced before it
                    real(other, data)
                raise KeyboardInterrupt
            real(path, data, also, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "write_atomic", dying)
            with pytest.raises(KeyboardInterrupt):
                loop.fit(exp, run, State(), Screen())
        run.release()
        exp, run = build(composed(*SMALL, *overrides)), reopen(str(folder))
    state = checkpoint.restore(run, exp)
    run.trim_metrics(state.epoch)
    loop.fit(exp, run, state, Screen())
    run.release()
    return run, state


RISING = ("optimizer=sgd", "optimizer.lr=0.0", "model.norm=none")  # no epoch is better than the first


def scores(run: Run) -> list[tuple[str, str, str]]:
    return [(r["epoch"], r["train_loss"], r["val_acc"]) for r in reading.metrics(run.path)]


@pytest.mark.parametrize("until", [None, 1, 2, 3])
def test_patience_stops_after_that_many_epochs_also_when_resumed(tmp_path: Path, until: int | None) -> None:
    run, state = fit(tmp_path / "run", *RISING, "trainer.epochs=9", "trainer.patience=2", until=until)
    assert (state.epoch, state.best and state.best["epoch"]) == (3, 1)
    assert len(reading.metrics(run.path)) == 3


@pytest.mark.parametrize("until", [2, 5])
def test_a_resumed_run_with_patience_ends_like_one_in_a_single_go(tmp_path: Path, until: int) -> None:
    options = ("trainer.epochs=12", "trainer.patience=2", "optimizer.lr=0.1", "trainer.keep=top3", "scheduler=constant")
    straight, whole = fit(tmp_path / "straight", *options)
    broken, parts = fit(tmp_path / "broken", *options, until=min(until, whole.epoch))
    assert whole.epoch < 12
    assert (whole.epoch, whole.best) == (parts.epoch, parts.best)
    assert scores(straight) == scores(broken)
    names = [p.name for p in straight.epoch_checkpoints()]
    assert len(names) == 3
    assert names == [p.name for p in broken.epoch_checkpoints()]


def test_a_run_out_of_patience_is_not_trained_on_and_says_why(dlrun: Callable[..., Any], here: Path) -> None:
    done = dlrun("train", *SMALL, *RISING, "trainer.epochs=9", "trainer.patience=2", "run.dir=run")
    assert done.code == 0, done.err
    found = reading.result(here / "run")
    assert found["status"] == "completed"
    assert re.search(r"\bval_acc\b.*\b2 epochs", found["reason"])
    assert (found["epochs"], found["best_epoch"]) == (3, 1)
    assert found["reason"] in done.out


@pytest.mark.parametrize(("keep", "count"), [("last", 0), ("best", 0), ("top3", 3), ("all", 6)])
def test_which_checkpoints_are_kept(tmp_path: Path, keep: str, count: int) -> None:
    run, _ = fit(tmp_path / "run", "trainer.epochs=6", f"trainer.keep={keep}", "trainer.monitor=val_loss")
    kept = run.epoch_checkpoints()
    assert run.best.exists() == (keep != "last")
    assert checkpoint.load(run.last)["epoch"] == 6
    rows = sorted(reading.metrics(run.path), key=lambda r: float(r["val_loss"]))
    expected = sorted(f"epoch_{int(r['epoch']):04d}_val_loss_{float(r['val_loss']):.4f}.pt" for r in rows[:count])
    assert [p.name for p in kept] == expected
    for path in kept:
        assert checkpoint.load(path)["epoch"] == int(path.name.split("_")[1])


def test_a_full_disk_costs_no_checkpoint_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = fit(tmp_path / "run", "trainer.epochs=3", "trainer.keep=all")
    before = {p.name: p.read_bytes() for p in run.checkpoints.iterdir()}
    content = checkpoint.snapshot(build(composed(*SMALL)), state)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.write(run, content, is_best=True, name="new.pt")
    assert {p.name: p.read_bytes() for p in run.checkpoints.iterdir()} == before


# batch norm's averages need some epochs: until then validation lags behind training; the gradient is smallest early
GAP = ("seed=2", "optimizer.lr=0.005", "scheduler=constant", "trainer.monitor=grad_norm")


def test_keep_last_tests_the_last_epochs_weights(dlrun: Callable[..., Any], here: Path) -> None:
    words = ("trainer.keep=last", *GAP, "trainer.epochs=6")
    done = dlrun("train", *SMALL, *words, "run.dir=run")
    assert done.code == 0, done.err
    found, rows = reading.result(here / "run"), reading.metrics(here / "run")
    assert [p.name for p in (here / "run" / "checkpoints").iterdir()] == ["last.pt"]
    assert found["tested_epoch"] == 6
    assert found["val_loss"] == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-6)
    assert found["best_epoch"] == 1 + min(range(6), key=lambda i: float(rows[i]["grad_norm"]))
    assert found["best_epoch"] != 6  # else this shows nothing
    assert re.search(r"\bepoch 6\b.*\blast\b", done.out)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("monitor", METRICS)
def test_any_column_can_decide_and_each_has_its_direction(tmp_path: Path, monitor: str) -> None:
    run, state = fit(tmp_path / "run", "trainer.epochs=4", f"trainer.monitor={monitor}", "trainer.patience=3")
    values = [float(row[monitor]) for row in reading.metrics(run.path)]
    better = max if monitor.endswith(("_acc", "_f1", "_kappa", "samples_per_second")) else min
    assert state.best is not None
    assert state.best["value"] == pytest.approx(better(values))
    assert values[int(state.best["epoch"]) - 1] == pytest.approx(better(values))


def test_an_epoch_without_a_measurement_is_never_the_best(tmp_path: Path) -> None:
    # a network of tanh has no units that could die
    options = ("trainer.monitor=dead_fraction", "model.activation=tanh", "trainer.keep=all", "scheduler=plateau")
    run, state = fit(tmp_path / "run", *options, "trainer.epochs=3", until=2)
    assert [row["dead_fraction"] for row in reading.metrics(run.path)] == ["", "", ""]
    assert (state.best or {})["epoch"] == 1
    assert not choosing.better({"x_loss": None, "val_loss": 0.1}, {"value": 0.5, "val_loss": 1.0}, "x_loss")
    assert choosing.better({"x_loss": 9.0, "val_loss": 9.0}, {"value": None, "val_loss": 1.0}, "x_loss")


@pytest.mark.parametrize(
    ("gaps", "epoch", "stops"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.2], 5, False),  # 0.25 after 0.45: it shrinks
        ([0.1, 0.2, 0.3, 0.3, 0.3], 5, True),  # 0.3 after 0.25
        ([0.3, 0.3, 0.3, 0.3, 0.3], 5, True),
        ([0.5, 0.1, 0.1], 3, False),  # of fewer epochs the first ones count
    ],
)
def test_a_shrinking_gap_outlasts_patience(gaps: list[float], epoch: int, stops: bool) -> None:
    history = [{"epoch": str(i), "train_loss": "1.0", "val_loss": str(1 + g)} for i, g in enumerate(gaps, 1)]
    trainer = composed("trainer.patience=2", "trainer.while_gap_shrinks=true").trainer
    state = State(epoch=epoch, best={"epoch": 1, "value": 0.5, "val_loss": 1.0})
    assert choosing.stopped_early(state, trainer, history) == stops
    state.best = {"epoch": epoch - 1, "value": 0.5, "val_loss": 1.0}
    assert not choosing.stopped_early(state, trainer, history)  # patience is not over yet


def test_a_run_trains_on_while_its_gap_shrinks(tmp_path: Path) -> None:
    options = (*GAP, "trainer.epochs=14", "trainer.patience=2")
    short, _ = fit(tmp_path / "short", *options)
    long, state = fit(tmp_path / "long", *options, "trainer.while_gap_shrinks=true", until=7)
    assert scores(long)[: len(scores(short))] == scores(short)
    rows = reading.metrics(long.path)
    gaps = [float(r["val_loss"]) - float(r["train_loss"]) for r in rows]
    assert len(scores(short)) < state.epoch < 14
    assert sum(gaps[-2:]) >= sum(gaps[-4:-2])


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"while_gap_shrinks.*trainer\.patience=5"):
        composed("trainer.while_gap_shrinks=true")
    with pytest.raises(UserError, match=r"monitor=dead_fraction.*trainer\.diagnostics="):
        composed("trainer.monitor=dead_fraction", "trainer.diagnostics=false")
    with pytest.raises(UserError, match=r"trainer\.keep=top5.*last, best, top3, all"):
        composed("trainer.keep=top5")
    with pytest.raises(UserError, match=r"trainer\.patience=-1: expected"):
        composed("trainer.patience=-1")
