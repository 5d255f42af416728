"""Verdicts that name the cause where training is not what it seems, and none on the repaired run (B1, M5, O3, O4)."""

from __future__ import annotations

from typing import Any

import pytest

from dlrun.analysis.verdicts import judge

CONFIG: dict[str, Any] = {
    "trainer": {"epochs": 12, "batch_size": 32, "monitor": "val_acc", "accumulate": 1, "clip_norm": 0.0},
    "optimizer": {"lr": 0.1},
    "scheduler": {"warmup": 0.0},
    "model": {"width": 8, "norm": "batch"},
    "loss": {"_target_": "dlrun.losses.CrossEntropy"},
}
DATA = {"train": 1100, "val": 1000, "train_counts": [110] * 10}


def found(config: dict[str, dict[str, Any]], layers: float = 1e-3, **columns: Any) -> tuple[str, str]:
    """The first verdict on a run of twelve epochs, and what it advises; `columns` are values or one for all epochs."""
    usual = {"lr": 0.1, "train_loss": 0.5, "train_acc": 0.9, "val_loss": 0.6, "val_acc": 0.88, "grad_norm": 1.0}
    usual |= {"train_eval_acc": 0.92} | columns
    rows = [
        {"epoch": n + 1} | {name: value[n] if isinstance(value, list) else value for name, value in usual.items()}
        for n in range(12)
    ]
    seen = [{"epoch": n + 1, "layer": name, "update_ratio": layers} for n in range(12) for name in ("conv", "fc")]
    changed = {group: CONFIG.get(group, {}) | config.get(group, {}) for group in CONFIG | config}
    verdicts = judge(rows, seen, changed, DATA, train_acc_valid=usual["train_acc"] is not None)
    return (verdicts[0].name, verdicts[0].try_) if verdicts else ("", "")


FALLING = [0.1 / 32**n for n in range(12)]
RISING = [0.001 * (n + 1) for n in range(12)]
BELL = [0.001 * n * (12 - n) / 6 for n in range(1, 13)]  # of a cycle that a warm-up holds down
POOR: dict[str, Any] = {"train_acc": 0.6, "train_eval_acc": 0.55, "val_acc": 0.5}
LINEAR: dict[str, Any] = {"train_acc": 0.4, "train_eval_acc": 0.4, "val_acc": 0.38, "train_loss": 1.7}


@pytest.mark.parametrize(
    ("name", "advice", "config", "columns"),
    [
        (
            "unlike_evaluation",
            "model.norm=group",
            {"trainer": {"batch_size": 1}},
            {"train_eval_acc": 0.3, "val_acc": 0.25},
        ),
        (
            "unlike_evaluation",
            "trainer.accumulate=1",
            {"trainer": {"accumulate": 16}},
            {"train_eval_acc": 0.5, "val_acc": 0.5},
        ),
        (
            "unlike_evaluation",
            "trainer.batch_size=32",
            {"trainer": {"batch_size": 2}, "model": {"norm": None}},
            {"train_eval_acc": 0.1, "val_acc": 0.1},
        ),
        ("unlike_validation", "", {}, {"val_acc": 0.11}),
        (
            "clipped",
            "trainer.clip_norm=2",
            {"trainer": {"clip_norm": 1e-4}},
            {"grad_norm": 2.3, "train_acc": 0.2, "train_eval_acc": 0.2, "val_acc": 0.2},
        ),
        ("idle", "scheduler.every=3", {"scheduler": {"every": 0.05}}, {"lr": FALLING, "val_acc": 0.5}),
        ("idle", "scheduler.epochs=12", {"scheduler": {"epochs": 2}}, {"lr": FALLING, "val_acc": 0.5}),
        ("warming", "scheduler.warmup=1", {"scheduler": {"warmup": 40}}, {"lr": RISING, "val_acc": 0.5}),
        ("warming", "scheduler.warmup=1", {"scheduler": {"warmup": 40}}, {"lr": BELL, "val_acc": 0.5}),
        ("idle", "scheduler=one_cycle", {}, {"lr": [0.1] * 5 + [1e-3] * 7, "val_acc": 0.5}),
        ("unlike_evaluation", "augment=none", {"augment": {"noise": 0.5}}, {"train_eval_acc": 0.5, "val_acc": 0.5}),
        ("unlike_validation", "", {}, {"train_eval_acc": [0.6, 0.8] + [0.95] * 10, "val_acc": 0.3}),
        ("affine", "model.activation=relu", {"model": {"activation": "identity"}}, LINEAR | {"nonlinear": 1e-7}),
        ("affine", "", {}, LINEAR | {"nonlinear": 1e-7}),
        ("spent", "", {}, LINEAR | {"update_ratio": [1e-3 / 5**n for n in range(12)]}),
        ("flat", "optimizer.lr=10", {}, {"train_acc": None, "train_eval_acc": 0.1, "train_loss": 2.3, "val_acc": 0.1}),
    ],
)
def test_the_cause_is_named_before_the_advice(
    name: str, advice: str, config: dict[str, Any], columns: dict[str, Any]
) -> None:
    assert found(config, 1e-5 if name in ("clipped", "flat") else 1e-3, **columns) == (name, advice)


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        ({"trainer": {"batch_size": 1}}, {}),
        ({"trainer": {"clip_norm": 1.0}}, {"grad_norm": 2.3}),
        ({"scheduler": {"epochs": 12}}, {"lr": [0.1] * 11 + [1e-6], **POOR}),
        ({"scheduler": {"warmup": 2}}, {"lr": [0.01, 0.06] + [0.1] * 10, **POOR}),
        ({}, {"train_eval_acc": 0.5, "val_acc": 0.45, "train_acc": 0.55}),
        ({}, {"train_eval_acc": None}),
        ({}, {"lr": [0.1] * 5 + [1e-3] * 7, **POOR, "train_loss": [2.0 * 0.9**n for n in range(12)]}),
        ({}, {"train_eval_acc": [0.3, 0.5] + [0.95] * 10, "val_acc": [0.28, 0.45] + [0.6] * 10}),
        ({}, LINEAR | {"nonlinear": 0.2}),
        ({}, LINEAR | {"update_ratio": [1e-3 / 1.3**n for n in range(12)]}),
    ],
)
def test_what_is_sound_or_unknown_is_not_called_unlike(config: dict[str, Any], columns: dict[str, Any]) -> None:
    assert found(config, **columns)[0] not in {
        "unlike_evaluation",
        "unlike_validation",
        "clipped",
        "idle",
        "warming",
        "affine",
        "spent",
    }


def rows(layers: dict[str, float | None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Six epochs of a run that misses much, and the update ratios of its layers."""
    usual = {"lr": 0.1, "train_loss": 1.5, "train_acc": 0.5, "val_loss": 1.6, "val_acc": 0.4, "train_eval_acc": 0.5}
    epochs = range(1, 7)
    return (
        [{"epoch": n} | usual for n in epochs],
        [{"epoch": n, "layer": layer, "update_ratio": ratio} for n in epochs for layer, ratio in layers.items()],
    )


@pytest.mark.parametrize(
    ("ratios", "freeze", "name"),
    [
        ((None, None, 1e-3), "none", "frozen"),
        ((0.0, 0.0, 1e-3), "none", "frozen"),
        ((None, None, 1e-3), "backbone", ""),
        ((1e-3, None, 1e-3), "none", ""),
    ],
)
def test_layers_that_never_move_are_named(ratios: tuple[float | None, ...], freeze: str, name: str) -> None:
    config = CONFIG | {"model": CONFIG["model"] | {"freeze": freeze}}
    found = judge(*rows(dict(zip(("stem", "body", "fc"), ratios, strict=True))), config, DATA)
    assert {f.name for f in found} & {"frozen"} == ({name} - {""})
    assert not name or "stem" in found[0].sentence


def test_what_a_check_warned_of_stands_before_the_advice() -> None:
    run = rows({"conv": 1e-4, "fc": 1e-4})
    warning = {"check": "structure", "status": "warn", "message": "one module 6 times; try model.depth=3"}
    lint = {"check": "lint_width", "status": "warn", "message": "no power of two"}
    plain, linted, warned = (judge(*run, CONFIG, DATA, checks=checks)[0] for checks in ([], [lint], [lint, warning]))
    assert plain == linted
    assert (warned.name, warned.try_) == (plain.name, "model.depth=3") != (plain.name, plain.try_)
    assert "6 times" in warned.sentence
