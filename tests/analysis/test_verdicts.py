"""Every verdict is provoked by a real short run on digits, and a healthy run has none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from dlrun.analysis import verdicts
from dlrun.analysis.finding import Finding, summary
from dlrun.analysis.verdicts import judge, urgent
from dlrun.config.compose import compose
from dlrun.training.experiment import Experiment
from support.watched import watched


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {f.name: f for f in findings}


def accepted(finding: Finding) -> bool:
    """The override is one that the command line takes."""
    return bool(compose(finding.try_))


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3, 4))])
def test_a_healthy_run_has_no_verdict(seed: int) -> None:
    run = watched(f"seed={seed}")
    assert [f.text for f in run.findings()] == []
    for epoch in range(1, 31):
        assert urgent(run.metrics[:epoch], run.layers[: 4 * epoch], run.config, run.exp.data.record()) == []
    assert summary(run.findings()) == "none"


def test_a_loss_that_is_not_finite_asks_for_a_tenth_of_the_rate() -> None:
    run = watched("model.norm=none", "optimizer=sgd", "optimizer.lr=1000", "trainer.epochs=3", "dataset.limit=200")
    found = run.findings()
    assert run.status == "diverged"
    assert found[0].name == "exploding"
    assert found[0].severity == "stop"
    assert found[0].try_ == "optimizer.lr=100"
    assert not {"flat", "update_ratio", "gap"} & named(found).keys()


def test_a_train_loss_that_rises_far_above_its_lowest_is_exploding_while_it_runs() -> None:
    # the warm-up of the schedule starts low enough to learn, and goes on to a rate that undoes it
    run = watched("model=mlp", "model.norm=none", "optimizer.lr=3", "trainer.epochs=10", "dataset.limit=400")
    loss = [row["train_loss"] for row in run.metrics]
    top = max(range(2, 10), key=loss.__getitem__)
    assert loss[1] < loss[0]
    assert urgent(run.metrics[:2], run.layers[:6], run.config, run.exp.data.record()) == []
    found = urgent(run.metrics[: top + 1], run.layers[3 * top : 3 * top + 3], run.config, run.exp.data.record())
    assert (found[0].name, found[0].severity) == ("exploding", "stop")
    assert found[0].number >= 2
    assert found[0].try_ == "optimizer.lr=0.3"


def metrics(train: list[float], val: list[float]) -> list[dict[str, Any]]:
    return [
        {"epoch": i, "train_loss": a, "val_loss": b, "train_acc": 1.0, "val_acc": 1.0, "lr": 0.1}
        for i, (a, b) in enumerate(zip(train, val, strict=True), 1)
    ]


def test_a_loss_of_zero_is_neither_an_explosion_nor_the_end_of_the_run() -> None:
    # a fitted network that trains on: cross-entropy of float32 is exactly 0 where it is sure
    config, data = {"loss": {"_target_": "dlrun.losses.CrossEntropy"}}, {"train_counts": [50, 50]}
    for rise in (0.0, 1e-5, 0.06):
        assert urgent(metrics([0, 0, 0, rise, rise], [0] * 5), [], config, data) == []
    assert urgent(metrics([0] * 5, [0] * 5), [], {}, data) == []
    (exploding,) = urgent(metrics([0, 0, 0, 1, 1], [0] * 5), [], config, data)
    assert (exploding.name, exploding.number) == ("exploding", pytest.approx(1e9))
    overfitting = named(judge(metrics([0.5, 0.4, 0.3, 0.2, 0.1], [0, 0, 1, 1, 1]), [], config, data))["overfitting"]
    assert overfitting.number == pytest.approx(1e9)


def test_a_network_that_learns_nothing_is_flat_and_a_tiny_ratio_asks_for_a_higher_rate() -> None:
    run = watched("optimizer.lr=1e-7", "scheduler=constant", "trainer.epochs=4", "dataset.limit=400")
    (found,) = run.findings()
    assert (found.name, found.severity, found.try_) == ("flat", "stop", "optimizer.lr=1e-05")
    assert found.number < 0.2
    assert [f.name for f in urgent(run.metrics, run.layers, run.config, run.exp.data.record())] == ["flat"]
    assert urgent(run.metrics[:2], run.layers, run.config, run.exp.data.record()) == []


def test_an_explosion_that_comes_to_rest_at_chance_asks_for_a_tenth_of_the_rate() -> None:
    run = watched("optimizer.lr=0.3", "model.norm=none", "scheduler=constant", "trainer.epochs=6", "dataset.limit=400")
    found = named(run.findings())["flat"]
    assert run.metrics[0]["train_loss"] > 2 * math.log(10)
    assert run.metrics[-1]["train_loss"] < 1.5 * math.log(10)
    assert found.try_ == "optimizer.lr=0.03"


def test_a_loss_that_falls_in_a_straight_line_asks_for_a_higher_rate() -> None:
    run = watched("optimizer.lr=1e-5", "scheduler=constant", "trainer.epochs=6")
    (found,) = run.findings()
    assert found.name == "slow"
    assert found.number > 0.5
    assert 3e-5 <= float(found.try_.removeprefix("optimizer.lr=")) <= 1e-3


@pytest.mark.parametrize(("lr", "low", "high"), [(0.03, 1e-3, 0.01), (1e-5, 5e-5, 5e-4)])
def test_a_ratio_off_by_more_than_three_asks_for_the_rate_that_mends_it(lr: float, low: float, high: float) -> None:
    run = watched(f"optimizer.lr={lr}", "scheduler=constant", "trainer.epochs=3", "trainer.batch_size=8")
    found = named(run.findings())["update_ratio"]
    assert not 1e-3 / 3 < found.number < 3e-3
    assert found.sentence.startswith("update_ratio ")
    assert "..head" in found.sentence
    assert low <= float(found.try_.removeprefix("optimizer.lr=")) <= high


def test_of_muons_two_rates_those_are_named_that_move_what_is_off() -> None:
    run = watched("optimizer=muon", "optimizer.lr=2", "scheduler=constant", "trainer.epochs=2", "trainer.batch_size=8")
    assert run.config["optimizer"]["sgd_lr"] == 0.1

    def asked(head: float, **changed: Any) -> dict[str, float]:
        layers = [{**row, "update_ratio": head if row["layer"] == "head" else 1e-2} for row in run.layers]
        config = {**run.config, "optimizer": {**run.config["optimizer"], **changed}}
        found = named(judge(run.metrics, layers, config, run.exp.data.record()))["update_ratio"]
        assert compose("optimizer=muon", *found.try_.split())
        return {k: float(v) for k, v in (word.split("=") for word in found.try_.split())}

    assert asked(head=1e-3) == {"optimizer.lr": 0.2}  # the last layer takes SGD, and is fine
    assert asked(head=1e-2) == {"optimizer.lr": 0.2, "optimizer.sgd_lr": 0.01}
    assert asked(head=1e-2, sgd_lr=None) == {"optimizer.lr": 0.2}
    (exploding,) = judge([], [], run.config, status="diverged")
    assert exploding.try_ == "optimizer.lr=0.2 optimizer.sgd_lr=0.01"  # nobody knows which


def test_a_jumping_loss_with_small_batches_asks_for_larger_ones() -> None:
    run = watched(
        *("trainer.batch_size=2", "optimizer.lr=0.004", "scheduler=constant", "trainer.epochs=10"),
        *("dataset.limit=200", "model.width=8"),
    )
    found = judge(run.metrics, [], run.config, run.exp.data.record())
    assert named(found)["noisy"].try_ == "trainer.batch_size=8"
    assert named(found)["noisy"].number > 0.08


SMALL_FOLD = ("dataset.limit=300", "dataset.val_fraction=0.8", "model=mlp", "model.norm=none")


def test_a_wide_gap_asks_for_the_first_regularisation_that_is_off() -> None:
    run = watched(*SMALL_FOLD, "trainer.epochs=25", "model.init=normal", "optimizer.lr=3e-3", "trainer.batch_size=8")
    found = named(run.findings())["gap"]
    assert found.number > 0.1
    assert found.try_ == "regularizer=l2"
    config, data = run.config, run.exp.data.record()

    def next_to_try(**changed: Any) -> str:
        mine = {**config, **{k: {**config[k], **v} for k, v in changed.items()}}
        return named(judge(run.metrics, run.layers, mine, data))["gap"].try_

    assert next_to_try(regularizer={"l2": 1e-3}) == "regularizer.dropout=0.3"
    assert next_to_try(regularizer={"dropout": 0.5}) == "regularizer.l2=0.0005"
    assert next_to_try(regularizer={"l2": 1e-3, "dropout": 0.5}) == "regularizer.l2=0.003"
    assert next_to_try(optimizer={"weight_decay": 0.01}, regularizer={"dropout": 0.5}) == "optimizer.weight_decay=0.03"
    assert next_to_try(choices={"dataset": "cifar10"}) == "augment=crop_flip"
    photos = {"dataset": "cifar10"}
    assert next_to_try(choices=photos, augment={"hue": 0.1}) == "regularizer=l2"
    assert next_to_try(choices=photos, augment={"_target_": "mine.flip"}) == "regularizer=l2"
    assert next_to_try(choices=photos, augment={"_target_": None}) == "augment=crop_flip"


def test_a_validation_loss_that_rises_while_training_improves_is_overfitting() -> None:
    def spoil(exp: Experiment) -> None:
        labels = exp.train.labels = exp.train.labels.clone()
        wrong = torch.arange(len(labels)) % 3 == 0
        labels[wrong] = (labels[wrong] + 1) % 10

    run = watched(
        *SMALL_FOLD,
        *("trainer.epochs=15", "trainer.batch_size=16", "optimizer.lr=3e-3", "scheduler=constant"),
        change=spoil,
    )
    found = named(run.findings())["overfitting"]
    assert found.number > 1.25
    best = 1 + int(np.argmin([row["val_loss"] for row in run.metrics]))
    expected = "trainer.patience=3" if "patience" in run.config["trainer"] else f"trainer.epochs={best}"
    assert found.try_ == expected


def test_no_gap_at_a_low_accuracy_asks_for_more_capacity_or_less_regularisation() -> None:
    run = watched("model=mlp", "model.width=2", "model.depth=1", "trainer.epochs=10", "optimizer.lr=4e-3")
    found = named(run.findings())["capacity"]
    assert found.number < 0.8
    assert found.try_ == "model.width=4"
    config = {**run.config, "regularizer": {**run.config["regularizer"], "dropout": 0.5}}
    assert named(judge(run.metrics, run.layers, config))["capacity"].try_ == "regularizer=none"


def test_a_last_epoch_that_is_the_best_asks_for_more_epochs() -> None:
    run = watched("trainer.epochs=4", "scheduler=constant", "optimizer.lr=1e-4", "seed=3")
    found = named(run.findings())["unfinished"]
    assert found.number > 0.01
    assert found.try_ == "trainer.epochs=8"


def test_a_gap_that_still_shrinks_asks_for_more_epochs_though_the_last_epoch_is_not_the_best() -> None:
    run = watched("trainer.epochs=10", "dataset.limit=300", "trainer.batch_size=64", "scheduler=constant", "seed=3")
    gaps = [row["val_loss"] - row["train_loss"] for row in run.metrics]
    before, now = np.mean(gaps[4:7]), np.mean(gaps[7:])
    found = named(run.findings())["unfinished"]
    assert found.number == pytest.approx((before - now) / run.metrics[0]["train_loss"])
    assert f" {before:.3f} to {now:.3f} " in found.sentence
    assert found.try_ == "trainer.epochs=20"
    for row in run.metrics[7:]:  # as small a gap, by a train loss that rose
        row |= {"train_loss": row["train_loss"] + 1, "val_loss": row["val_loss"] + 1}
    assert "unfinished" not in named(run.findings())


def test_a_small_gain_at_the_end_of_a_schedule_is_the_schedules_doing() -> None:
    scores = [0.5, 0.6, 0.7, 0.75, 0.78, 0.80, 0.81, 0.82, 0.83]
    config = {"trainer": {"epochs": 9, "monitor": "val_acc"}, "optimizer": {"lr": 1.0}}

    def rows(last_lr: float) -> list[dict[str, Any]]:
        lrs = [1.0] * 8 + [last_lr]
        same = {"train_loss": 1.0, "val_loss": 1.0, "train_acc": 0.9}
        return [{"epoch": e + 1, "lr": lrs[e], "val_acc": scores[e], **same} for e in range(9)]

    assert "unfinished" not in named(judge(rows(0.01), [], config))
    assert named(judge(rows(1.0), [], config))["unfinished"].number == pytest.approx(0.03)


def test_dead_units_ask_for_smaller_steps_when_the_steps_are_large() -> None:
    run = watched("model=mlp", "model.norm=none", "optimizer.lr=0.03", "scheduler=constant", "trainer.epochs=8")
    found = named(run.findings())["dead"]
    assert found.number > 0.1
    assert "layer1.linear" in found.sentence
    assert float(found.try_.removeprefix("optimizer.lr=")) < 0.03


def test_dead_units_without_a_norm_ask_for_one_and_most_of_them_are_urgent() -> None:
    def kill(exp: Experiment) -> None:
        nn.init.constant_(exp.model.get_parameter("layer2.linear.bias")[:200].detach(), -100.0)

    run = watched("model=mlp", "model.norm=none", "trainer.epochs=3", "scheduler=constant", change=kill)
    found = named(run.findings())["dead"]
    assert 0.7 < found.number < 0.95  # 200 of 256, and some that died by themselves
    assert (found.severity, found.try_) == ("stop", "model.norm=batch")
    assert "dead" in named(urgent(run.metrics, run.layers[-3:], run.config, run.exp.data.record()))


def test_saturated_units_ask_for_smaller_first_weights() -> None:
    run = watched(
        *("model=mlp", "model.activation=tanh", "model.norm=none", "model.init=normal", "trainer.epochs=3"),
        "dataset.limit=400",
    )
    found = named(run.findings())["saturated"]
    assert found.number > 0.25
    assert found.try_ == "model.init=glorot_uniform"
    assert "layer1.linear and layer2.linear" in found.sentence


def test_a_mean_far_from_zero_before_the_activation_asks_for_a_norm() -> None:
    def shift(exp: Experiment) -> None:
        nn.init.constant_(exp.model.get_parameter("layer1.linear.bias"), 20.0)

    run = watched("model=mlp", "model.norm=none", "trainer.epochs=2", "dataset.limit=200", change=shift)
    found = named(run.findings())["offset"]
    assert found.number > 3
    assert found.try_ == "model.norm=batch"


def test_classes_of_unequal_size_are_named_with_their_counts(tmp_path: Path) -> None:
    digits = load_digits()
    keep = (digits.target != 7) | (np.cumsum(digits.target == 7) <= 60)
    np.savez(tmp_path / "few.npz", x=digits.images[keep].astype(np.uint8), y=digits.target[keep])
    run = watched("dataset=arrays", f"dataset.path={tmp_path / 'few.npz'}", "trainer.epochs=1")
    found = named(run.findings())["imbalance"]
    counts = run.exp.data.record()["train_counts"]
    assert found.number == pytest.approx(max(counts) / counts[7])
    assert found.number > 1.5
    assert f"{counts[7]}, " in found.sentence
    assert accepted(found)


def test_every_override_is_one_that_the_command_line_takes() -> None:
    for override in (
        *("optimizer.lr=1e-05", "trainer.batch_size=8", "regularizer=l2", "regularizer.dropout=0.3"),
        *("regularizer=none", "model.width=4", "model=resnet20", "trainer.epochs=8", "model.norm=batch"),
        *("model.activation=leaky_relu", "model.init=glorot_uniform", "augment=crop_flip"),
        *("model.output_bias=frequency", "optimizer.weight_decay=0.03", "regularizer.l2=0.0005"),
    ):
        assert accepted(Finding("", "warn", "", 0.0, override))


def test_the_rows_of_the_files_are_as_good_as_those_in_memory() -> None:
    run = watched("optimizer.lr=1e-7", "scheduler=constant", "trainer.epochs=3", "dataset.limit=200")
    text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in (*run.metrics, *run.layers)]
    metrics, layers = text[: len(run.metrics)], text[len(run.metrics) :]
    assert judge(metrics, layers, run.config, run.exp.data.record()) == run.findings()


def test_a_run_without_diagnostics_or_without_an_epoch_is_judged_by_what_there_is() -> None:
    assert judge([], [], {}) == []
    assert [f.name for f in judge([], [], {"optimizer": {"lr": 3.0}}, status="diverged")] == ["exploding"]
    run = watched("optimizer.lr=1e-7", "trainer.epochs=3", "dataset.limit=200", watch=False)
    assert [f.try_ for f in run.findings()] == ["optimizer.lr=1e-06"]


def test_records_are_json_and_name_what_the_table_shows() -> None:
    found = [
        Finding("flat", "stop", "flat: 0.1", math.nan, "a=1"),
        Finding("gap", "warn", "gap: 0.2", 0.2, ""),
    ]
    records = [json.loads(json.dumps(f.record())) for f in found]
    assert list(records[0]) == ["name", "severity", "sentence", "number", "try"]
    assert records[0]["number"] is None
    assert summary(records) == summary(found) == "flat gap"
    assert [f.text for f in found] == ["flat: 0.1: try a=1", "gap: 0.2"]


def test_verdicts_do_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, dlrun.analysis.verdicts; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert verdicts.__all__ == sorted(verdicts.__all__)
