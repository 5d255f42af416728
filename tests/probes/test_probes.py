"""`dlrun lr_range`, `dlrun batch_time`, early stopping and kept checkpoints (O5, O6, O8)."""

from __future__ import annotations

import csv
import errno
import math
import os
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.commands.arguments import next_command, numbers
from dlrun.commands.lr_range import FLAGS
from dlrun.config.rules import METRICS
from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.run import Run, claim, reopen
from dlrun.probes import batch_time, lr_range
from dlrun.probes.batch_time import Timing
from dlrun.probes.lr_range import Point
from dlrun.training import checkpoint, choosing, loop
from dlrun.training.checkpoint import State
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, composed

DROPOUT = ("regularizer=dropout", "regularizer.dropout=0.3", "augment=crop_flip", "augment.pad=1")


def train(exp: Experiment) -> list[torch.Tensor]:
    exp.model.train()
    for i, (x, y, _) in enumerate(exp.train.epoch(1)):
        exp.scheduler.set(i / len(exp.train))
        loop.step(exp, x, y)
    return [t.detach().clone() for t in (*exp.model.parameters(), *exp.model.buffers())]


def measure(exp: Experiment, verb: str) -> None:
    if verb == "lr_range":
        assert len(lr_range.measure(exp, 1e-4, 1.0, 12)) > 5
    else:
        assert batch_time.measure(exp, 60.0, lambda t: None)[0]


@pytest.mark.parametrize("verb", ["lr_range", "batch_time"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs", "muon"])
def test_a_run_afterwards_is_bit_for_bit_the_one_without(verb: str, optimizer: str) -> None:
    options = (*SMALL, *DROPOUT, f"optimizer={optimizer}", "dataset.limit=40", "trainer.batch_size=16")
    plain = train(build(composed(*options)))
    exp = build(composed(*options))
    measure(exp, verb)
    after = train(exp)
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))


def test_a_measurement_in_the_middle_of_a_run_leaves_its_optimizer_and_random_state() -> None:
    options = (*SMALL, *DROPOUT, "trainer.batch_size=16")
    runs = []
    for measured in (False, True):
        exp = build(composed(*options))
        train(exp)
        if measured:
            measure(exp, "lr_range")
            measure(exp, "batch_time")
        runs.append(train(exp))
        runs.append([torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert torch.equal(runs[1][0], runs[3][0])


def test_the_rate_rises_geometrically_and_groups_keep_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*SMALL, "optimizer=sgd", "optimizer.lr=0.1", "+optimizer.per_layer={stage1: {lr: 0.01}}"))
    seen: list[list[float]] = []

    def step(exp: Experiment, x: Any, y: Any, index: Any) -> torch.Tensor:
        seen.append(sorted({float(g["lr"]) for g in exp.optimizer.param_groups}))
        return torch.tensor([2.0 * len(y), 0.0, 0.0, 0.0])

    monkeypatch.setattr(loop, "step", step)
    points = lr_range.measure(exp, 1e-3, 1.0, 31)
    assert points[0].lr == 1e-3
    assert points[30].lr == pytest.approx(1.0)
    assert all(b.lr / a.lr == pytest.approx(10**0.1) for a, b in pairwise(points))
    assert all(p.loss == 2.0 for p in points)
    # the weights did not move, and it is always the same images: without noise between batches
    assert all(p.smoothed == pytest.approx(points[0].smoothed) for p in points)
    assert 1.5 < points[0].smoothed < 4
    assert all(rates[-1] / rates[0] == pytest.approx(10) for rates in seen)


@pytest.mark.parametrize("tail", [math.nan, 1e9])
def test_the_test_ends_where_the_loss_explodes(monkeypatch: pytest.MonkeyPatch, tail: float) -> None:
    losses = iter([2.0, 1.5, 1.0, tail, 1.0, 1.0])
    monkeypatch.setattr(loop, "step", lambda exp, x, y, index: torch.tensor([next(losses) * len(y), 0.0, 0.0, 0.0]))
    points = lr_range.measure(build(composed(*SMALL)), 1e-3, 1.0, 50)
    assert len(points) == 4


def test_smoothing_averages_the_looks_near_a_rate_and_caps_an_explosion() -> None:
    looks = [(1e-4, 2.0), (1e-3, 1.0), (1e-2, math.inf)]
    near = math.exp(-8)  # a decade is four standard deviations
    found = lr_range._smoothed([1e-4, 1e-3], looks)
    assert found[0] == pytest.approx((2.0 + near * 1.0) / (1 + near), rel=1e-5)
    assert found[1] == pytest.approx((1.0 + near * (2.0 + 4.0)) / (1 + 2 * near), rel=1e-5)
    assert math.isnan(lr_range._smoothed([1e-3], [(1e-3, math.nan)])[0])


def curve(*losses: float) -> list[Point]:
    return [Point(10.0 ** (i - 7), v, v) for i, v in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "state", "lr", "word"),
    [
        ((2.3, 2.3, 2.3, 2.2, 1.5, 0.8, 1.5, 2.0, 4.0), "fine", 0.2, "quarter"),  # 0.375 of 1.5 are lost by 0.1
        ((2.3, 2.3, 2.3, 2.2, 1.5, 0.8, 1.0, 1.1), "fine", 0.1, "midpoint"),  # never: midpoint from 0.01 to the end
        ((2.3, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3, 2.25), "flat", None, "too low"),
        ((2.3, 3.0, 9.0), "high", None, "too high"),
        ((math.nan,), "high", None, "too high"),
        ((2.3, 2.3, 2.3, 2.3, 2.3, 2.0, 1.8, 1.5), "open", 1.0, "--high=10"),
    ],
)
def test_what_a_curve_says(losses: tuple[float, ...], state: str, lr: float | None, word: str) -> None:
    verdict = lr_range.judge(curve(*losses), 1e-7, 1.0, normalised=True, adaptive=False)
    assert (verdict.state, verdict.lr) == (state, lr)
    assert word in verdict.text


def test_without_norms_the_suggestion_stays_below_the_lowest_point() -> None:
    verdict = lr_range.judge(
        curve(2.3, 2.3, 2.3, 2.2, 1.5, 0.8, 1.5, 2.0, 4.0), 1e-7, 1.0, normalised=False, adaptive=True
    )
    assert (verdict.state, verdict.lr) == ("fine", 0.005)
    assert [lr_range.normalised(build(composed(*SMALL, f"model.norm={n}")).model) for n in ("batch", "none")] == [
        True,
        False,
    ]


def test_adaptive_steps_take_what_loses_a_quarter_and_no_more() -> None:
    losses = (2.3, 2.3, 2.3, 2.2, 1.5, 0.8, 1.5, 2.0, 4.0)
    verdict = lr_range.judge(curve(*losses), 1e-7, 1.0, normalised=True, adaptive=True)
    assert (verdict.state, verdict.lr) == ("fine", 0.1)
    names = ("adam", "adamw", "rmsprop", "adagrad", "adadelta", "sgd", "nesterov", "muon")
    found = [lr_range.adaptive(build(composed(*SMALL, f"optimizer={name}")).optimizer) for name in names]
    assert found == [True] * 5 + [False] * 3


def test_lr_range_from_the_command_line(dlrun: Callable[..., Any], here: Path) -> None:
    done = dlrun("lr_range", "--low=1e-5", "--steps", "60", *SMALL, "optimizer.lr=0.5", "run.dir=range")
    assert done.code == 0, done.err
    command = done.out.strip().splitlines()[-1]
    assert command.startswith("next: dlrun train trainer.epochs=2")
    assert command.count("optimizer.lr=") == 1
    assert "run.dir" not in command
    lr = float(command.rpartition("=")[2])
    assert 1e-3 < lr < 0.9
    with open(here / "range" / "lr_range.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["lr"]) == 1e-5
    assert (here / "range" / "lr_range.png").read_bytes().startswith(b"\x89PNG")
    flat = dlrun("lr_range", "--high=1e-9", "--low=1e-12", "--steps=20", *SMALL)
    assert flat.code == 3
    assert "too low" in flat.out
    assert "next:" not in flat.out
    assert len(list((here / "outputs" / "lr_range").glob("*-digits-cnn-*/lr_range.csv"))) == 1


@pytest.mark.parametrize("words", [("--low=2",), ("--steps=3",), ("--low=x",), ("--high",), ("--lo=1",)])
def test_a_wrong_flag_is_one_line(dlrun: Callable[..., Any], words: tuple[str, ...]) -> None:
    done = dlrun("lr_range", *SMALL, *words)
    assert done.code == 2
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(("verb", "flag"), [("lr_range", "--steps=100"), ("batch_time", "--seconds=60")])
def test_help_names_the_flags_of_the_verb(dlrun: Callable[..., Any], verb: str, flag: str) -> None:
    done = dlrun(verb, "--help")
    assert done.code == 0
    assert flag in done.out
    assert "Config groups" in done.out


def test_flags_and_the_next_command() -> None:
    found, rest = numbers(["--low", "1e-3", "model=cnn", "--steps=7"], FLAGS)
    assert found == {"--low": 1e-3, "--high": 1.0, "--steps": 7.0}
    assert rest == ["model=cnn"]
    words = ["+optimizer.lr=1", "optimizer.per_layer={'a b': {lr: 1}}"]
    assert next_command("train", words, "optimizer.lr=0.1").startswith("dlrun train 'optimizer.per_layer=")


def timings(*milliseconds: float) -> list[Timing]:
    return [Timing(2**i, m * 2**i / 1e3, m / 1e3, 0.0) for i, m in enumerate(milliseconds)]


def test_the_knee_is_where_the_time_per_sample_stops_falling() -> None:
    assert batch_time.knee(timings(8, 4, 2, 1.2, 1.0, 1.0, 1.0)) == 8
    assert batch_time.knee(timings(8, 4, 2, 1)) == 8
    assert batch_time.knee(timings(1, 1, 1, 2)) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_batch_time_survives_running_out_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    real = loop.step

    def step(exp: Experiment, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        done = real(exp, x, y)
        if len(y) > 16:
            raise error
        return done

    monkeypatch.setattr(loop, "step", step)
    exp = build(composed(*SMALL))
    before = [p.detach().clone() for p in exp.model.parameters()]
    found, ending = batch_time.measure(exp, 60.0, lambda t: None)
    assert [t.batch_size for t in found] == [1, 2, 4, 8, 16]
    assert [int(n) for n in re.findall(r"\d+", ending)] == [32, 16]
    assert all(torch.equal(a, b) for a, b in zip(before, exp.model.parameters(), strict=True))


def test_batch_time_hides_no_other_error_and_keeps_to_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*SMALL))
    found, ending = batch_time.measure(exp, 1e-6, lambda t: None)
    assert [t.batch_size for t in found] == [1]
    assert "--seconds=" in ending

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(loop, "step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        batch_time.measure(exp, 60.0, lambda t: None)


def test_batch_time_from_the_command_line(dlrun: Callable[..., Any], here: Path) -> None:
    done = dlrun("batch_time", "--seconds=5", *SMALL, "trainer.batch_size=7")
    assert done.code == 0, done.err
    folder = next((here / "outputs" / "batch_time").iterdir())
    with open(folder / "batch_time.csv", newline="") as file:
        sizes = [int(row["batch_size"]) for row in csv.DictReader(file)]
    assert sizes == [1, 2, 4, 8, 16, 32, 64]  # of 108 training images
    assert (folder / "batch_time.png").read_bytes().startswith(b"\x89PNG")
    command = next(line for line in done.out.splitlines() if line.startswith("next: dlrun train"))
    assert int(command.rpartition("trainer.batch_size=")[2]) in sizes
    assert command.count("batch_size") == 1


def test_the_suggestion_moves_both_rates_of_muon_together() -> None:
    from dlrun.commands.arguments import next_command

    words = ["optimizer=muon", "optimizer.sgd_lr=9", "run.dir=there", "seed=3"]
    said = next_command("train", words, "optimizer.lr=0.4", "optimizer.sgd_lr=2")
    assert said == "dlrun train optimizer=muon seed=3 optimizer.lr=0.4 optimizer.sgd_lr=2"


# --- O8


def fit(folder: Path, *overrides: str, until: int | None = None) -> tuple[Run, State]:
    """Train, in one go or, with `until`, dying in the middle of that epoch's save and going on in a new process."""
    exp = build(composed(*SMALL, *overrides))
    run = claim(str(folder), "test", folder.parent)
    if until is not None:
        run.write_config(exp.cfg.plain)
        real = checkpoint.write_atomic

        def dying(path: Path, data: bytes, also: Sequence[Path] = ()) -> None:
            if path.name == "last.pt" and len(reading.metrics(folder)) == until:
                for other in also:  # the files that are replaced before it
                    real(other, data)
                raise KeyboardInterrupt
            real(path, data, also)

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
        checkpoint.write(run, content, is_best=True, name="new.pt", keep={"new.pt"})
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


@pytest.mark.parametrize("monitor", METRICS)
def test_any_column_can_decide_and_each_has_its_direction(tmp_path: Path, monitor: str) -> None:
    run, state = fit(tmp_path / "run", "trainer.epochs=4", f"trainer.monitor={monitor}", "trainer.patience=3")
    values = [float(row[monitor]) for row in reading.metrics(run.path)]
    better = max if monitor in ("val_acc", "train_acc", "samples_per_second") else min
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
