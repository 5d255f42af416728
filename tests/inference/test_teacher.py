"""Distillation: the exact loss, the cache, and a student that resumes and refuses a teacher of other data."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dlrun.commands import ensemble
from dlrun.folders.run import claim
from dlrun.inference.predictor import Predictor, load
from dlrun.objectives import Distill
from dlrun.run.execute import execute
from dlrun.training.experiment import build
from support.commands import TINY, Outcome
from support.composed import composed


def test_the_loss_is_hintons() -> None:
    objective = Distill.__new__(Distill)
    objective.temperature, objective.alpha = 3.0, 0.7
    objective.targets = torch.randn(5, 4)
    x, y, index = torch.randn(2, 4), torch.tensor([1, 3]), torch.tensor([4, 0])
    found, logits = objective(nn.Identity(), nn.CrossEntropyLoss(), x, y, index)
    p, q = (t.div(3.0).softmax(1) for t in (objective.targets[index], x))
    soft = (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(found, 0.7 * 9 * soft + 0.3 * cross_entropy(x, y))
    assert logits is x
    hard, _ = objective(nn.Identity(), nn.CrossEntropyLoss(), x, y)
    assert torch.equal(hard, cross_entropy(x, y))  # samples that a check makes up


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in (1, 2):
            assert execute(composed(*TINY, f"seed={seed}"), claim(f"sweep/000{seed - 1}", "")) == 0
        assert ensemble.main(["sweep", "--out", "e"]) == 0
    return folder


@pytest.fixture
def teachers(here: Path, trained_once: Path) -> Path:
    """A folder of its own, with the teachers that all tests share."""
    for name in ("sweep", "e"):
        shutil.copytree(trained_once / name, name)
    return here


def student(*more: str) -> tuple[str, ...]:
    return (*TINY, "objective=distill", "objective.teacher=e", "seed=3", *more)


def test_targets_are_the_vote_on_plain_images_and_asked_once(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*student("augment=crop_flip", "augment.pad=1")))
    predictor = load(Path("e"), [])
    images = exp.data.train.images.take(torch.arange(len(exp.data.train)))
    expected = predictor(images).probabilities
    np.testing.assert_allclose(exp.objective.targets.exp().numpy(), expected, atol=1e-5)
    assert len(list(Path("outputs/.teachers").iterdir())) == 1

    def fail(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(Predictor, "__call__", fail)
    again = build(composed(*student("optimizer.lr=0.1")))
    assert torch.equal(again.objective.targets, exp.objective.targets)


def test_another_teacher_has_its_own_targets(teachers: Path) -> None:
    one = build(composed(*student("objective.teacher=sweep/0000")))
    other = build(composed(*student("objective.teacher=sweep/0001")))
    assert not torch.equal(one.objective.targets, other.objective.targets)
    assert len(list(Path("outputs/.teachers").iterdir())) == 2


def test_a_student_trains_and_resumes_exactly(teachers: Path, dlrun: Callable[..., Outcome]) -> None:
    words = [w for w in student() if not w.startswith("trainer.epochs")]
    assert dlrun("train", *words, "trainer.epochs=2", "run.dir=whole").code == 0
    from dlrun.console import Screen
    from dlrun.training import loop
    from dlrun.training.checkpoint import State

    run = claim("broken", "test")
    run.write_config(composed(*words, "trainer.epochs=2").plain)
    stopped = State()

    class Stop(Exception):
        pass

    class Once(Screen):
        def epoch(self, *_: object) -> None:  # type: ignore[override]
            raise Stop

    with pytest.raises(Stop):
        loop.fit(build(composed(*words, "trainer.epochs=2")), run, stopped, Once())
    run.release()
    assert dlrun("resume", "broken").code == 0
    ours, theirs = (torch.load(f"{d}/checkpoints/last.pt", weights_only=True)["model"] for d in ("broken", "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_teacher_of_another_fold_is_refused(teachers: Path, dlrun: Callable[..., Outcome]) -> None:
    for more, pattern in {
        "dataset.split_seed=5": r"objective\.teacher=e: .*\bvalidation fold\b.*\bsplit_seed\b",
        "objective.teacher=nowhere": r"objective\.teacher=nowhere: ",
        "objective.alpha=2": r"objective\.alpha=2: .*\b0\b.*\b1\b",
    }.items():
        done = dlrun("train", *student(more))
        assert done.code == 2
        assert re.search(f"^dlrun: {pattern}", done.err)
        assert done.err.count("\n") == 1
    result = json.loads(Path("sweep/0000/result.json").read_text())
    result["data"]["classes"] = [f"c{k}" for k in range(10)]
    Path("sweep/0000/result.json").write_text(json.dumps(result))
    done = dlrun("train", *student("objective.teacher=sweep/0000"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    pattern = r"objective\.teacher=sweep/0000: .*\b10 \(c0, c1, c2, c3, …\).*\b10 \(0, 1, 2, 3, …\)"
    assert re.search(pattern, done.err)
    done = dlrun("train", *TINY, "objective=distill")
    assert "objective.teacher=RUN|ENSEMBLE" in done.err
