"""Images without labels beside the labelled ones: the exact loss, who gets in, and that no run depends on more (D8)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlrun.data.batches import Batch
from dlrun.data.unlabelled import Pool
from dlrun.folders import reading
from dlrun.inference.unlabelled import read
from dlrun.training import checkpoint, loop
from dlrun.training.experiment import Experiment, build
from support.commands import Outcome
from support.composed import composed

WORDS = (
    *("dataset.limit=60", "trainer.batch_size=20", "model.width=4", "check=none", "trainer.threads=1"),
    *("trainer.report=false", "trainer.diagnostics=false"),
)
PSEUDO = ("objective=pseudo_label", "objective.unlabelled=pool", "objective.threshold=0.12")
MATCH = ("objective=fixmatch", "objective.unlabelled=pool", "objective.threshold=0.12", "objective.ratio=2")
PLAIN = ("model=mlp", "model.norm=none")  # without batch norm: parts of a batch are independent


def write(file: Path, pixels: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 digits in folders by class; about half of them are images of the run."""
    folder, digits = tmp_path_factory.mktemp("pool") / "pool", load_digits()
    for k in range(80):
        write(folder / str(digits.target[k]) / f"{k}.png", digits.images[k] * 15)
    return folder


@pytest.fixture
def pool(here: Path, drawn: Path) -> Path:
    return Path(shutil.copytree(drawn, here / "pool"))


def weights(folder: str, name: str = "last") -> dict[str, Tensor]:
    found: dict[str, Tensor] = checkpoint.load(Path(folder, "checkpoints", f"{name}.pt"))["model"]
    return found


def same(one: str, other: str) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def first(exp: Experiment, step: int = 0) -> Batch:
    x, y, index = next(exp.train.epoch(1))
    return Batch(x, y, index, epoch=1, step=step, seed=1)


# --- the loss


def test_a_pseudo_label_counts_as_a_label_in_the_asked_share(pool: Path) -> None:
    words = (*WORDS, *PSEUDO, *PLAIN, "objective.ratio=2", "objective.weight=0.5", "trainer.batch_size=10")
    exp = build(composed(*words))
    logits = torch.full((len(exp.objective.pool), 10), -9.0)
    logits[:7, 3] = 9  # the model is sure of seven images, and sees a 3 in each
    exp.objective.threshold = 0.9
    exp.objective.label(logits)
    batches = [exp.objective.joined(first(exp, step=k)) for k in range(len(exp.data.train) // 10)]
    seen = [number for batch in batches for number in batch.other.index.tolist()]  # type: ignore[union-attr]
    assert {*seen} == {*range(7)}
    assert len(seen) <= 7 + len(batches)  # each joins an epoch once, but for rounding
    batch = batches[0]
    assert batch.other is not None
    assert set(batch.other.y.tolist()) == {3}
    value, found = exp.objective(exp.model, exp.loss, batch)
    mine, theirs = exp.model(batch.x), exp.model(batch.other.x)
    others = cross_entropy(theirs, batch.other.y, reduction="sum") / (2 * 10)
    assert float((value - cross_entropy(mine, batch.y) - 0.5 * others).detach().abs()) < 1e-5
    assert torch.allclose(found, mine, atol=1e-6)


def test_the_strong_view_learns_what_the_weak_one_is_sure_of(pool: Path) -> None:
    exp = build(composed(*WORDS, *MATCH, *PLAIN, "objective.weight=0.5"))
    exp.objective.begin_epoch()
    batch = exp.objective.joined(first(exp))
    strong, weak = batch.other, batch.other.other  # type: ignore[union-attr]
    assert strong is not None
    assert weak is not None
    assert len(strong) == len(weak) == min(40, len(exp.objective.pool))
    assert torch.equal(strong.index, weak.index)  # type: ignore[arg-type]
    plain, _, _ = next(exp.batches(exp.objective.pool.split.subset(weak.index), batch_size=99).epoch(0))  # type: ignore[arg-type]
    assert torch.allclose(weak.x, plain)  # nothing is augmented here
    assert not torch.allclose(strong.x, plain, atol=0.1)
    sure, guess = exp.model(weak.x).softmax(1).max(1)
    exp.objective.threshold = threshold = float(sure.detach().median())
    value, _ = exp.objective(exp.model, exp.loss, batch)
    each = cross_entropy(exp.model(strong.x), guess, reduction="none")
    expected = cross_entropy(exp.model(batch.x), batch.y) + 0.5 * each[sure >= threshold].sum() / (2 * len(batch))
    assert float((value - expected).detach().abs()) < 1e-5
    assert exp.objective.columns()["accepted"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("words", [PSEUDO, MATCH], ids=["pseudo_label", "fixmatch"])
def test_parts_of_a_batch_have_the_loss_of_the_whole(pool: Path, words: tuple[str, ...]) -> None:
    found = []
    for parts in (1, 3):
        exp = build(composed(*WORDS, *words, *PLAIN, f"trainer.accumulate={parts}"))
        if words is PSEUDO:
            exp.objective.label(torch.randn(len(exp.objective.pool), 10, generator=torch.Generator().manual_seed(0)))
        found.append(loop.step(exp, first(exp)))
    assert float(found[0].loss) == pytest.approx(float(found[1].loss), rel=1e-5)
    assert float(found[0].grad_norm) == pytest.approx(float(found[1].grad_norm), rel=1e-5)


def test_weights_of_labelled_samples_are_not_those_of_the_others(pool: Path) -> None:
    exp = build(composed(*WORDS, *PSEUDO, *PLAIN))
    exp.objective.label(9 * torch.eye(10)[torch.arange(len(exp.objective.pool)) % 10])
    weight = torch.zeros(20)
    weight[:5] = 1
    batch = replace(first(exp), weight=weight)
    other = exp.objective.joined(batch).other
    assert len(other) == len(batch)
    expected = cross_entropy(exp.model(batch.x)[:5], batch.y[:5]) + cross_entropy(exp.model(other.x), other.y)
    assert float(loop.step(exp, batch).loss) / 20 == pytest.approx(float(expected.detach()), rel=1e-5)


def test_each_image_has_its_turn_before_one_comes_again(pool: Path) -> None:
    exp = build(composed(*WORDS, *MATCH, "objective.ratio=1", "trainer.batch_size=7"))
    whole = exp.objective.pool
    chosen, batch = torch.arange(len(whole)), Batch(torch.zeros(7, 1, 8, 8), torch.zeros(7, dtype=torch.int64))
    turns = [whole.turn(chosen, replace(batch, epoch=2, step=k), 7) % (1 << 40) for k in range(2 * len(whole) // 7)]
    counts = torch.bincount(torch.cat(turns), minlength=len(whole))
    assert counts.min() >= 1
    assert counts.max() <= 2
    again = whole.turn(chosen, replace(batch, epoch=2, step=3), 7) % (1 << 40)
    assert torch.equal(again, turns[3])
    assert not torch.equal(whole.turn(chosen, replace(batch, epoch=3, step=3), 7) % (1 << 40), turns[3])


def test_what_a_check_generates_has_no_other_images(pool: Path) -> None:
    exp = build(composed(*WORDS, *MATCH))
    batch = first(exp)
    assert exp.objective.joined(Batch(batch.x, batch.y)).other is None


# --- labels and when they are made


def listed(pool: Path, shift: int) -> None:
    """Write a table of the images with their labels, all wrong by `shift` classes."""
    files = sorted(pool.rglob("*.png"))
    rows = [f"{file.relative_to(pool)},{(int(file.parent.name) + shift) % 10}" for file in files]
    (pool / "list.csv").write_text("\n".join(["image,label", *rows]))


def test_the_model_labels_at_the_asked_epochs_and_a_run_resumes_bit_for_bit_whatever_the_labels(
    pool: Path, dlrun: Callable[..., Outcome]
) -> None:
    words = (*WORDS, *PSEUDO, "objective.unlabelled=pool/list.csv", "objective.every=2", "trainer.epochs=4")
    listed(pool, 0)
    assert dlrun("train", *words, "run.dir=whole").code == 0
    listed(pool, 1)  # labels are counted, and change no weight
    assert dlrun("train", *words, "trainer.stop_after=3", "run.dir=halves").code == 0  # with labels of before epoch 3
    held = checkpoint.load(Path("halves/checkpoints/last.pt"))["objective"]
    assert (held["labels"] >= 0).any()
    assert dlrun("resume", "halves").code == 0
    assert same("halves", "whole")
    shares = [float(row["accepted"]) for row in reading.metrics(Path("whole"))]
    assert shares[0] == shares[1] == 0 < shares[2] == shares[3]
    found = [json.loads(Path(name, "result.json").read_text())["pseudo_labels"] for name in ("whole", "halves")]
    assert found[0]["accepted"] == found[1]["accepted"]
    assert found[0]["precision"] != found[1]["precision"]
    assert sum(found[0]["accepted"].values()) == round(shares[3] * found[0]["images"])


@pytest.mark.slow
def test_fixmatch_resumes_bit_for_bit(pool: Path, dlrun: Callable[..., Outcome]) -> None:
    words = (*WORDS, *MATCH, "augment=affine", "trainer.ema=0.9", "trainer.accumulate=2", "trainer.epochs=2")
    assert dlrun("train", *words, "run.dir=whole").code == 0
    assert dlrun("train", *words, "trainer.stop_after=1", "run.dir=halves").code == 0
    assert dlrun("resume", "halves").code == 0
    assert same("halves", "whole")
    assert all(float(row["accepted"]) > 0 for row in reading.metrics(Path("whole")))


def test_other_images_and_labels_of_a_damaged_checkpoint_are_refused(pool: Path) -> None:
    from dlrun.training import expected

    exp = build(composed(*WORDS, *PSEUDO))
    found = checkpoint.snapshot(exp, checkpoint.State())
    expected.hold(found, exp)
    write(pool / "another.png", np.eye(8) * 200)
    with pytest.raises(expected.Misfit, match=r"objective\.unlabelled"):
        expected.hold(found, build(composed(*WORDS, *MATCH)))
    for labels in (torch.tensor([1, 2]), found["objective"]["labels"] + 11, "none"):
        with pytest.raises(expected.Misfit, match=r"objective\.unlabelled"):
            expected.hold({**found, "objective": {**found["objective"], "labels": labels}}, exp)


@pytest.mark.slow
def test_a_teacher_labels_once(pool: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *WORDS, "trainer.epochs=3", "run.dir=teacher").code == 0
    exp = build(composed(*WORDS, *PSEUDO, "objective.teacher=teacher"))
    from dlrun.inference.predictor import load

    split = exp.objective.pool.split
    vote = load(Path("teacher"), [])(split.images.take(torch.arange(len(split))))
    sure = torch.from_numpy(np.asarray(vote.probabilities)).max(1).values > 0.1201
    labels = exp.objective.own
    assert torch.equal(labels[sure], torch.from_numpy(np.asarray(vote.classes))[sure])
    assert not any(exp.objective.due(epoch) for epoch in range(9))
    done = dlrun("train", *WORDS, *PSEUDO, "objective.teacher=teacher", "dataset.split_seed=7")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "objective.teacher" in done.err


# --- who gets in, and what is never looked at


def test_copies_of_images_of_the_run_are_omitted_and_the_others_are_read(pool: Path) -> None:
    exp = build(composed(*WORDS))
    found = read("pool", exp.data)
    mine = {digest for s in (exp.data.train, exp.data.val, exp.data.test().split) for digest in s.images.marks.digests}  # type: ignore[union-attr]
    theirs = found.split.images.marks.digests  # type: ignore[union-attr]
    assert not mine & set(theirs)
    assert len(theirs) + sum(found.omitted.values()) == 80
    assert found.omitted["copies of test"] > 0
    assert torch.equal(found.split.labels, torch.tensor([int(Path(name).parent.name) for name in found.split.ids]))


def test_images_that_do_not_fit_into_memory_stay_in_their_files(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.data.images import InMemory, Streamed
    from dlrun.inference import unlabelled

    exp = build(composed(*WORDS))
    held = read("pool", exp.data).split
    monkeypatch.setattr(unlabelled, "KEPT", 0)
    streamed = read("pool", exp.data).split
    assert isinstance(held.images, InMemory)
    assert isinstance(streamed.images, Streamed)
    assert streamed.ids == held.ids
    every = torch.arange(len(held))
    assert torch.equal(streamed.images.take(every), held.images.take(every))
    assert streamed.images.marks.digests == held.images.marks.digests  # type: ignore[union-attr]


def test_a_table_names_images_and_their_labels(pool: Path) -> None:
    exp = build(composed(*WORDS))
    files = [file for file in sorted(pool.rglob("*.png")) if file.parent.name in "01"]
    rows = [f"{file.relative_to(pool)},{file.parent.name if k % 2 else ''}" for k, file in enumerate(files)]
    (pool / "list.csv").write_text("\n".join(["image,label", *rows]))
    found = read("pool/list.csv", exp.data).split
    assert 0 < len(found) <= len(files)
    expected = {str(file.relative_to(pool)): int(file.parent.name) if k % 2 else -1 for k, file in enumerate(files)}
    assert found.labels.tolist() == [expected[name] for name in found.ids]


def test_images_of_other_sizes_and_channels_are_resized_and_arrays_are_read(here: Path) -> None:
    exp = build(composed(*WORDS))
    noise = np.random.default_rng(0)
    write(here / "mixed/wide.png", noise.integers(0, 256, (20, 30, 3)))
    write(here / "mixed/small.png", noise.integers(0, 256, (4, 4)))
    (here / "mixed/broken.png").write_bytes(b"no image")
    found = read("mixed", exp.data)
    assert found.split.images.shape == (8, 8, 1)
    assert len(found.split) == 2
    assert found.omitted == {"unreadable": 1}
    assert "broken.png" in found.note
    np.save(here / "new.npy", noise.integers(0, 256, (5, 8, 8, 1)).astype(np.uint8))
    assert read("new.npy", exp.data).split.labels.tolist() == [-1] * 5


@pytest.fixture
def refused(here: Path, pool: Path) -> dict[str, tuple[str, ...]]:
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken/a.png").write_bytes(b"no image")
    digit = load_digits().images[0] * 15
    write(here / "known/0.png", digit)
    return {
        "nowhere": ("objective.unlabelled=nowhere",),
        "empty": ("objective.unlabelled=empty",),
        "a.png": ("objective.unlabelled=broken",),
        "known": ("objective.unlabelled=known", "dataset.limit=0"),
        "objective.threshold": ("objective.unlabelled=pool", "objective.threshold=1.5"),
        "objective.every": ("objective.unlabelled=pool", "objective.every=0"),
    }


def test_bad_input_is_one_line(refused: dict[str, tuple[str, ...]], dlrun: Callable[..., Outcome]) -> None:
    for word, words in refused.items():
        given = [w for w in WORDS if not any(w.startswith(one.split("=")[0] + "=") for one in words)]
        done = dlrun("train", *given, "objective=pseudo_label", *words, "run.dir=run")
        assert (done.code, done.err.count("\n")) == (2, 1), (word, done.err)
        assert word in done.err
        assert not Path("run").exists()


def test_compiling_each_size_of_a_batch_is_refused(pool: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("train", *WORDS, *MATCH, "trainer.compile=true", "run.dir=run")
    assert (done.code, done.err.count("\n"), "trainer.compile" in done.err) == (2, 1, True), done.err


@pytest.mark.parametrize(
    "words", [pytest.param(PSEUDO, marks=pytest.mark.slow), MATCH], ids=["pseudo_label", "fixmatch"]
)
def test_unlabelled_images_never_reach_validation_or_test(
    pool: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    def poison(self: Pool, samples: Tensor, batch: Batch) -> Tensor:
        return torch.full((len(samples), *batch.x.shape[1:]), 1e3)  # images of nothing

    words = (*words, "trainer.epochs=2", "trainer.eval_batch_size=256")
    with monkeypatch.context() as patched:
        patched.setattr(Pool, "images", poison)
        assert dlrun("train", *WORDS, *words, "run.dir=poisoned").code == 0
    result = json.loads(Path("poisoned/result.json").read_text())
    assert float(reading.metrics(Path("poisoned"))[-1]["accepted"]) > 0
    exp = build(composed(*WORDS, "trainer.eval_batch_size=256"))
    assert result["data"] == json.loads(json.dumps(exp.data.record(final=True)))  # images, labels and folds
    exp.model.load_state_dict(weights("poisoned", "best"))
    stored = reading.arrays(Path("poisoned"), "predictions")
    for name, split in (("val", exp.data.val), ("test", exp.data.test().split)):
        found = loop.predict(exp, exp.batches(split))
        assert [str(one) for one in stored[f"{name}_ids"].tolist()] == split.ids
        assert torch.equal(found.logits.float(), torch.from_numpy(stored[f"{name}_logits"]))


# --- with the rest of dlrun


@pytest.mark.slow
def test_checks_judge_the_labelled_part(pool: Path, dlrun: Callable[..., Outcome]) -> None:
    given = [w for w in WORDS if not w.startswith(("check=", "dataset.limit"))]
    only = "check.only=[garbage,trial_steps,overfit]"
    done = dlrun("check", *given, "dataset.limit=400", *MATCH, only)
    assert done.code == 0, done.out
    assert "warn" not in done.out


@pytest.mark.slow
@pytest.mark.parametrize("words", [PSEUDO, MATCH], ids=["pseudo_label", "fixmatch"])
def test_every_check_passes_and_a_sweep_takes_the_options(
    pool: Path, dlrun: Callable[..., Outcome], words: tuple[str, ...]
) -> None:
    given = [w for w in WORDS if not w.startswith(("check=", "dataset.limit"))]
    done = dlrun("check", *given, "dataset.limit=600", *words)
    assert done.code == 0, done.out
    axis = "objective.weight=0.5,1.0"
    done = dlrun("train", "-m", *WORDS, *words, axis, "trainer.epochs=1", "sweep.dir=sweep")
    assert done.code == 0, done.err
    assert dlrun("compare", "sweep").code == 0


@pytest.mark.slow
def test_progressive_sizes_and_mixed_images_join(pool: Path) -> None:
    words = ("augment.progressive=[[6,1]]", "trainer.epochs=2", "objective.mixup=0.4", "objective.cutmix=1")
    for objective in (PSEUDO, MATCH):
        exp = build(composed(*WORDS, *objective, *words))
        if objective is PSEUDO:
            exp.objective.label(torch.randn(len(exp.objective.pool), 10, generator=torch.Generator().manual_seed(0)))
        assert not exp.train_acc_valid
        batch = exp.objective.joined(exp.objective.mixing(first(exp)))
        assert batch.x.shape[2:] == batch.other.x.shape[2:] == (6, 6)
        assert (batch.other.mix is not None) is (objective is PSEUDO)
        assert torch.isfinite(loop.step(exp, first(exp)).loss)


def test_an_objective_is_no_module_of_a_model(pool: Path) -> None:
    """What a twin of the experiment copies is small: the images are shared."""
    from dlrun.checks.sandbox import twin

    exp = build(composed(*WORDS, *MATCH))
    assert not isinstance(exp.objective, nn.Module)
    assert twin(exp).objective.pool is exp.objective.pool
