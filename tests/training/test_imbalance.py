"""Weights of classes, focal loss and balanced batches: alone and together with what else shapes the loss (D6)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.analysis.verdicts import judge
from dlrun.checks import chance
from dlrun.checks.audit import class_balance
from dlrun.checks.independence import independence
from dlrun.config.settings import Settings
from dlrun.data.batches import Batch
from dlrun.training import loop
from dlrun.training.experiment import Experiment, build, prior
from support.commands import Outcome
from support.composed import composed

COUNTS = [60, 20, 10]
LABELS = np.repeat([0, 1, 2], COUNTS)
SMALL = ("check=none", "model=mlp", "model.width=8", "trainer.threads=1", "trainer.report=false", "trainer.epochs=1")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety images of three classes, 60, 20 and 10, with as many in each for validation and test."""
    x = (60 * LABELS[:, None, None] + np.random.default_rng(0).integers(0, 60, (90, 6, 6))).astype(np.uint8)
    path = tmp_path_factory.mktemp("uneven") / "uneven.npz"
    np.savez(
        path, **{f"x{end}": x for end in ("", "_val", "_test")}, **{f"y{end}": LABELS for end in ("", "_val", "_test")}
    )
    return path


@cache
def config(path: Path, loss: str) -> Settings:
    return composed("dataset=arrays", f"dataset.path={path}", *SMALL, loss, "optimizer=sgd", "model.norm=none")


def experiment(path: Path, *words: str) -> Experiment:
    """What these words train: options of loss alone are composed, keys are set, which is quicker."""
    loss = next((word for word in words if word.startswith("loss=")), "loss=cross_entropy")
    keys: dict[str, dict[str, Any]] = {}
    for word in set(words) - {loss}:
        key, _, value = word.partition("=")
        group, _, name = key.partition(".")
        keys.setdefault(group, {})[name] = yaml.safe_load(value)
    return build(config(path, loss).changed(**keys))


def everything(exp: Experiment) -> Batch:
    return Batch(*next(exp.batches(exp.data.train, batch_size=90).epoch(0)))


# ---- the loss of training


PAIRS = [
    ("loss=cross_entropy", "loss.label_smoothing=0.1"),
    ("loss=focal",),
    ("loss=hinge",),
]


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize(("weight", "parts"), [("none", 7), ("balanced", 2), ("[1,2,5]", 7)])
def test_accumulated_parts_give_the_step_of_the_whole_batch(
    path: Path, loss: tuple[str, ...], weight: str, parts: int
) -> None:
    words = (*loss, f"loss.weight={weight}", "trainer.batch_size=90")
    whole, split = experiment(path, *words), experiment(path, *words, f"trainer.accumulate={parts}")
    batch = everything(whole)
    for exp in (whole, split):
        exp.scheduler.set(0.5)
    one, other = loop.step(whole, batch), loop.step(split, batch)
    assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-5)
    for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


class Half:
    """An objective with a soft part that has no weights, as a teacher's."""

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.x)
        soft = F.kl_div(F.log_softmax(logits, 1), torch.full_like(logits, 1 / 3), reduction="batchmean")
        return 0.5 * soft + 0.5 * loss(logits, batch.y), logits


def test_a_soft_part_of_the_objective_is_accumulated_without_weights(path: Path) -> None:
    words = ("loss.weight=balanced",)
    whole, split = experiment(path, *words), experiment(path, *words, "trainer.accumulate=3")
    batch = everything(whole)
    values = [float(loop.step(_with(exp, Half()), batch).loss) for exp in (whole, split)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def _with(exp: Experiment, objective: Half) -> Experiment:
    return replace(exp, objective=objective)


def test_the_validation_loss_is_weighted_and_its_accuracy_is_not(path: Path) -> None:
    exp = experiment(path, "loss.weight=balanced")
    found = loop.predict(exp, exp.val)
    scores = loop.scores(exp, found, "val")
    each = F.cross_entropy(found.logits, found.labels, reduction="none")
    by_class = torch.stack([each[found.labels == label].mean() for label in range(3)])
    assert scores["val_loss"] == pytest.approx(float(by_class.mean()), rel=1e-5)
    assert scores["val_acc"] == pytest.approx(float((found.logits.argmax(1) == found.labels).double().mean()))


def test_balanced_weights_and_balanced_batches_minimise_the_same_loss(path: Path) -> None:
    weighted, drawn = (experiment(path, word) for word in ("loss.weight=balanced", "dataset.balance=true"))
    batch = everything(weighted)
    logits = weighted.model(batch.x).detach()
    of_all = float(weighted.loss(logits, batch.y))
    means = [
        float(drawn.loss(logits[index], batch.y[index]))
        for number in range(20)
        for index in [torch.cat([i for _, _, i in drawn.train.epoch(number)])]
    ]
    assert np.mean(means) == pytest.approx(of_all, rel=0.02)


# ---- what knows of it


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize(
    ("balance", "weight", "bias"),
    [
        (a, b, c)
        for a, b, c in itertools.product(("true", "false"), ("none", "balanced", "[9,1,1]"), ("default", "frequency"))
    ],
)
def test_before_training_the_loss_is_that_of_guessing(
    path: Path, loss: tuple[str, ...], balance: str, weight: str, bias: str
) -> None:
    words = (f"dataset.balance={balance}", f"loss.weight={weight}", f"model.output_bias={bias}")
    exp = experiment(path, *loss, *words)
    found, expected = chance.initial_loss(exp), chance.expected_loss(exp, everything(exp).y)[0]
    assert found.status == "pass", found
    assert chance.loss(exp).status == "pass"
    shares = torch.tensor([1.0, 1, 1] if balance == "true" else COUNTS)
    shares = (
        shares
        * {"none": torch.ones(3), "balanced": 1 / torch.tensor(COUNTS), "[9,1,1]": torch.tensor([9.0, 1, 1])}[weight]
    )
    assert torch.allclose(prior(exp.data, exp.loss).float(), shares / shares.sum())
    if bias == "default" or (balance, weight) in (("true", "none"), ("false", "balanced")):
        assert expected == pytest.approx(exp.loss.chance(3), rel=1e-3)  # type: ignore[operator]
    elif balance == "false" and "cross" in loss[0]:
        p = shares / shares.sum()
        assert expected == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)  # the entropy of the weighted labels


def test_samples_stay_independent_under_weights(path: Path) -> None:
    assert independence(experiment(path, "loss.weight=balanced")).status == "pass"


@pytest.mark.parametrize(
    ("words", "status", "advice"),
    [
        ((), "warn", "loss.weight=balanced dataset.balance=true"),
        (("dataset.balance=true",), "pass", ""),
        (("loss.weight=effective",), "pass", ""),
        (("loss=focal", "loss.weight=[1,3,6]"), "pass", ""),
        (("dataset.balance=true", "loss.weight=balanced"), "warn", "loss.weight=none"),
        (("dataset.balance=true", "loss.weight=[1,2,1]"), "pass", ""),
        (("loss=focal",), "warn", "loss.weight=balanced dataset.balance=true"),
    ],
)
def test_the_check_of_the_counts_knows_what_makes_up_for_them(
    path: Path, words: tuple[str, ...], status: str, advice: str
) -> None:
    found = class_balance(experiment(path, *words))
    assert found.status == status, found
    assert found.message.endswith(f"; try {advice}" if advice else found.message)


def verdicts(exp: Experiment, acc: float = 0.95, loss: float = 0.1, **val: float) -> dict[str, str]:
    losses = np.linspace(math.log(3), loss, 10)
    rows = [
        {"epoch": k + 1, "lr": 0.1, "train_loss": v, "train_acc": acc, "val_loss": v, "val_acc": acc, **val}
        for k, v in enumerate(losses)
    ]
    return {one.name: one.try_ for one in judge(rows, [], exp.cfg.plain, exp.data.record())}


def test_a_gap_is_one_between_the_same_mixtures_of_classes(path: Path) -> None:
    balanced, plain = experiment(path, "dataset.balance=true"), experiment(path)
    # rare classes are learned better than frequent ones: balanced batches are, as balanced validation images
    assert "gap" in verdicts(plain, acc=0.95, val_acc=0.65, val_balanced_acc=0.94)
    assert "gap" not in verdicts(balanced, acc=0.95, val_acc=0.65, val_balanced_acc=0.94)
    assert "gap" in verdicts(balanced, acc=0.95, val_acc=0.94, val_balanced_acc=0.5)
    assert "gap" in verdicts(balanced, acc=0.95, val_acc=0.65)  # runs before that column


def test_verdicts_know_what_makes_up_for_unequal_classes(path: Path) -> None:
    assert verdicts(experiment(path))["imbalance"] == "loss.weight=balanced"
    for words in (("dataset.balance=true",), ("loss.weight=effective",), ("loss=focal", "loss.weight=balanced")):
        assert "imbalance" not in verdicts(experiment(path, *words))
    both = experiment(path, "dataset.balance=true", "loss.weight=balanced")
    assert verdicts(both)["imbalance"] == "loss.weight=none"
    # 0.5 is less than the largest class, 0.67; of balanced batches that class is a third
    assert "flat" in verdicts(experiment(path), acc=0.5, loss=1.05)
    assert "flat" not in verdicts(experiment(path, "dataset.balance=true"), acc=0.5, loss=1.05)
    # the chance loss of focal is (2/3)^2 ln 3 = 0.488: a first loss of 0.49 is no sign of steps that were too long
    assert "flat" in verdicts(experiment(path, "loss=focal"), acc=0.5, loss=1.05)


def test_wrong_weights_are_refused_in_one_line(here: Path, path: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("train", "dataset=arrays", f"dataset.path={path}", *SMALL)
    for word, named in (
        ("loss.weight=[1,2]", "3"),
        ("loss.weight=[1,0,2]", "loss.weight"),
        ("loss.weight=equal", "balanced"),
        ("loss.beta=1", "loss.beta"),
        ("class_weight=balanced", "loss.weight=balanced"),
    ):
        done = dlrun(*words, word)
        assert (done.code, done.err.count("\n")) == (2, 1), done
        assert named in done.err


def test_a_run_with_weights_is_evaluated_again_with_the_same_loss(
    here: Path, path: Path, dlrun: Callable[..., Outcome]
) -> None:
    words = ("train", "dataset=arrays", f"dataset.path={path}", *SMALL, "loss=focal", "loss.weight=effective")
    done = dlrun(*words, "run.dir=run", "trainer.accumulate=2")
    assert done.code == 0, done.err
    assert dlrun("ensemble", "run", "--fresh", "--out", "e").code == 0
    assert dlrun("predict", "run", str(path), "--out", "p.csv", "--device", "cpu").code == 0
