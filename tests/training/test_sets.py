"""A set of classes per image: binary cross-entropy, mAP, and F1 at thresholds that validation alone chooses (M11)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from dlrun.checks.heads import judged
from dlrun.checks.runner import CHECKS
from dlrun.data.table import table
from dlrun.data.tasks import Tasks
from dlrun.errors import UserError
from dlrun.training import sets
from dlrun.training.experiment import build
from dlrun.vocabulary import Outcome as Judged
from support.commands import Outcome
from support.composed import composed

QUIET = ("model=mlp", "model.width=8", "trainer.threads=1", "trainer.report=false", "trainer.batch_size=32")
DATA = ("dataset=table", "dataset.csv=t.csv", "dataset.images=images", "dataset.cache=none")
WORDS = (*DATA, "dataset.multilabel=true", "loss=bce", *QUIET)
NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in which a channel is bright if the class is in the set: all eight sets in turn."""
    top = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for n in range(120):
        pixels = draw.integers(0, 60, (8, 8, 3)).astype(np.uint8)
        for channel in range(3):
            pixels[:, :, channel] += np.uint8(120 * (n >> channel & 1))
        Image.fromarray(pixels).save(top / f"{n:03}.png")
    return top


@pytest.fixture
def colours(here: Path, photos: Path) -> Path:
    (here / "images").symlink_to(photos)
    words = ["red", "green", "blue"]
    rows = [f"{n:03},{'|'.join(words[c] for c in range(3) if n >> c & 1) or '-'}" for n in range(120)]
    (here / "t.csv").write_text("\n".join(["id,label", *rows]))
    return here


def test_average_precision_of_cases_by_hand() -> None:
    def precision(p: list[float], there: list[int]) -> float | None:
        return sets.average_precision(np.array(p), np.array(there, dtype=bool))

    assert precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert precision([0.6, 0.7, 0.8, 0.9], [1, 0, 1, 0]) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert precision([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]) == pytest.approx(1 / 4)  # one threshold
    assert precision([0.9, 0.1], [1, 1]) == 1
    assert precision([0.9, 0.1], [0, 0]) is None


def test_thresholds_by_hand() -> None:
    def chosen(p: list[float], there: list[int]) -> float:
        return sets.threshold(np.array(p), np.array(there, dtype=bool))

    assert chosen([0.9, 0.4, 0.3, 0.1], [1, 1, 0, 0]) == pytest.approx(0.35)
    assert chosen([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]) == 0.5
    assert chosen([0.9, 0.1], [0, 0]) == 0.5
    draw = np.random.default_rng(1)
    p, there = draw.random(60), draw.random(60) < 0.3
    best = sets.f1(p, there, sets.threshold(p, there))
    assert best == pytest.approx(max(sets.f1(p, there, limit) for limit in p))


def test_thresholds_follow_from_validation_alone() -> None:
    tasks, draw = Tasks.of_sets(["a", "b"]), torch.Generator().manual_seed(0)

    def split(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = np.random.default_rng(seed).integers(0, 2, (50, 2))
        return torch.randn(50, 2, generator=draw), tasks.codes(found)

    def thresholds(val: Any, test: Any) -> Any:
        return sets.further(tasks, {"val": val, "test": test}, {"a": {}, "b": {}})["thresholds"]

    val, test, other = split(1), split(2), split(3)
    assert thresholds(val, test) == thresholds(val, other) != thresholds(other, test)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_binary_cross_entropy_and_costs_c_ln_2_at_chance(colours: Path, smoothing: float) -> None:
    exp = build(composed(*WORDS, f"regularizer.label_smoothing={smoothing}"))
    assert exp.data.classes == NAMES
    y = exp.data.train.labels
    logits = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(0))
    assert exp.data.tasks is not None
    aims = exp.data.tasks.columns(y).float() * (1 - smoothing) + smoothing / 2
    expected = binary_cross_entropy_with_logits(logits, aims, reduction="none").sum(1).mean()
    assert float(exp.loss(logits, y)) == pytest.approx(float(expected), abs=1e-5)
    assert float(exp.loss(0 * logits, y)) == pytest.approx(3 * math.log(2), abs=1e-5)
    assert exp.loss.chance(3) == pytest.approx(3 * math.log(2))  # type: ignore[operator]


def test_the_checks_judge_every_class(colours: Path) -> None:
    exp = build(composed(*WORDS))
    for name in ("loss", "initial_loss", "reach"):
        assert judged(CHECKS[name], exp, 60).status == Judged.PASS


def test_garbage_fails_no_network_that_is_right_on_all_held_out_images(colours: Path) -> None:
    rows = [f"{n:03},{'white' if n % 8 == 7 else 'other'}" for n in range(120)]
    (colours / "t.csv").write_text("\n".join(["id,label", *rows]))
    exp = build(composed(*DATA, *QUIET))
    verdict = CHECKS["garbage"](exp, 60)
    right, held = (int(word.strip(",")) for word in verdict.value.split()[1:4:2])
    assert right == held > 0
    assert verdict.status == Judged.SKIP


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_train_resume_predict_and_evaluate(colours: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("train", *WORDS, "check=none", "trainer.epochs=3", "optimizer.lr=0.0005")
    assert dlrun(*words, "run.dir=r", "trainer.stop_after=2").code == 0
    assert dlrun("resume", "r").code == 0
    found = result(colours / "r")
    with np.load(colours / "r/predictions.npz") as arrays:
        assert "test_labels" not in arrays
        logits, there = arrays["test_logits"].astype(float), arrays["test_targets"].astype(bool)
    p, limits = 1 / (1 + np.exp(-logits)), [found["thresholds"][name] for name in NAMES]
    assert found["test_acc"] == pytest.approx(((p > 0.5) == there).mean())
    precision = [sets.average_precision(*pair) for pair in zip(p.T, there.T, strict=True)]
    assert found["test_map"] == pytest.approx(np.mean(precision))  # type: ignore[arg-type]
    tuned = [sets.f1(*one) for one in zip(p.T, there.T, limits, strict=True)]
    assert found["test_tuned_f1"] == pytest.approx(np.mean(tuned))
    assert "val_map" in (colours / "r/metrics.csv").read_text().splitlines()[0].split(",")

    assert dlrun("predict", "r", "images", "--out", "p.csv").code == 0
    for row in csv.DictReader((colours / "p.csv").read_text().splitlines()):
        named = [name for name, limit in zip(NAMES, limits, strict=True) if float(row[f"p_{name}"]) >= limit]
        assert row["classes"] == ("|".join(named) or "-")
    assert dlrun("evaluate", "r", "--out", "own").code == 0
    own = result(colours / "own")
    for name in ("test_acc", "test_map", "test_tuned_f1", "test_macro_f1"):
        assert own[name] == pytest.approx(found[name]), name
    assert own["test_loss"] == pytest.approx(found["test_loss"], abs=1e-4)
    (colours / "u.csv").write_text("id,label\n001,red\n004,blue\n000,-\n")
    done = dlrun("evaluate", "r", "u.csv", "--images", "images", "--out", "other")
    assert done.code == 0, done.err
    with np.load(colours / "other/predictions.npz") as arrays:
        assert arrays["test_targets"].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


WRONG = {  # words, a change of the table, and what the message names
    "loss": ("loss=cross_entropy", "", "loss=bce"),
    "two columns": ("loss=bce dataset.label_column=[id,label]", "", "label_column"),
    "no label": ("loss=bce", "005,red|blue:005,", "005"),
    "an empty name": ("loss=bce", "005,red|blue:005,red|", "005"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case: str, colours: Path, dlrun: Callable[..., Outcome]) -> None:
    typed, change, named = WRONG[case]
    file = colours / "t.csv"
    file.write_text(file.read_text().replace(*change.split(":")) if change else file.read_text())
    done = dlrun("train", *DATA, *QUIET, "dataset.multilabel=true", "check=none", "run.dir=r", *typed.split())
    assert done.code == 2
    assert named in done.err
    assert done.err.count("\n") == 1


def test_sets_have_two_to_thirty_classes(colours: Path) -> None:
    for names in ("red", "|".join(f"class{k}" for k in range(31))):
        (colours / "t.csv").write_text("\n".join(["id,label", *(f"{n:03},{names}" for n in range(9))]))
        with pytest.raises(UserError, match=r"dataset\.multilabel"):
            table("t.csv", "images", multilabel=True)
