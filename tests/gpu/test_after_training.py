"""What is done with runs of the card: ensembles, predictions there and on the processor, exports, pictures."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.commands import Outcome

WORDS = ("dataset=arrays", "dataset.limit=300", "model.width=8", "trainer.epochs=3", "trainer.keep=all")


@pytest.fixture
def two(train: Callable[..., Any], here: Path) -> Path:
    """The folder of two runs of different seeds."""
    for seed in (1, 2):
        train(*WORDS, f"seed={seed}", folder=f"runs/{seed}")
    return here / "runs"


def probabilities(file: str) -> Any:
    with open(file, newline="") as opened:
        return np.array([[float(v) for k, v in row.items() if k.startswith("p_")] for row in csv.DictReader(opened)])


def softmax(logits: Any) -> Any:
    return torch.tensor(logits).double().softmax(1).numpy()


def images(arrays: Path, folder: Path) -> str:
    with np.load(arrays) as found:
        np.save(folder / "test.npy", found["x_test"])
    return str(folder / "test.npy")


def test_a_run_predicts_the_same_on_the_device_and_on_the_processor(
    two: Path, dlrun: Callable[..., Outcome], arrays: Path, here: Path, device: str
) -> None:
    file = images(arrays, here)
    for where in (device, "cpu"):
        done = dlrun("predict", "runs/1", file, "--device", where, "--out", f"on-{where}.csv", "--force")
        assert done.code == 0, done.err
    mine, theirs = probabilities(f"on-{device}.csv"), probabilities("on-cpu.csv")
    assert mine.shape == (300, 10)
    with np.load(two / "1" / "predictions.npz") as stored:
        assert (mine.argmax(1) == stored["test_logits"].argmax(1)).mean() > 0.97
        # those may have been made in bfloat16
        assert np.abs(mine - softmax(stored["test_logits"])).max() < 0.2
    assert np.abs(mine - theirs).max() < 1e-2  # TF32


def test_an_ensemble_votes_with_all_members_on_the_device(
    two: Path, dlrun: Callable[..., Outcome], arrays: Path, here: Path, device: str
) -> None:
    done = dlrun("ensemble", "runs", "--out", "e")
    assert done.code == 0, done.err
    file = images(arrays, here)
    names = {"e": "e.csv", "runs/1": "1.csv", "runs/2": "2.csv"}
    for model, out in names.items():
        assert dlrun("predict", model, file, "--device", device, "--out", out).code == 0
    vote, one, other = (probabilities(out) for out in names.values())
    assert np.abs(vote - (one + other) / 2).max() < 1e-5
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("how", [("--fresh",), ("--average", "weights"), ("--members", "checkpoints")], ids=" ".join)
def test_members_are_evaluated_again_on_the_device(
    two: Path, dlrun: Callable[..., Outcome], how: tuple[str, ...]
) -> None:
    done = dlrun("ensemble", "runs/1" if "--members" in how else "runs", *how, "--out", "e")
    assert done.code == 0, done.out + done.err
    assert Path("e").is_dir()


@pytest.mark.parametrize("kind", ["torch_export", "onnx"])
def test_a_run_of_the_device_is_exported_and_verified(
    two: Path, dlrun: Callable[..., Outcome], arrays: Path, kind: str
) -> None:
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    if kind == "onnx" and missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    done = dlrun("export", "runs/1", "--to", kind, "--out", "model")
    assert done.code == 0, done.err
    if kind == "torch_export":
        with np.load(two / "1" / "predictions.npz") as stored:
            expected = stored["test_logits"][:8]
        program = torch.export.load("model").module()
        with np.load(arrays) as found:
            raw = torch.from_numpy(found["x_test"][:8]).permute(0, 3, 1, 2).contiguous()
        assert np.abs(program(raw).detach().numpy() - expected).max() < 0.5


def test_what_augmentation_does_is_drawn(dlrun: Callable[..., Outcome], arrays: Path, here: Path, device: str) -> None:
    words = ("dataset=arrays", f"dataset.path={arrays}", "augment=randaugment", f"trainer.device={device}")
    done = dlrun("show", "augment", *words)
    assert done.code == 0, done.err
    assert any(file.stat().st_size > 10_000 for file in here.rglob("*.png"))
