"""`dlrun train` on the device: data, precisions, compilation, optimizers, averages, penalties, peak memory."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SMALL = ("dataset.limit=300", "model.width=8", "trainer.batch_size=50")
OTHERS = ("adan", "lamb", "lion")  # optimizers of another package
OPTIMIZERS = sorted(p.stem for p in (Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))
SETUPS = {
    "digits": ("model.width=8", "trainer.epochs=5"),
    "mlp": ("dataset=arrays", "model=mlp", "trainer.epochs=4"),
    "cnn": ("dataset=arrays", "augment=crop_flip", "model.width=8", "trainer.epochs=4"),
    "resnet20": ("dataset=arrays", "dataset.limit=600", "model=resnet20", "model.width=8", "trainer.epochs=4"),
}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_learns_and_leaves_what_any_run_leaves(train: Callable[..., Any], device: str, setup: str) -> None:
    run = train(*SETUPS[setup], "trainer.report=true")
    assert run.result["status"] == "completed"
    assert f"; {device} " in run.log
    assert run.result["test_acc"] > 0.6
    losses = run.column("train_loss")
    assert losses[-1] < losses[0]
    with open(run.path / "layers.csv", newline="") as file:
        assert all(float(row["weight_norm"]) > 0 for row in csv.DictReader(file))
    assert (run.path / "report.html").stat().st_size > 10_000
    with np.load(run.path / "predictions.npz") as stored:
        right = (stored["test_logits"].argmax(1) == stored["test_labels"]).mean()
    assert run.result["test_acc"] == pytest.approx(right)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_every_precision_learns_with_weights_in_float32(train: Callable[..., Any], device: str, precision: str) -> None:
    run = train("dataset=arrays", "model.width=8", "trainer.epochs=3", f"trainer.precision={precision}")
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(precision)
    if precision == "auto":
        has = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if has else "float32"  # a cnn of width 8 is too small for a processor's bfloat16
    assert f"; {device} {dtype};" in run.log
    assert run.result["test_acc"] > 0.6
    assert {t.dtype for t in run.checkpoint()["model"].values() if t.is_floating_point()} == {torch.float32}


def test_compiled_steps_come_to_the_same_losses(train: Callable[..., Any], device: str) -> None:
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed, which compiles for CUDA")
    if not any(map(shutil.which, ("cc", "gcc", "g++", "clang"))):
        pytest.skip("no compiler here")
    words = ("dataset=arrays", "dataset.limit=300", "model.width=4", "trainer.batch_size=135", "trainer.epochs=2")
    words += ("trainer.precision=fp32",)  # 270 images are left to train on: all batches are of one size
    plain = train(*words, folder="plain")
    compiled = train(*words, "trainer.compile=true", folder="compiled")
    assert compiled.column("train_loss") == pytest.approx(plain.column("train_loss"), rel=2e-2)
    assert compiled.checkpoint()["model"].keys() == plain.checkpoint()["model"].keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(train: Callable[..., Any], name: str) -> None:
    if name in OTHERS:
        pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    rates = {"lion": 1e-3, "lamb": 0.05, "radam": 0.02}  # a few steps at their usual ones change little
    more = ("trainer.batch_size=270",) if name == "lbfgs" else ()
    more += (f"optimizer.lr={rates[name]}",) if name in rates else ()
    run = train(*SMALL, f"optimizer={name}", "trainer.epochs=5", *more)
    losses = run.column("train_loss")
    assert losses[-1] < 0.9 * losses[0]
    state = run.checkpoint()["optimizer"]["state"]
    plain_sgd = name == "sgd" and not any(state.values())
    assert state or plain_sgd


def test_averaged_weights_are_scored_beside_the_raw_ones(train: Callable[..., Any]) -> None:
    run = train(*SMALL, "trainer.epochs=4", "trainer.ema=0.9")
    averages, raw = run.checkpoint()["ema"], run.checkpoint()["model"]
    assert averages.keys() == raw.keys()
    assert not any(torch.equal(averages[k], raw[k]) for k in raw if k.endswith("weight"))
    assert 0 < run.column("ema_val_acc")[-1] <= 1
    assert run.result["weights"] in ("raw", "ema")


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(train: Callable[..., Any]) -> None:
    words = ("dataset=arrays", "dataset.limit=300", "model=mlp", "model.norm=none", "trainer.epochs=2")
    words += ("optimizer=sgd", "optimizer.lr=0.01", "trainer.precision=fp32")
    whole = train(*words, folder="whole")
    parts = train(*words, "trainer.accumulate=4", folder="parts")
    assert parts.column("train_loss") == pytest.approx(whole.column("train_loss"), rel=1e-3)
    assert parts.column("grad_norm") == pytest.approx(whole.column("grad_norm"), rel=1e-2)


def test_penalties_clipping_dropout_and_the_hinge_loss(train: Callable[..., Any]) -> None:
    words = ("loss=hinge", "regularizer=elastic", "regularizer.max_norm=2", "regularizer.dropout=0.1")
    run = train(*SMALL, *words, "trainer.clip_norm=1", "trainer.clip_value=0.5", "trainer.epochs=3")
    assert min(run.column("penalty")) > 0
    for name, weight in run.checkpoint()["model"].items():
        if weight.ndim >= 2:
            assert float(weight.flatten(1).norm(dim=1).max()) < 2.001, name


@pytest.mark.parametrize("more", ["objective.consistent=false", "objective.consistent=true"])
def test_a_teacher_is_asked_on_the_device(train: Callable[..., Any], more: str) -> None:
    train(*SMALL, "trainer.epochs=3", folder="teacher")
    words = ("objective=distill", "objective.teacher=teacher", "objective.alpha=1.0", more)
    run = train(*SMALL, "trainer.epochs=3", *words, folder="student")
    losses = run.column("train_loss")
    assert losses[-1] < losses[0]


def test_the_recipe_of_the_speedrun_on_arrays(train: Callable[..., Any]) -> None:
    words = ("experiment=cifar10_speedrun", "dataset=arrays", "dataset.val_fraction=0.1", "model.widths=[16,32,32]")
    words += ("trainer.batch_size=120", "trainer.epochs=4", "augment.progressive=[[20,1],[24,1]]")
    run = train(*words, "optimizer.per_layer.whiten.epochs=2")
    assert run.result["test_acc"] > 0.6
    assert run.result["multi_crop"] == "mirror_translate"


def test_a_run_that_diverges_stops_before_such_weights_are_saved(train: Callable[..., Any]) -> None:
    words = (*SMALL, "model.norm=none", "optimizer=sgd", "optimizer.lr=1e12", "scheduler=constant")
    run = train(*words, "trainer.epochs=3", code=4)
    assert run.result["status"] == "diverged"
    saved = run.path / "checkpoints" / "last.pt"
    assert not saved.exists() or all(bool(t.isfinite().all()) for t in run.checkpoint()["model"].values())


def test_peak_memory_stands_in_the_table(train: Callable[..., Any]) -> None:
    run = train(*SMALL, "trainer.epochs=2")
    assert min(run.column("memory_mb")) > 1


def test_peak_memory_is_what_torch_allocated_and_grows_with_the_batch(
    train: Callable[..., Any], card: torch.device
) -> None:
    words = ("dataset=arrays", "trainer.epochs=1", "trainer.precision=fp32", "trainer.eval_batch_size=64")
    held = torch.cuda.memory_allocated(card) / 2**20  # by what else lives in this process
    small, large = (
        train(*words, f"trainer.batch_size={n}", folder=f"b{n}").column("memory_mb")[0] - held for n in (64, 512)
    )
    # activations of a batch: far more than the weights, which both have
    assert 1 < 2 * small < large
    # of 512 images after the first convolution alone there are 64 MiB
    assert large > 64
