"""What a training may ask for besides, on two processes: time, patience, fp16, L-BFGS, teachers, frozen weights …"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.ranks import TINY, ended, rows, started

pytestmark = pytest.mark.slow

PLAIN = ("model=cnn", "model.width=4", "model.norm=group", "augment=crop_flip")
ALIKE = {
    "fp16": (*PLAIN, "trainer.precision=fp16"),
    # of more iterations the line search multiplies the rounding: so does trainer.accumulate=2 in one process
    "lbfgs": ("model=mlp", "model.norm=none", "optimizer=lbfgs", "optimizer.max_iter=2", "trainer.batch_size=135"),
    "distilled": (*PLAIN, "objective=distill", "objective.teacher=teacher"),
    "frozen": ("model=mlp", "model.norm=layer", "model.freeze=backbone"),
    "joining": (*PLAIN, "model.freeze=backbone", "model.unfreeze_at=2"),
    "averaged": (*PLAIN, "trainer.swa=0.5", "trainer.epochs=4"),
}


@pytest.mark.parametrize("name", [*ALIKE])
def test_two_processes_take_the_steps_of_one(name: str, tmp_path: Path) -> None:
    given = [word.partition("=")[0] for word in ALIKE[name]]
    words = [
        word
        for word in TINY
        if word.partition("=")[0] not in given and ("optimizer" not in given or "optimizer" not in word)
    ]
    if "objective=distill" in ALIKE[name]:
        assert ended(started(tmp_path, 1, *TINY, *PLAIN, "run.dir=teacher"))[0].code == 0
    for world in (1, 2):
        found = ended(started(tmp_path, world, *words, *ALIKE[name], f"run.dir=of{world}"))
        assert [one.code for one in found] == [0] * world, found
    expected, others = rows(tmp_path / "of1"), rows(tmp_path / "of2")
    assert len(expected) == len(others) == (4 if name == "averaged" else 2)
    for one, other in zip(expected, others, strict=True):
        if name == "frozen":  # one process trains the end of the network alone, on features
            del one["nonlinear"], other["nonlinear"]
        if name == "fp16":  # of a sample with two equal logits
            assert other.pop("train_acc") == pytest.approx(one.pop("train_acc"), abs=1.5 / 135)
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5)


def test_patience_ends_both_after_the_same_epoch(tmp_path: Path) -> None:
    words = ("model=mlp", "optimizer.lr=0", "scheduler=constant", "trainer.patience=2", "trainer.epochs=9")
    words = (*(word for word in TINY if not word.startswith(("optimizer.lr", "trainer.epochs"))), *words)
    found = ended(started(tmp_path, 2, *words, "model.norm=none", "run.dir=run"))
    assert [one.code for one in found] == [0, 0], found
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["status"], result["best_epoch"], result["epochs"], len(rows(tmp_path / "run"))) == (
        "completed",
        1,
        3,
        3,
    )
    assert "stopped early" in result["reason"]


def test_a_training_of_some_seconds_ends_both(tmp_path: Path) -> None:
    words = (*TINY, *PLAIN, f"trainer.hours={8 / 3600}")
    found = ended(started(tmp_path, 2, *words, "run.dir=run"))
    assert [one.code for one in found] == [0, 0], found
    result = json.loads((tmp_path / "run/result.json").read_text())
    lines = rows(tmp_path / "run")
    assert (result["status"], result["epochs"]) == ("completed", len(lines))
    assert lines[-1]["lr"] < 0.1 * lines[0]["lr"]  # the schedule ended with the time


def test_compiled_steps_on_two_processes(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    words = (*TINY, "model=mlp", "model.norm=none", "trainer.batch_size=45")
    for name, word in (("plain", "false"), ("compiled", "true")):
        found = ended(started(tmp_path, 2, *words, f"trainer.compile={word}", f"run.dir={name}"), timeout=500)
        assert [one.code for one in found] == [0, 0], found
    one, other = rows(tmp_path / "plain"), rows(tmp_path / "compiled")
    assert other[0] == pytest.approx(one[0], rel=2e-3, abs=1e-5)
