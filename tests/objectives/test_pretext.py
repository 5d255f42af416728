"""Learning from images without labels: the losses, that no label is read, and what a later run takes over (M10)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dlrun.checks.runner import run
from dlrun.config.settings import Settings
from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.objectives.pretext import SimCLR
from dlrun.training import checkpoint, expected, loop
from dlrun.training.experiment import Experiment, build
from support.commands import Outcome
from support.composed import composed

WORDS = (
    *("dataset=arrays", "dataset.path=images.npz", "trainer.batch_size=20", "trainer.epochs=2", "model.width=4"),
    *("check=none", "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false"),
)


@pytest.fixture
def images(here: Path) -> Path:
    """Ninety images of bars in three classes."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (90, 12, 12, 3)).astype(np.uint8)
    for k in range(90):
        x[k, :, 4 * (k % 3) : 4 * (k % 3) + 4] += 150
    np.savez(here / "images.npz", x=x, y=np.arange(90) % 3)
    return here


def weights(folder: str) -> dict[str, Tensor]:
    """Those of the model, and of the objective's own head."""
    found = checkpoint.load(Path(folder, "checkpoints/last.pt"))
    return {**found["model"], **{f"objective.{name}": value for name, value in found["objective"].items()}}


def same(one: str, other: str) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def first(exp: Experiment) -> Batch:
    x, y, index = next(exp.train.epoch(1))
    return Batch(x, y, index, epoch=1, seed=1)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("simclr", ("trainer.ema=0.9",)),
        pytest.param("denoise", ("trainer.accumulate=2", "augment.flip=true"), marks=pytest.mark.slow),
        pytest.param("rotation", ("trainer.swa=0.9", "optimizer.sam=0.05"), marks=pytest.mark.slow),
        pytest.param("autoencode", (), marks=pytest.mark.slow),
    ],
)
def test_labels_are_never_read_and_a_run_resumes_bit_for_bit(
    images: Path, dlrun: Callable[..., Outcome], objective: str, words: tuple[str, ...]
) -> None:
    """Corrupted labels leave every weight and every row as it is."""
    words = (*WORDS, f"objective={objective}", *words)
    done = dlrun("train", *words, "run.dir=right")
    assert done.code == 0, done.err
    with np.load("images.npz") as file:
        held = dict(file)
    np.savez("images.npz", x=held["x"], y=np.random.default_rng(1).permutation(held["y"]))
    assert dlrun("train", *words, "trainer.stop_after=1", "run.dir=wrong").code == 0
    assert dlrun("resume", "wrong").code == 0
    assert same("right", "wrong")
    rows, results = [], []
    for name in ("right", "wrong"):
        rows.append([{k: row[k] for k in ("train_loss", "val_loss")} for row in reading.metrics(Path(name))])
        results.append(json.loads(Path(name, "result.json").read_text()))
    assert rows[0] == rows[1]
    assert float(rows[0][-1]["val_loss"]) < float(rows[0][0]["val_loss"])
    assert {row["val_acc"] for row in reading.metrics(Path("right"))} == {""}
    assert (results[0]["status"], results[0]["monitor"]) == ("completed", "val_loss")
    assert results[0]["test_loss"] == results[1]["test_loss"]
    assert "test_acc" not in results[0]


def test_a_later_run_takes_the_trunk_and_a_new_classifier(images: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *WORDS, "objective=rotation", "run.dir=run").code == 0
    fresh, exp = build(composed(*WORDS)), build(composed(*WORDS, "trainer.start_from=run"))
    theirs, own = checkpoint.load(Path("run/checkpoints/best.pt"))["model"], exp.model.state_dict()
    assert exp.start is not None
    assert exp.start.head == "new"
    for name, value in own.items():
        if name.startswith("head."):
            assert torch.equal(value, fresh.model.state_dict()[name])
        else:
            assert torch.equal(value, theirs[name])
    done = dlrun("predict", "run", "images.npz")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "trainer.start_from" in done.err


def test_a_folder_of_images_without_labels_is_enough(images: Path) -> None:
    with np.load("images.npz") as file:
        x = file["x"]
    for k in range(40):
        place = images / "photos" / (".hidden" if k == 39 else ".")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[k]).save(place / f"{k}.png")
    given = [word for word in WORDS if not word.startswith("dataset")]
    folder = ("dataset=image_folder", "dataset.root=photos", "dataset.class_level=none")
    exp = build(composed(*given, *folder, "objective=autoencode"))
    assert sum(map(len, (exp.data.train, exp.data.val, exp.data.test().split))) == 39
    assert exp.cfg.trainer.monitor == "val_loss"
    assert torch.isfinite(loop.step(exp, first(exp)).loss)
    with pytest.raises(UserError, match="class_level"):
        build(composed(*given, *folder))


@pytest.mark.slow
def test_a_run_without_accuracy_is_compared_and_reported(images: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *WORDS, "objective=rotation", "run.dir=run").code == 0
    assert dlrun("train", *WORDS, "trainer.start_from=run", "run.dir=tuned").code == 0
    assert dlrun("compare", "run", "tuned", "--json").code == 0
    done = dlrun("train", "-m", *WORDS, "objective=rotation", "optimizer.lr=1e-4,1e-2", "sweep.dir=sweep")
    assert done.code == 0, done.err
    with open("sweep/table.csv", newline="") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    ranked = next(line for line in done.out.splitlines() if line.startswith("  000"))
    assert ranked.split()[:2] == [f"000{losses.index(min(losses))}", "val_loss"]
    assert dlrun("report", "run").code == 0
    assert Path("run/report.html").stat().st_size > 1000


def test_weights_of_a_damaged_checkpoint_are_refused(images: Path) -> None:
    exp = build(composed(*WORDS, "objective=rotation"))
    found = checkpoint.snapshot(exp, checkpoint.State())
    expected.hold(found, exp)
    for head in ({}, {**found["objective"], "weight": torch.zeros(2, 2)}):
        with pytest.raises(expected.Misfit, match="objective"):
            expected.hold({**found, "objective": head}, exp)


# --- the losses


@pytest.mark.parametrize("objective", ["autoencode", "denoise", "rotation", "simclr"])
def test_a_loss_is_the_same_whatever_the_labels(images: Path, objective: str) -> None:
    exp = build(composed(*WORDS, f"objective={objective}"))
    batch, found = first(exp), []
    for y in (batch.y, batch.y.flip(0), torch.zeros_like(batch.y)):
        exp.model.eval()
        found.append(float(exp.objective(exp.model, exp.loss, Batch(batch.x, y, batch.index, 1, seed=1))[0].detach()))
    assert found[0] == found[1] == found[2]
    assert math.isfinite(found[0])


def test_the_head_is_trained_with_the_model(images: Path) -> None:
    exp = build(composed(*WORDS, "objective=autoencode"))
    trained = {id(p) for group in exp.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in exp.objective.parameters()} <= trained
    before = [p.detach().clone() for p in exp.objective.parameters()]
    for _ in range(2):  # a bias alone may have a gradient of 0 at first
        loop.step(exp, first(exp))
    assert all(not torch.equal(p, old) for p, old in zip(exp.objective.parameters(), before, strict=True))


def test_a_decoder_is_compared_with_the_clean_image(images: Path) -> None:
    exp = build(composed(*WORDS, "objective=denoise", "objective.noise=0.7"))
    seen: list[Tensor] = []
    exp.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    for p in exp.objective.parameters():
        p.data.zero_()  # it draws nothing
    batch = first(exp)
    value, _ = exp.objective(exp.model, exp.loss, batch)
    assert float(value.detach()) == pytest.approx(float(batch.x.square().mean()), rel=1e-4)
    assert float((seen[0] - batch.x).std()) == pytest.approx(0.7, rel=0.05)


def test_turned_images_have_the_turn_as_their_class(images: Path) -> None:
    exp = build(composed(*WORDS, "objective=rotation"))
    seen: list[Tensor] = []
    exp.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    batch = first(exp)
    asked: list[Tensor] = []
    exp.objective.head.register_forward_hook(lambda _, given, out: asked.append(out.detach()))
    value, _ = exp.objective(exp.model, exp.loss, batch)
    turns = torch.tensor(
        [next(k for k in range(4) if torch.equal(torch.rot90(x, k, (1, 2)), got)) for x, got in zip(batch.x, seen[0])]  # noqa: B905
    )
    assert len(set(turns.tolist())) > 1
    each = -asked[0].log_softmax(1)[torch.arange(len(turns)), turns]
    assert float(value.detach()) == pytest.approx(float(each.mean()), rel=1e-5)


def test_views_of_an_image_find_each_other(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*WORDS, "objective=simclr", "objective.temperature=0.3"))
    batch = first(exp)
    one, other = (exp.objective._view(batch, k) for k in range(2))
    assert one.shape == other.shape == batch.x.shape
    assert not torch.equal(one, other)
    assert torch.equal(one, exp.objective._view(batch, 0))
    points: list[Tensor] = []
    exp.objective.head.register_forward_hook(lambda _, given, out: points.append(out.detach()))
    value, _ = exp.objective(exp.model, exp.loss, batch)
    z = torch.nn.functional.normalize(points[0], dim=1)
    n, total = len(batch), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        likeness = [float(z[i] @ z[k]) / 0.3 for k in range(2 * n) if k != i]
        total -= float(z[i] @ z[j]) / 0.3 - math.log(sum(map(math.exp, likeness)))
    assert float(value.detach()) == pytest.approx(total / (2 * n), rel=1e-4)


# --- what does not go together


def test_what_needs_labels_is_one_line(images: Path, dlrun: Callable[..., Outcome]) -> None:
    base = composed(*WORDS, "objective=simclr")
    for key, value in (("dataset.balance", True), ("model.output_bias", "frequency"), ("optimizer.lookahead", 2)):
        section, _, last = key.partition(".")
        with pytest.raises(UserError, match=key.replace(".", r"\.")):
            build(Settings.of({**base.plain, section: {**base.plain[section], last: value}}))
    for word in ("optimizer=muon", "objective.mixup=0.2", "trainer.accumulate=2"):
        done = dlrun("train", *WORDS, "objective=simclr", word, "run.dir=run")
        assert (done.code, done.err.count("\n")) == (2, 1), (word, done.err)
        assert word.split("=")[0] in done.err
        assert not Path("run").exists()


def test_only_square_images_are_turned(here: Path) -> None:
    np.savez("images.npz", x=np.zeros((60, 8, 12, 1), np.uint8) + np.arange(60, dtype=np.uint8)[:, None, None, None],
             y=np.arange(60) % 2)  # fmt: skip
    with pytest.raises(UserError, match=r"objective=rotation.*8×12"):
        build(composed(*WORDS, "objective=rotation"))
    assert build(composed(*WORDS, "objective=autoencode")).objective.size == (8, 12)


def test_checks_that_need_labels_are_left_out(images: Path) -> None:
    given = [word for word in WORDS if not word.startswith("check=")]
    exp = build(composed(*given, "objective=simclr", "check.only=[garbage,labels,inputs]"))
    found = {result.check: result for result in run(exp)}
    assert {name: one.status for name, one in found.items()} == {"garbage": "skip", "labels": "skip", "inputs": "pass"}
    assert found["garbage"].value == "off"


def test_views_are_of_the_images_whatever_their_units(here: Path) -> None:
    x = np.random.default_rng(0).normal(0, 5, (60, 8, 8, 1)).astype(np.float32)
    np.savez("images.npz", x=x, y=np.arange(60) % 2)
    exp = build(composed(*WORDS, "objective=simclr", "objective.crop_scale=1.0", "objective.strength=0.0"))
    assert isinstance(exp.objective, SimCLR)
    batch = first(exp)
    view = exp.objective._view(batch, 0)
    mirrored = batch.x.flip(3)
    assert all(
        torch.allclose(v, x, atol=0.05) or torch.allclose(v, m, atol=0.05)
        for v, x, m in zip(view, batch.x, mirrored, strict=True)
    )
