"""A sweep as numbers: axes and their scales, the best, what they share, what to warn of, what matters (S3, S7, S9)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dlrun.analysis import importance, sweeps
from dlrun.analysis.sweeps import Trials
from dlrun.analysis.warnings import warnings
from support.swept import rate, trial


def read() -> Trials:
    return sweeps.read(Path("sweep"))


def numbers(found: Trials) -> list[int]:
    """The names of the best trials of each setting, best first."""
    return [int(found.entries[k].path.name) for k in found.best]


def test_axes_with_their_scales_the_most_important_first(here: Path) -> None:
    for k, (lr, width, act) in enumerate([(1e-4, 8, "relu"), (1e-2, 16, "tanh"), (1.0, 24, "relu")]):
        more = {"model__width": width, "model__activation": act, "regularizer__dropout": 0.1 * k}
        trial(here / "sweep", 0.5 + 0.1 * k, seed=k, optimizer__lr=lr, **more)
    found = read()
    assert [(axis.name, axis.log, axis.low, axis.high) for axis in found.axes[:3]] == [
        ("optimizer.lr", True, 1e-4, 1.0),
        ("regularizer.dropout", False, 0.0, 0.2),
        ("model.width", False, 8.0, 24.0),
    ]
    assert (found.axes[3].name, found.axes[3].numbers, found.axes[3].choices) == (
        "model.activation",
        None,
        ["relu", "tanh"],
    )
    assert [found.axes[0].place(k) for k in range(3)] == pytest.approx([1.0, 0.5, 0.0])  # best first


def test_what_an_option_brings_along_is_no_axis(here: Path) -> None:
    for name, lr in (("adam", 0.001), ("sgd", 0.1), ("adam", 0.001), ("sgd", 0.1)):
        trial(here / "sweep", 0.5, choices__optimizer=name, optimizer__lr=lr)
    assert [axis.name for axis in read().axes] == ["optimizer"]
    trial(here / "sweep", 0.5, choices__optimizer="sgd", optimizer__lr=0.2)
    assert [axis.name for axis in read().axes] == ["optimizer.lr", "optimizer"]


def test_a_key_that_some_lack_has_no_place_for_them(here: Path) -> None:
    for name, more in (("adam", {}), ("sgd", {"optimizer__momentum": 0.5}), ("sgd", {"optimizer__momentum": 0.9})):
        trial(here / "sweep", 0.5, choices__optimizer=name, **more)
    momentum = next(axis for axis in read().axes if axis.name == "optimizer.momentum")
    assert math.isnan(momentum.place(0))
    assert [momentum.place(k) for k in (1, 2)] == [0.0, 1.0]


def test_one_lucky_seed_is_no_best_setting(here: Path) -> None:
    for lr, scores in ((0.1, (0.6, 0.95)), (0.01, (0.85, 0.86))):
        for seed, acc in enumerate(scores):
            trial(here / "sweep", acc, seed=seed, optimizer__lr=lr)
    found = read()
    assert [Path(row["run"]).name for row in found.rows] == ["0003", "0002", "0001", "0000"]
    assert numbers(found) == [3, 1]  # means 0.855 and 0.775; each stands for its setting by its best seed


def test_what_did_not_complete_has_no_score(here: Path) -> None:
    for status, acc in (("completed", 0.5), ("diverged", 0.9), ("pruned", 0.8), ("running", 0.7), ("failed", None)):
        trial(here / "sweep", acc, status, optimizer__lr=0.1 if acc is None else acc)
    found = read()
    assert [found.scores[k] for k in found.done] == [0.5]
    assert numbers(found) == [0]


def test_what_the_best_share(here: Path) -> None:
    rate(here / "sweep", 30, model__norm="batch")
    trial(here / "sweep", 0.2, optimizer__lr=1e-3, regularizer__l2=1e-4, model__norm="group")
    said = sweeps.shared(read())
    assert said[0].startswith("all have optimizer.lr between 0.0")
    assert "all have model.norm=batch" in said
    assert len(said) in (2, 3)


def edge_warnings(found: Trials) -> list[str]:
    return [line for line in warnings(found) if line.startswith("edge: ")]


def test_an_edge_in_the_scale_of_the_axis_and_what_to_type(here: Path) -> None:
    for k, lr in enumerate((1e-4, 1e-3, 1e-2, 1e-1)):
        trial(here / "sweep", 0.5 + 0.1 * k, optimizer__lr=lr, regularizer__dropout=(0.5, 0.3, 0.1, 0.2)[k])
    (said,) = edge_warnings(read())
    assert "optimizer.lr, 0.1," in said
    assert "0.0001 to 0.1" in said
    assert said.endswith("try optimizer.lr=loguniform:0.0001:100")


def test_nothing_lies_below_whole_numbers_from_one_nor_beyond_a_share(here: Path) -> None:
    for width, dropout, acc in ((8, 0.0, 0.9), (16, 0.2, 0.8), (32, 0.4, 0.7), (64, 0.6, 0.6)):
        trial(here / "sweep", acc, model__width=width, regularizer__dropout=dropout)
    assert [line.partition("; try ")[2] for line in edge_warnings(read())] == ["model.width=8,16,32,64,4,2,1"]
    for dropout in (0.8, 0.9):
        trial(here / "sweep", 0.99, model__width=16, regularizer__dropout=dropout)
    assert edge_warnings(read()) == []  # 1.8 is no dropout


def test_failures_by_reason_and_where_they_lie(here: Path) -> None:
    rate(here / "sweep", 40)
    trial(here / "sweep", None, "failed", "OutOfMemoryError: tried 12 MiB", optimizer__lr=0.01, regularizer__l2=1e-3)
    trial(here / "sweep", None, "failed", "OutOfMemoryError: tried 5 MiB", optimizer__lr=1e-4, regularizer__l2=1e-3)
    trial(here / "sweep", 0.1, "running", optimizer__lr=0.02, regularizer__l2=1e-3)
    found = read()
    lost = [e for e in found.entries if e.result["status"] == "diverged"]
    highest = max(float(e.config["optimizer.lr"]) for e in found.entries if e.result["status"] == "completed")
    said = warnings(found)
    diverged, failed, interrupted = (
        next(line for line in said if line.startswith(f"{status}: {count} of 43 "))
        for status, count in (("diverged", len(lost)), ("failed", 2), ("interrupted", 1))
    )
    assert diverged.count("…") == 2  # epoch and rate, in which they differ
    assert f"optimizer.lr above {highest:.3g}" in diverged
    assert "OutOfMemoryError" in failed
    assert "optimizer.lr" not in failed + interrupted


def test_differences_smaller_than_the_error_of_so_few_images(here: Path) -> None:
    for lr, acc in ((1e-3, 0.80), (1e-2, 0.79), (1e-1, 0.78), (1e-4, 0.3)):
        trial(here / "sweep", acc, optimizer__lr=lr)
    (said,) = (line for line in warnings(read()) if line.startswith("noise: "))
    # √((0.8 − 0.7112)² + (0.8501 − 0.78)²), the ends of their intervals
    assert [number for number in ("3", "0.0200", "100", "0.1131") if f" {number}" not in said] == []


def test_clear_differences_are_not_called_noise(here: Path) -> None:
    for lr, acc in ((1e-3, 0.8), (1e-2, 0.9), (1e-1, 0.7)):
        trial(here / "sweep", acc, optimizer__lr=lr)
    assert warnings(read()) == []


def test_importance_finds_what_decides(here: Path) -> None:
    rate(here / "sweep", 50)
    found = importance.measure(read())
    assert isinstance(found, importance.Importance)
    assert found.names == ["optimizer.lr", "regularizer.l2"]
    assert found.shares[0] > 0.9
    assert sum(found.shares) == pytest.approx(1)
    assert found.explained > 0.6
    assert found.trials == len(read().done)


def test_importance_is_silent_where_it_knows_nothing(here: Path) -> None:
    import random

    rng = random.Random(1)
    for _ in range(19):
        trial(here / "sweep", rng.random(), optimizer__lr=rng.random(), regularizer__l2=rng.random())
    few = importance.measure(read())
    assert isinstance(few, str)
    assert [number for number in ("20", "2", "19") if number not in few.split()] == []
    for _ in range(21):
        trial(here / "sweep", rng.random(), optimizer__lr=rng.random(), regularizer__l2=rng.random())
    noise = importance.measure(read())  # the scores are dice
    assert isinstance(noise, str)
    assert " 0% " in noise


def test_importance_of_one_axis_or_none(here: Path) -> None:
    trial(here / "sweep", 0.5, seed=1)
    trial(here / "sweep", 0.6, seed=2)
    assert "seed" in str(importance.measure(read()))
    trial(here / "sweep", 0.6, seed=2, optimizer__lr=9.0)
    (axis,) = read().axes
    assert axis.name == "optimizer.lr"
    assert isinstance(importance.measure(read()), str)


def test_ranges_and_scales_are_those_that_were_asked_for(here: Path) -> None:
    # drawn close together: alone they look linear, and the best lies at their edge
    for k, (value, decay) in enumerate([(0.01, 0.0), (0.011, 0.1), (0.012, 0.2), (0.013, 0.3)]):
        trial(here / "sweep", 0.5 + k / 10, optimizer__lr=value, regularizer__l2=decay)
    lr = {"key": "optimizer.lr", "words": [], "low": 1e-3, "high": 0.1, "log": True}
    l2 = {"key": "+regularizer.l2", "words": [], "low": 0, "high": 1, "log": False}
    before = read()
    assert [(a.low, a.high, a.log) for a in before.axes] == [(0.01, 0.013, False), (0.0, 0.3, False)]
    grown = {"axes": [{**lr, "high": 10.0}]}
    asked = {"version": 1, "axes": [lr, l2], "rounds": [{"axes": [lr, l2]}, grown]}
    (here / "sweep/sweep.yaml").write_text(json.dumps(asked))
    found = read()
    assert [(a.low, a.high, a.log) for a in found.axes] == [(1e-3, 10.0, True), (0.0, 1.0, False)]
    assert len(edge_warnings(before)) == 2
    assert edge_warnings(found) == []
    for damaged in ("[", "rounds: 3", "axes: [{key: optimizer.lr}]\nrounds: []", "x"):
        (here / "sweep/sweep.yaml").write_text(damaged)
        assert [a.high for a in read().axes] == [0.013, 0.3]


def test_the_best_is_by_the_metric_of_the_search(here: Path) -> None:
    for acc, loss in ((0.7, 0.9), (0.6, 0.5)):
        path = trial(here / "sweep", acc, optimizer__lr=loss)
        stored = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps({**stored, "val_loss": loss}))
    assert (read().metric, read().scores) == ("val_acc", [0.7, 0.6])
    for named, expected in (("val_loss", [0.5, 0.9]), ("val_acc", [0.7, 0.6]), ("grad_norm", [0.7, 0.6])):
        (here / "sweep/sweep.yaml").write_text(json.dumps({"search": {"metric": named}}))
        assert read().scores == expected
        assert read().best == [0, 1]
    for damaged in ("search: [1]", "search: {metric: [1, 2]}", "search: {metric: status}", "search: 3"):
        (here / "sweep/sweep.yaml").write_text(damaged)
        assert (read().metric, read().scores) == ("val_acc", [0.7, 0.6])


@pytest.mark.parametrize(
    ("metric", "direction", "lower", "order", "scores"),
    [
        ("grad_norm", "max", False, ["0002", "0001", "0000"], [6.0, 4.0, 2.0]),  # of epoch 2, whose weights count
        ("grad_norm", "auto", True, ["0000", "0001", "0002"], [2.0, 4.0, 6.0]),
        ("samples_per_second", "auto", False, ["0000", "0001", "0002"], [30.0, 20.0, 10.0]),
        ("val_acc", "min", True, ["0001", "0000", "0002"], [0.6, 0.7, 0.8]),
        ("val_loss", "max", False, ["0001", "0000", "0002"], pytest.approx([0.4, 0.3, 0.2])),
    ],
)
def test_any_logged_metric_in_either_direction(
    here: Path, metric: str, direction: str, lower: bool, order: list[str], scores: list[float]
) -> None:
    for k, acc in enumerate((0.7, 0.6, 0.8)):
        path = trial(here / "sweep", acc, optimizer__lr=0.1 + k)
        stored = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps({**stored, "tested_epoch": 2}))
        rows = [f"{e},{1 - acc},{acc},{(k + 1) * e},{30 - 10 * k}" for e in (1, 2, 3)]
        (path / "metrics.csv").write_text("epoch,val_loss,val_acc,grad_norm,samples_per_second\n" + "\n".join(rows))
    (here / "sweep/sweep.yaml").write_text(json.dumps({"search": {"metric": metric, "direction": direction}}))
    found = read()
    assert (found.metric, found.lower, found.scores) == (metric, lower, scores)
    assert [entry.path.name for entry in found.entries] == order
    assert found.best == [0, 1, 2]
