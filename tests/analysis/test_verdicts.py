"""Every verdict is provoked by a real short run on digits or by rows of numbers, and a healthy run has none (B1-B4)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dlrun.analysis import verdicts
from dlrun.analysis.finding import Finding, summary
from dlrun.analysis.verdicts import judge, urgent
from dlrun.config.compose import compose
from dlrun.probes import lr_range
from dlrun.training.experiment import Experiment, build
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


CONFIG = {
    "trainer": {"epochs": 9, "batch_size": 32, "monitor": "val_acc"},
    "optimizer": {"lr": 0.1},
    "model": {"width": 8, "norm": "batch"},
    "loss": {"_target_": "dlrun.losses.CrossEntropy"},
}
DATA = {"train": 1100, "val": 1000, "train_counts": [110] * 10}


def configured(**changed: dict[str, Any]) -> dict[str, Any]:
    return CONFIG | {group: CONFIG.get(group, {}) | keys for group, keys in changed.items()}


def metrics(train: list[float], val: list[float], **columns: list[float]) -> list[dict[str, Any]]:
    """Rows of metrics.csv; accuracies of 1 and a constant rate unless given."""
    same = {"train_acc": 1.0, "val_acc": 1.0, "lr": 0.1}
    given = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        {"epoch": i, "train_loss": a, "val_loss": b, **same, **(given[i - 1] if given else {})}
        for i, (a, b) in enumerate(zip(train, val, strict=True), 1)
    ]


def layers(ratio: float, epochs: int = 9, **columns: float) -> list[dict[str, Any]]:
    names = ("first", "head")
    return [{"epoch": e, "layer": n, "update_ratio": ratio, **columns} for e in range(1, epochs + 1) for n in names]


def learning(count: int, start: float = 2.3, end: float = 0.5) -> list[float]:
    """A loss that falls steadily."""
    return [start * (end / start) ** (i / (count - 1)) for i in range(count)]


def test_the_first_cause_is_the_only_verdict_beside_facts() -> None:
    # underfitting by short steps; noisy, far from finished and of unequal classes as well
    loss = [2.3, 2.0, 2.2, 1.9, 2.1, 1.8, 2.0, 1.7, 1.6]
    rows = metrics(loss, loss, train_acc=[0.3] * 9, val_acc=[0.1 * k / 3 for k in range(9)])
    data = DATA | {"train_counts": [200] + [80] * 10}
    assert [f.name for f in judge(rows, layers(1e-4), configured(), data)] == ["update_ratio", "imbalance"]
    assert [f.name for f in judge(rows, layers(1e-3), configured(), data)] == ["noisy", "imbalance"]


def test_a_loss_of_zero_is_neither_an_explosion_nor_the_end_of_the_run() -> None:
    # a fitted network that trains on: cross-entropy of float32 is exactly 0 where it is sure
    config, data = {"loss": CONFIG["loss"]}, {"train_counts": [50, 50]}
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


def test_a_ratio_far_below_asks_for_the_rate_that_mends_it() -> None:
    run = watched("optimizer.lr=1e-5", "scheduler=constant", "trainer.epochs=3", "trainer.batch_size=8")
    found = named(run.findings())["update_ratio"]
    assert found.number < 1e-3 / 3
    assert found.sentence.startswith("update_ratio ")
    assert "..head" in found.sentence
    assert 5e-5 <= float(found.try_.removeprefix("optimizer.lr=")) <= 5e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("model.width=8",), marks=pytest.mark.slow),
        ("model=mlp", "model.width=64", "model.norm=none", "optimizer=sgd"),
    ],
    ids=["cnn, adam", "mlp without norms, sgd"],
)
def test_the_rate_of_lr_range_has_no_verdict_and_rates_far_from_it_are_sent_towards_it(words: tuple[str, ...]) -> None:
    exp = build(compose("check=none", "trainer.threads=1", *words))
    points = lr_range.measure(exp, 1e-7, 1.0, 100)
    kinds = {"normalised": lr_range.normalised(exp.model), "adaptive": lr_range.adaptive(exp.optimizer)}
    rate = lr_range.judge(points, 1e-7, 1.0, **kinds).lr
    assert rate is not None

    def asked(lr: float) -> list[float]:
        run = watched(*words, f"optimizer.lr={lr:g}", "trainer.epochs=8")
        return [float(f.try_.removeprefix("optimizer.lr=")) for f in run.findings()]

    assert asked(rate) == []
    (higher,) = asked(rate / 1000)
    assert rate / 1000 < higher <= 3 * rate
    (lower,) = asked(rate * 30)
    assert rate / 3 <= lower < rate * 30


def test_a_rate_that_is_too_low_is_found_though_most_training_images_are_right() -> None:
    loss = [2.3 - 0.13 * k for k in range(9)]  # a straight line: right without confidence
    rows = metrics(loss, loss, train_acc=[0.98] * 9, val_acc=[0.93] * 9)
    (found,) = judge(rows, layers(5e-4), configured(), DATA)
    assert (found.name, found.try_) == ("slow", "optimizer.lr=0.3")


def test_a_loss_as_low_as_smoothed_labels_allow_is_not_slow() -> None:
    loss = [1.6 - 0.13 * k for k in range(9)]  # labels smoothed by 0.1 over ten classes leave 0.500
    rows = metrics(loss, loss, train_acc=[0.98] * 9, val_acc=[0.93] * 9)
    target = {"_target_": "dlrun.losses.CrossEntropy"}
    (found,) = judge(rows, layers(5e-4), configured(loss=target), DATA)
    assert found.name == "slow"
    assert judge(rows, layers(5e-4), configured(loss=target | {"label_smoothing": 0.1}), DATA) == []
    higher = [row | {"train_loss": row["train_loss"] + 1} for row in rows]
    assert judge(higher, layers(5e-4), configured(loss=target | {"label_smoothing": 0.1}), DATA)


def test_after_a_few_steps_dead_units_and_a_flat_loss_say_little_unless_it_exploded() -> None:
    few = {"train": 220, "val": 100, "train_counts": [22] * 10}
    rows = metrics([2.3, 1.8], [2.3, 1.8], train_acc=[0.2, 0.4], val_acc=[0.2, 0.4])
    mine = configured(trainer={"epochs": 2})
    (found,) = judge(rows, layers(3e-2, 2, dead_fraction=0.4), mine, few)
    assert (found.name, found.try_) == ("unfinished", "trainer.batch_size=16")
    rows = metrics([4.0, 2.31], [2.3, 2.3], train_acc=[0.1, 0.1], val_acc=[0.1, 0.1])
    (found,) = judge(rows, layers(3e-2, 2), mine, few)
    assert (found.name, found.try_) == ("flat", "optimizer.lr=0.01")


def test_units_that_died_in_long_first_steps_ask_for_a_lower_rate() -> None:
    rows = metrics(learning(9), learning(9), train_acc=[0.4] * 9, val_acc=[0.4] * 9)
    steps = [row | {"update_ratio": 0.05 if row["epoch"] == 1 else 1e-3} for row in layers(0, dead_fraction=0.9)]
    for norm in ("batch", "none"):
        (found,) = judge(rows, steps, configured(model={"norm": norm, "activation": "relu"}), DATA)
        assert (found.name, found.try_) == ("dead", "optimizer.lr=0.01")
    (found,) = judge(rows, layers(1e-3, dead_fraction=0.9), configured(model={"activation": "relu"}), DATA)
    assert found.try_ == "model.activation=leaky_relu"
    # while it trains, the first epoch is known from metrics.csv alone
    rows[0]["update_ratio"] = 0.05
    (found,) = urgent(rows, layers(1e-3, dead_fraction=0.9)[-2:], configured(model={"activation": "relu"}), DATA)
    assert found.try_ == "optimizer.lr=0.01"


def test_long_steps_are_no_fault_of_a_run_that_fits_and_need_a_symptom_if_they_are_not_very_long() -> None:
    def found(ratio: float, loss: list[float], error: float, **changed: Any) -> list[str]:
        rows = metrics(loss, loss, train_acc=[1 - error] * 9, val_acc=[1 - error] * 9)
        return [f"{f.name} {f.try_}" for f in judge(rows, layers(ratio), configured(**changed), DATA)]

    calm, jumping = learning(9), [2.3, 1.6, 1.9, 1.3, 1.6, 1.2, 1.5, 1.1, 1.0]
    assert found(4e-2, calm, 0.4) == found(2e-2, jumping, 0.4) == ["update_ratio optimizer.lr=0.01"]
    assert found(2e-2, calm, 0.4) == ["unfinished trainer.epochs=18"]  # as healthy runs on photographs
    assert found(2e-2, calm, 0.01) == found(2e-2, jumping, 0.01) == []
    assert found(5e-3, jumping, 0.4) == ["update_ratio optimizer.lr=0.02"]
    assert found(5e-3, calm, 0.4) == ["unfinished trainer.epochs=18"]
    assert found(5e-3, calm, 0.4, trainer={"batch_size": 2}) == ["update_ratio trainer.batch_size=16"]
    assert found(2e-3, calm, 0.4, trainer={"batch_size": 2}) == ["unfinished trainer.epochs=18"]


@pytest.mark.slow
def test_of_muons_two_rates_those_are_named_that_move_what_is_off() -> None:
    run = watched("optimizer=muon", "optimizer.lr=2", "scheduler=constant", "trainer.epochs=2", "trainer.batch_size=8")
    assert run.config["optimizer"]["sgd_lr"] == 0.1

    badly = [{**row, "train_acc": 0.5, "val_acc": 0.5} for row in run.metrics]

    def asked(head: float, **changed: Any) -> dict[str, float]:
        layers = [{**row, "update_ratio": head if row["layer"] == "head" else 4e-2} for row in run.layers]
        config = {**run.config, "optimizer": {**run.config["optimizer"], **changed}}
        found = named(judge(badly, layers, config, run.exp.data.record()))["update_ratio"]
        assert compose("optimizer=muon", *found.try_.split())
        return {k: float(v) for k, v in (word.split("=") for word in found.try_.split())}

    assert asked(head=1e-3) == {"optimizer.lr": 0.2}  # the last layer takes SGD, and is fine
    assert asked(head=4e-2) == {"optimizer.lr": 0.2, "optimizer.sgd_lr": 0.01}
    assert asked(head=4e-2, sgd_lr=None) == {"optimizer.lr": 0.2}
    (exploding,) = judge([], [], run.config, status="diverged")
    assert exploding.try_ == "optimizer.lr=0.2 optimizer.sgd_lr=0.01"  # nobody knows which


JUMPING = [2.3, 1.6, 1.9, 1.3, 1.6, 1.2, 1.5, 1.1, 1.0]


def test_a_jumping_loss_asks_for_a_larger_batch_or_a_lower_rate_unless_the_run_fits_or_jumps_by_chance() -> None:
    def found(loss: list[float], error: float = 0.4, batch: int = 8, train: int = 1000) -> list[str]:
        rows = metrics(loss, loss, train_acc=[1 - error] * 9, val_acc=[1 - error] * 9)
        mine = configured(trainer={"batch_size": batch})
        return [f.try_ for f in judge(rows, [], mine, DATA | {"train": train}) if f.name == "noisy"]

    assert found(JUMPING) == ["trainer.batch_size=32"]
    assert found(JUMPING, batch=64) == ["optimizer.lr=0.03"]
    assert found(JUMPING, error=0.01) == []
    assert found(learning(9)) == []
    assert found(JUMPING, train=40, batch=2) == []  # the mean loss of 40 images is uncertain by a sixth
    assert found([2.3, 1.6, 1.9, 1.5, 1.3, 1.2, 1.1, 1.05, 1.0]) == []  # once


SMALL_FOLD = ("dataset.limit=300", "dataset.val_fraction=0.8", "model=mlp", "model.norm=none")


def test_a_wide_gap_asks_for_the_first_regularisation_that_is_off() -> None:
    run = watched(*SMALL_FOLD, "trainer.epochs=25", "model.init=normal", "optimizer.lr=3e-3", "trainer.batch_size=8")
    found = named(run.findings())["gap"]
    assert found.number > 0.1
    assert found.try_ == "augment.rotate=10 augment.shift=0.1 trainer.epochs=250"  # of eight steps
    config, data = run.config, run.exp.data.record()

    def next_to_try(**changed: Any) -> str:
        mine = {**config, **{k: {**config[k], **v} for k, v in changed.items()}}
        return named(judge(run.metrics, run.layers, mine, data))["gap"].try_

    on: dict[str, Any] = {"augment": {"hue": 0.1}}
    assert next_to_try(**on) == next_to_try(augment={"_target_": "mine.flip"}) == "regularizer.dropout=0.3"
    assert next_to_try(**on, regularizer={"dropout": 0.5}) == "regularizer.l2=0.0005"
    assert next_to_try(**on, regularizer={"l2": 1e-3, "dropout": 0.5}) == "regularizer.l2=0.003"
    decayed = next_to_try(**on, optimizer={"weight_decay": 0.01}, regularizer={"dropout": 0.5})
    assert decayed == "optimizer.weight_decay=0.03"
    photos = {"dataset": "cifar10"}
    assert next_to_try(choices=photos) == "augment=crop_flip trainer.epochs=250"
    assert next_to_try(choices=photos, augment={"_target_": None}) == "augment=crop_flip trainer.epochs=250"
    assert next_to_try(trainer={"epochs": 500}) == "augment.rotate=10 augment.shift=0.1 trainer.epochs=1000"


def test_a_gap_needs_enough_images_and_to_be_most_of_the_error() -> None:
    def found(train_acc: float, val_acc: float, train: int = 1000, val: int = 1000) -> list[str]:
        rows = metrics(learning(9), learning(9, end=0.9), train_acc=[train_acc] * 9, val_acc=[val_acc] * 9)
        return [f.name for f in judge(rows, [], configured(), DATA | {"train": train, "val": val})]

    assert found(0.99, 0.85) == found(0.8, 0.58) == ["gap"]
    assert found(0.99, 0.85, val=20) == []
    assert found(0.99, 0.55, val=20) == ["gap"]
    assert found(0.7, 0.55) == ["unfinished"]  # most of the error is train error


def test_a_validation_loss_or_accuracy_that_gets_worse_while_training_improves_is_overfitting() -> None:
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
    assert found.try_ == "augment=affine trainer.epochs=500"

    def judged(val_acc: list[float], val: int = 1000) -> list[str]:
        rows = metrics(learning(9), learning(9), train_acc=[0.1 * k for k in range(1, 10)], val_acc=val_acc)
        return [f"{f.name} {f.number:.2f}" for f in judge(rows, [], configured(), DATA | {"val": val})]

    worse = [0.3, 0.6, 0.8, 0.8, 0.75, 0.7, 0.7, 0.65, 0.6]
    assert judged(worse) == ["overfitting 0.15"]
    assert "overfitting 0.15" not in judged(worse, val=40)


def test_falling_validation_while_more_images_get_a_label_is_confirmation() -> None:
    """D8: the model learns its own errors."""

    def judged(val_acc: list[float], accepted: list[float], threshold: float = 0.95, val: int = 1000) -> list[Finding]:
        rows = metrics(learning(9), learning(9), val_acc=val_acc, accepted=accepted)
        return judge(rows, [], configured(objective={"threshold": threshold}), DATA | {"val": val})

    worse, growing = [0.3, 0.6, 0.8, 0.8, 0.75, 0.7, 0.7, 0.65, 0.6], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    found = named(judged(worse, growing))["confirmation"]
    assert found.number == pytest.approx(0.15)
    assert found.try_ == "objective.threshold=0.99"
    assert named(judged(worse, growing, 0.99))["confirmation"].try_ == "objective.weight=0.3"
    for scores, shares, images in (
        (sorted(worse), growing, 1000),
        (worse, [0.8] * 9, 1000),
        (worse, growing[::-1], 1000),
        (worse, growing, 40),
    ):
        assert "confirmation" not in named(judged(scores, shares, val=images))
    assert "confirmation" not in named(judge(metrics(learning(9), learning(9)), [], configured(), DATA))


def test_capacity_needs_a_train_loss_that_levelled_off_and_a_schedule_that_ended() -> None:
    falling = [1.0] * 5 + [0.8, 0.5, 0.2, 0.01]

    def found(train_acc: list[float], loss: list[float], epochs: int = 9, **changed: Any) -> list[str]:
        rows = metrics(loss, loss, train_acc=train_acc, val_acc=train_acc, lr=falling)
        mine = configured(trainer={"epochs": epochs}, **changed)
        return [f"{f.name} {f.try_}" for f in judge(rows, layers(1e-3), mine, DATA)]

    level = [0.2, 0.3, 0.4, 0.45, 0.47, *[0.48] * 4]
    still = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.52, 0.53]
    flat = [2.3, 2.0, 1.8, 1.7, 1.66, 1.65, 1.64, 1.63, 1.63]
    assert found(level, flat) == ["capacity model.width=16"]
    assert found(level, flat, epochs=20) == []  # the schedule has not ended
    assert found(still, learning(9)) == ["unfinished trainer.epochs=18"]
    assert found(level, flat, regularizer={"dropout": 0.5}) == ["capacity regularizer=none"]
    assert found(level, flat, model={"widths": [8, 16]}) == ["capacity model.widths=[16,32]"]
    assert found([v + 0.45 for v in level], flat) == []  # not low


def test_wrong_labels_and_augmentation_are_no_lack_of_capacity() -> None:
    flat = [2.3, 2.0, 1.8, 1.7, 1.66, 1.65, 1.64, 1.63, 1.63]
    rows = metrics(flat, flat, train_acc=[0.5] * 9, val_acc=[0.9] * 9)
    assert "capacity" not in named(judge(rows, layers(1e-3), configured(), DATA))


@pytest.mark.parametrize("epochs", [1, 30])
def test_where_an_epoch_is_a_step_a_smaller_batch_is_asked_for(epochs: int) -> None:
    run = watched("trainer.batch_size=100000", f"trainer.epochs={epochs}", "model=mlp", "model.width=64")
    (found,) = run.findings()
    assert found.name == ("flat" if epochs == 1 else "unfinished")
    assert "one step" in found.sentence
    assert found.try_ == "trainer.batch_size=32"
    assert found.severity == "warn"
    assert urgent(run.metrics, run.layers, run.config, run.exp.data.record()) == []


def test_a_short_run_asks_for_more_epochs_and_one_that_cannot_gain_does_not() -> None:
    def found(loss: list[float], error: float, val_acc: float | None = None) -> list[str]:
        count = len(loss)
        accuracies = [1 - error] * count
        rows = metrics(loss, loss, train_acc=accuracies, val_acc=[val_acc or 1 - error] * count)
        mine = configured(trainer={"epochs": count})
        return [f.try_ for f in judge(rows, layers(2e-3, count), mine, DATA) if f.name == "unfinished"]

    assert found([2.0], 0.6) == ["trainer.epochs=2"]
    assert found(learning(3), 0.2) == ["trainer.epochs=6"]
    assert found(learning(8), 0.05) == ["trainer.epochs=16"]
    assert found(learning(8), 0.02) == []
    assert found(learning(8), 0.3, val_acc=0.98) == []  # dropout and augmentation lower the train accuracy alone
    assert found([2.3, 1.0, 0.9, 0.88, 0.87, 0.86, 0.86, 0.85], 0.3) == []


def test_a_few_steps_without_learning_ask_for_more_before_anything_else() -> None:
    rows = metrics([2.3], [2.3], train_acc=[0.1], val_acc=[0.1])
    (found,) = judge(rows, layers(4e-3, 1), configured(trainer={"epochs": 1}), DATA)
    assert (found.name, found.severity, found.try_) == ("flat", "warn", "trainer.epochs=2")
    (found,) = judge(rows, layers(1e-5, 1), configured(trainer={"epochs": 1}), DATA)
    assert found.try_ == "optimizer.lr=10"


def test_a_network_that_forgot_what_it_had_learnt_asks_for_a_lower_rate() -> None:
    rows = metrics([2.0, 1.5, 2.4, *[2.31] * 6], [2.3] * 9, train_acc=[0.3, 0.5, *[0.1] * 7], val_acc=[0.1] * 9)
    (found,) = judge(rows, layers(1e-3, dead_fraction=0.7), configured(), DATA)
    assert (found.name, found.try_) == ("flat", "optimizer.lr=0.01")


def test_a_last_epoch_that_is_the_best_asks_for_more_epochs() -> None:
    run = watched("trainer.epochs=4", "scheduler=constant", "optimizer.lr=1e-4", "seed=3")
    found = named(run.findings())["unfinished"]
    assert found.number > 0.01
    assert found.try_ == "trainer.epochs=8"


def test_a_gap_that_still_shrinks_asks_for_more_epochs_though_the_last_epoch_is_not_the_best() -> None:
    loss = learning(9)
    gaps = [1.0 - 0.1 * k for k in range(9)]
    val = [v + gap for v, gap in zip(loss, gaps, strict=True)]
    rows = metrics(loss, val, train_acc=[0.8] * 9, val_acc=[0.7] * 9)
    before, now = sum(gaps[3:6]) / 3, sum(gaps[6:]) / 3
    (found,) = judge(rows, layers(1e-3), configured(), DATA)
    assert found.name == "unfinished"
    assert found.number == pytest.approx((before - now) / loss[0])
    assert f" {before:.3f} to {now:.3f}" in found.sentence
    assert found.try_ == "trainer.epochs=18"
    for row in rows[6:]:  # as small a gap, by a train loss that rose
        row |= {"train_loss": row["train_loss"] + 1, "val_loss": row["val_loss"] + 1}
    assert "unfinished" not in named(judge(rows, layers(1e-3), configured(), DATA))


def test_a_small_gain_at_the_end_of_a_schedule_is_the_schedules_doing() -> None:
    scores = [0.5, 0.6, 0.7, 0.75, 0.78, 0.80, 0.81, 0.82, 0.83]
    config = {"trainer": {"epochs": 9, "monitor": "val_acc"}, "optimizer": {"lr": 1.0}}

    def rows(last_lr: float) -> list[dict[str, Any]]:
        lrs = [1.0] * 8 + [last_lr]
        same = {"train_loss": 1.0, "val_loss": 1.0, "train_acc": 0.9}
        return [{"epoch": e + 1, "lr": lrs[e], "val_acc": scores[e], **same} for e in range(9)]

    assert "unfinished" not in named(judge(rows(0.01), [], config))
    assert named(judge(rows(1.0), [], config))["unfinished"].number == pytest.approx(0.03)


def test_dead_units_are_a_fault_of_a_run_that_misses_images_and_most_of_them_are_urgent() -> None:
    def found(share: float, ratio: float = 1e-3, error: float = 0.3, norm: str = "none") -> list[tuple[str, ...]]:
        rows = metrics(JUMPING, JUMPING, train_acc=[1 - error] * 9, val_acc=[1 - error] * 9)
        arguments = (rows, layers(ratio, dead_fraction=share), configured(model={"norm": norm}), DATA)
        judged = [f for f in judge(*arguments) if f.name in ("dead", "update_ratio")]
        assert [f for f in judged if f.severity == "stop"] == urgent(*arguments)
        return [(f.name, f.severity, f.try_) for f in judged]

    assert found(0.2) == [("dead", "warn", "model.norm=batch")]
    assert found(0.6) == [("dead", "stop", "model.norm=batch")]
    assert found(0.6, error=0.01) == found(0.05) == []
    # what kills the units comes first
    assert found(0.2, ratio=2e-2) == [("update_ratio", "warn", "optimizer.lr=0.01")]


def test_dead_units_that_pretrained_weights_came_with_are_no_fault_of_the_rate() -> None:
    rows = metrics(JUMPING, JUMPING, train_acc=[0.7] * 9, val_acc=[0.7] * 9)
    start, end = layers(1e-3, 1, dead_fraction=0.55), layers(1e-3, dead_fraction=0.56)[2:]
    grown = layers(1e-3, dead_fraction=0.7)[2:]
    for config in (configured(model={"weights": "DEFAULT"}), configured(trainer={"start_from": "outputs/a"})):
        assert "dead" not in named(judge(rows, start + end, config, DATA))
        assert "dead" not in named(urgent(rows, end[-2:], config, DATA))
        assert "dead" in named(judge(rows, start + grown, config, DATA))
    assert "dead" in named(judge(rows, start + end, configured(), DATA))


def test_a_few_dead_units_in_one_small_layer_of_many_are_no_fault_and_the_start_is_named() -> None:
    rows = metrics(JUMPING, JUMPING, train_acc=[0.7] * 9, val_acc=[0.7] * 9)
    names = [f"layer{k}" for k in range(8)]

    def found(*dead: str, share: float = 0.125, since: int = 1) -> list[Any]:
        shares = [
            {"epoch": e, "layer": n, "update_ratio": 1e-3, "dead_fraction": share if n in dead and e >= since else 0.0}
            for e in range(1, 10)
            for n in names
        ]
        return [f for f in judge(rows, shares, configured(), DATA) if f.name == "dead"]

    assert found("layer3") == []
    assert len(found("layer3", share=0.6)) == len(found("layer3", "layer4")) == 1
    (early,), (late,) = found(*names), found(*names, since=4)
    assert ("from the first" in early.sentence, "from the first" in late.sentence) == (True, False)


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
    rows, shifted = metrics(learning(9), learning(9), train_acc=[0.6] * 9, val_acc=[0.6] * 9), {"act_std": 1.0}
    (found,) = judge(rows, layers(1e-3, act_mean=-5.0, **shifted), configured(model={"norm": "none"}), DATA)
    assert (found.name, found.number, found.try_) == ("offset", 5.0, "model.norm=batch")
    assert "first" in found.sentence
    assert "head" not in found.sentence  # logits may have any mean
    calm = judge(rows, layers(1e-3, act_mean=2.0, **shifted), configured(model={"norm": "none"}), DATA)
    assert [f.name for f in calm] == ["unfinished"]


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
    run = watched("optimizer.lr=1e-7", "trainer.epochs=3", "trainer.batch_size=8", watch=False)
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


def test_rows_that_a_person_edited_are_omitted() -> None:
    rows = metrics([0.5, 0.4, 0.3, 0.2, 0.1], [0, 0, 1, 1, 1])
    strange = [{**rows[0], "epoch": "x"}, {"lr": 1.0}, {**rows[0], "epoch": "nan"}, {**rows[0], "epoch": None}]
    expected = judge(rows, layers(1e-3), configured(), DATA)
    assert judge([*strange, *rows], [{"epoch": 1}, *layers(1e-3)], configured(), DATA) == expected
    judge([{**row, "val_loss": "much", "lr": "=1"} for row in rows], layers(1e-3), configured(), DATA)
