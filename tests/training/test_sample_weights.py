"""Weights of samples: the training loss is their weighted mean, in parts too, and they belong to the data of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from dlrun.config.settings import Settings
from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.training import loop
from dlrun.training.experiment import build
from support.commands import Outcome
from support.composed import composed

QUIET = ("model=mlp", "model.width=4", "check=none", "trainer.threads=1", "trainer.report=false")
WORDS = (*QUIET, "dataset=table", "dataset.csv=train.csv", "dataset.images=images", "dataset.cache=none")


def batch(weight: torch.Tensor | None, count: int = 12) -> Batch:
    made = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 1, 8, 8, generator=made), torch.randint(10, (count,), generator=made)
    return Batch(x, y, weight=weight)


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("zeros", [0, 5, 12])
def test_a_step_follows_the_weighted_mean(accumulate: int, zeros: int) -> None:
    words = (f"trainer.accumulate={accumulate}", "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=1")
    exp = build(composed("dataset.limit=100", *QUIET, *words, "scheduler=constant", "model.norm=none"))
    weight = torch.rand(12, generator=torch.Generator().manual_seed(3)) * 3
    weight[:zeros] = 0
    data = batch(weight)
    each = cross_entropy(exp.model(data.x), data.y, reduction="none")
    expected = (each * weight).sum() / max(float(weight.sum()), 1e-30)
    before = [p.detach().clone() for p in exp.model.parameters()]
    slopes = torch.autograd.grad(expected, list(exp.model.parameters()))
    exp.scheduler.set(0)
    done = loop.step(exp, data)
    assert float(done.loss) / 12 == pytest.approx(float(expected.detach()), abs=1e-6)
    for old, new, slope in zip(before, exp.model.parameters(), slopes, strict=True):
        assert torch.allclose(old - new, slope, atol=1e-6)


def test_equal_weights_change_nothing() -> None:
    exp = build(composed("dataset.limit=100", *QUIET))
    plain, equal = (float(loop.step(exp, batch(w)).loss) for w in (None, torch.full((12,), 0.5)))
    again = build(composed("dataset.limit=100", *QUIET))
    assert plain == pytest.approx(float(loop.step(again, batch(torch.ones(12))).loss), abs=1e-5)
    assert equal < plain  # a step later


@pytest.fixture
def here_with_weights(here: Path) -> Path:
    """Eighty images of two shades; a third of the labels is wrong, and these count 0."""
    (here / "images").mkdir()
    rows = ["id,label,trust"]
    for n in range(80):
        pixels = np.random.default_rng(n).integers(0, 100, (4, 4, 3), dtype=np.uint8) + np.uint8(120 * (n % 2))
        Image.fromarray(pixels).save(here / f"images/{n:02}.png")
        wrong = n % 3 == 0
        rows.append(f"{n:02},{(n % 2) ^ wrong},{0 if wrong else 2.5}")
    (here / "train.csv").write_text("\n".join(rows))
    return here


def test_labels_that_count_nothing_are_not_learned(here_with_weights: Path, dlrun: Callable[..., Outcome]) -> None:
    def trained(name: str, *more: str) -> dict[str, float]:
        done = dlrun("train", *WORDS, "trainer.epochs=12", "optimizer.lr=0.02", f"run.dir={name}", *more)
        assert done.code == 0, done.err
        assert ("trust (0 to 2.5)" in done.out) == bool(more)
        with np.load(here_with_weights / name / "predictions.npz") as found:
            shade = [int(Path(str(one)).stem) % 2 for one in found["test_ids"]]
            return float((found["test_logits"].argmax(1) == shade).mean())

    weighted = trained("weighted", "dataset.weight_column=trust")
    assert weighted == 1
    data = json.loads(Path("weighted/result.json").read_text())["data"]
    assert data["weights"] == [0, 2.5]
    assert trained("plain") <= weighted
    assert json.loads(Path("plain/result.json").read_text())["data"]["identity"] != data["identity"]


def test_a_run_does_not_continue_with_other_weights(here_with_weights: Path, dlrun: Callable[..., Outcome]) -> None:
    words = (*WORDS, "dataset.weight_column=trust", "trainer.epochs=2", "trainer.stop_after=1", "run.dir=run")
    assert dlrun("train", *words).code == 0
    table = Path("train.csv").read_text()
    Path("train.csv").write_text(table.replace(",2.5", ",1.5"))
    assert "weights" in dlrun("resume", "run").err
    assert dlrun("resume", "run", "dataset.changed=accept").code == 2
    Path("train.csv").write_text(table.replace("\n01,1", "\n01,0"))
    assert "01.png" in dlrun("resume", "run").err
    shuffled = sorted(table.splitlines()[1:], reverse=True)
    Path("train.csv").write_text("\n".join(["id,label,trust", *shuffled]))
    assert dlrun("resume", "run").code == 0


def test_a_loss_without_weights_is_refused(here_with_weights: Path) -> None:
    plain = composed(*WORDS, "dataset.weight_column=trust").plain
    plain["loss"] = {"_target_": "torch.nn.MultiMarginLoss"}
    with pytest.raises(UserError, match="MultiMarginLoss"):
        build(Settings.of(plain))
