"""`dlrun lr_range`: the curve, what it suggests, and the next command (O5)."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.commands.arguments import next_command, numbers
from dlrun.commands.lr_range import FLAGS
from dlrun.data.batches import Batch
from dlrun.probes import lr_range
from dlrun.probes.lr_range import Point
from dlrun.training import loop
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, composed


def test_the_rate_rises_geometrically_and_groups_keep_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*SMALL, "optimizer=sgd", "optimizer.lr=0.1", "+optimizer.per_layer={stage1: {lr: 0.01}}"))
    seen: list[list[float]] = []

    def step(exp: Experiment, batch: Batch) -> loop.Step:
        seen.append(sorted({float(g["lr"]) for g in exp.optimizer.param_groups}))
        return loop.Step(*torch.tensor([2.0 * len(batch), 0.0, 0.0, 0.0]))

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

    def step(exp: Experiment, batch: Batch) -> loop.Step:
        return loop.Step(*torch.tensor([next(losses) * len(batch), 0.0, 0.0, 0.0]))

    monkeypatch.setattr(loop, "step", step)
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


@pytest.mark.slow
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


def test_the_suggestion_moves_both_rates_of_muon_together() -> None:
    from dlrun.commands.arguments import next_command

    words = ["optimizer=muon", "optimizer.sgd_lr=9", "run.dir=there", "seed=3"]
    said = next_command("train", words, "optimizer.lr=0.4", "optimizer.sgd_lr=2")
    assert said == "dlrun train optimizer=muon seed=3 optimizer.lr=0.4 optimizer.sgd_lr=2"
