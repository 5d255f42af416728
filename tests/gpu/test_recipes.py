"""Recipes of training, frozen networks and their features, dlrun from Python, embeddings, digests, on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dlrun as package
from support.card import QUIET
from support.commands import Outcome

SMALL = ("dataset.limit=300", "trainer.batch_size=50", "trainer.epochs=5", "model.width=8")
RECIPES = {
    "sam": ("optimizer=sgd", "optimizer.sam=0.05", "trainer.accumulate=2"),
    "sam in fp16": ("optimizer=adamw", "optimizer.sam=0.05", "trainer.precision=fp16"),
    "lookahead": ("optimizer=adamw", "optimizer.lookahead=3"),
    "mixed": ("objective=cutmix", "objective.mixup=0.3", "trainer.ema=0.9"),
    "adversarial": ("objective=adversarial", "objective.steps=2", "trainer.accumulate=2"),
    "deep": ("model=resnet20", "model.width=4", "model.stochastic_depth=0.1", "model.checkpointing=true"),
    "blurred": ("model=cnn", "model.pool=blur", "model.se_ratio=0.25", "trainer.precision=bf16"),
    "rates by layer": ("optimizer=adamw", "optimizer.layer_decay=0.8", "optimizer.head_lr=2x"),
}
ARRAYS = ("dataset=arrays", "dataset.limit=300", "model.width=8", "trainer.epochs=4", "trainer.precision=fp32")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_lowers_the_loss(train: Callable[..., Any], recipe: str) -> None:
    run = train(*SMALL, *RECIPES[recipe])
    losses = run.column("train_loss")
    assert losses[-1] < 0.95 * losses[0]
    assert {t.dtype for t in run.checkpoint()["model"].values() if t.is_floating_point()} == {torch.float32}


def test_the_scale_of_fp16_is_kept_and_small_gradients_with_it(train: Callable[..., Any]) -> None:
    run = train(*SMALL, "trainer.precision=fp16", "trainer.clip_norm=1")
    assert 1 <= run.checkpoint()["scale"]["value"] <= 2**16
    # a gradient that was clipped before it was divided by the scale would be as long as the limit says, or 0
    assert 1e-3 < min(run.column("grad_norm")) < max(run.column("grad_norm")) < 100


def test_the_average_of_the_last_epochs_has_norms_that_fit(train: Callable[..., Any]) -> None:
    run = train(*SMALL, "augment=affine", "trainer.swa=0.6", "trainer.precision=bf16")
    average, raw = run.checkpoint()["ema"], run.checkpoint()["model"]
    means = [name for name in raw if name.endswith("running_mean")]
    assert means
    assert not any(torch.equal(average[name], raw[name]) for name in means)
    assert all(bool(average[name].isfinite().all()) for name in raw)
    for name in raw:
        if name.endswith("running_var"):
            assert 0.1 < float(average[name].sum() / raw[name].sum()) < 10


def test_frozen_layers_rest_until_their_epoch(
    built: Callable[..., Any], inner: SimpleNamespace, tmp_path: Path
) -> None:
    words = ("model.freeze=[stage1]", "model.unfreeze_at=2", "trainer.epochs=2", "optimizer=adamw")
    exp = built("dataset=arrays", "dataset.limit=300", "model.width=8", *words)
    watch, state, screen = inner.Watch(exp), inner.State(), inner.Screen(tmp_path / "log", quiet=True)

    def held() -> list[dict[str, torch.Tensor]]:
        kept = {name: t.clone() for name, t in exp.model.state_dict().items() if t.is_floating_point()}
        return [{n: t for n, t in kept.items() if n.startswith("stage1") is first} for first in (True, False)]

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
        return any(not torch.equal(t, after[name]) for name, t in before.items())

    first, rest = held()
    inner.train_epoch(exp, 1, state, screen, watch)
    then, others = held()
    assert not moved(first, then)  # its batch norm rests as well
    assert moved(rest, others)
    state.epoch = 1
    inner.train_epoch(exp, 2, state, screen, watch)
    assert moved(then, held()[0])


def test_features_of_a_frozen_network_train_its_end_as_images_do(train: Callable[..., Any]) -> None:
    words = (*ARRAYS, "model.freeze=backbone", "dataset.cache=none", "optimizer=sgd", "optimizer.lr=0.1")
    on, through = (train(*words, f"trainer.feature_views={views}", folder=f"views{views}") for views in (1, 0))
    assert on.result["feature_seconds"] > 0
    assert "feature_seconds" not in through.result
    assert on.column("val_loss") == pytest.approx(through.column("val_loss"), rel=2e-2)  # TF32
    assert on.checkpoint()["model"].keys() == through.checkpoint()["model"].keys()


def test_features_of_several_views_are_found_in_bf16(train: Callable[..., Any], device: str) -> None:
    words = (*ARRAYS[:-1], "model.freeze=backbone", "augment=crop_flip", "trainer.feature_views=2")
    words += ("dataset.cache=cache", "trainer.precision=bf16")
    first, again = (train(*words, folder=name) for name in ("one", "two"))
    assert first.result["feature_seconds"] > 0
    assert again.column("train_loss") == pytest.approx(first.column("train_loss"), rel=1e-3)


@pytest.fixture
def run(train: Callable[..., Any], here: Path) -> Path:
    """The folder of a run on the arrays."""
    train(*ARRAYS)
    return here / "run"


def test_from_python_a_run_is_trained_loaded_and_moved(arrays: Path, here: Path, device: str) -> None:
    words = [*ARRAYS, *QUIET, f"dataset.path={arrays}", f"trainer.device={device}", "run.dir=python"]
    done = package.train(words)
    assert done.status == "completed"
    model = done.load(device=device)
    with np.load(arrays) as found:
        images, y = found["x_test"], found["y_test"]
    raw = torch.from_numpy(images[:20]).permute(0, 3, 1, 2)
    logits = model(raw.to(device))
    assert (tuple(logits.shape), logits.device.type) == ((20, 10), device)
    classes, probabilities = model.predict(images)
    right = np.mean([name == model.classes[k] for name, k in zip(classes, y, strict=True)])
    assert right == pytest.approx(done.result["test_acc"], abs=0.01)
    there, others = model.cpu().predict(images[:20])
    assert np.abs(others - probabilities[:20]).max() < 1e-2  # TF32
    assert len(there) == 20
    assert model(raw).device.type == "cpu"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_loaded_run_computes_in_the_precision_of_its_training(
    train: Callable[..., Any], arrays: Path, device: str, precision: str
) -> None:
    train(*ARRAYS[:-1], f"trainer.precision={precision}")
    model = package.load("run", device=device)
    seen = []
    convolution = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    with np.load(arrays) as found:
        model(torch.from_numpy(found["x_test"][:4]).permute(0, 3, 1, 2).to(device))
    assert seen == [{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]


def test_embedded_images_have_the_processors_features(
    run: Path, dlrun: Callable[..., Outcome], arrays: Path, here: Path, device: str
) -> None:
    with np.load(arrays) as found:
        np.save(here / "some.npy", found["x_test"][:60])
    made = []
    for where in (device, "cpu"):
        done = dlrun("embed", "run", "some.npy", "--device", where, "--out", f"{where}.npz", "--force")
        assert done.code == 0, done.err
        with np.load(here / f"{where}.npz") as found:
            made.append((found["features"], found["probabilities"]))
    (ours, mine), (theirs, others) = made
    assert (ours.shape, ours.dtype) == (theirs.shape, np.float32)
    assert len(ours) == 60
    assert np.abs(ours - theirs).max() < 1e-2 * np.abs(theirs).max()  # TF32
    assert np.abs(mine - others).max() < 1e-2


def test_what_an_image_is_recognised_by_is_drawn(
    run: Path, dlrun: Callable[..., Outcome], arrays: Path, here: Path, device: str
) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="the extra explain is not installed")
    (here / "photos").mkdir()
    with np.load(arrays) as found:
        for number, image in enumerate(found["x_test"][:3]):
            Image.fromarray(image).save(here / "photos" / f"{number}.png")
    done = dlrun("explain-image", "run", "photos", "--device", device)
    assert done.code == 0, done.err
    assert (here / "explained.png").stat().st_size > 5_000


def test_a_checkpoint_of_the_device_has_a_digest(train: Callable[..., Any], dlrun: Callable[..., Outcome]) -> None:
    run = train("dataset.limit=200", "model.width=4", "trainer.epochs=2", "trainer.stop_after=1")
    file = run.path / "checkpoints" / "last.pt"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    file.write_bytes(changed)
    refused = dlrun("resume", "run")
    assert refused.code == 2
    assert str(Path("checkpoints", "last.pt")) in refused.err
    file.write_bytes(whole)
    assert dlrun("resume", "run").code == 0
