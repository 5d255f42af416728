"""What is done with runs on cached features and on crops: sweeps, ensembles, distillation, predict, export (M3, D7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.folders import reading
from dlrun.inference.activation import activations
from dlrun.inference.predictor import load
from support.commands import Outcome
from support.photos import root

__all__ = ["root"]  # a fixture

BASE = (
    "dataset=image_folder", "dataset.image_size=16", "model=cnn", "model.width=4", "model.depth=2",
    "trainer.epochs=2", "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false", "check=none",
)  # fmt: skip
FROZEN = ("model.freeze=backbone", "trainer.feature_views=2", "dataset.cache=cache")
CROPS = ("augment=resized_crop", "augment.crop=12", "augment.eval_crop=14")


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own internals
def test_a_sweep_on_features_is_an_ensemble_a_teacher_and_an_export(
    root: Path, here: Path, dlrun: Callable[..., Outcome]
) -> None:
    def ran(*words: str) -> Outcome:
        done = dlrun(*words)
        assert done.code == 0, (words, done.err)
        return done

    base = (*BASE, f"dataset.root={root}")
    ran("train", *base, *FROZEN, *CROPS, "-m", "optimizer.lr=0.01,0.03", "sweep.dir=s")
    assert all(reading.stored(here / trial)["feature_seconds"] > 0 for trial in ("s/0000", "s/0001"))
    ran("train", *base, "augment=resized_crop", "augment.crop=12", "augment.eval_crop=full", "run.dir=whole")
    ran("ensemble", "s", "whole", "--out", "e")
    members = ("s/0000", "s/0001", "whole")
    probabilities = {}
    for name in (*members, "e"):
        ran("predict", name, str(root / "test"), "--out", "said.csv", "--force")
        probabilities[name] = np.loadtxt("said.csv", delimiter=",", skiprows=1, usecols=(3, 4))
        if name != "e":  # the images of the test, as it was evaluated in training
            logits = reading.arrays(here / name, "predictions")["test_logits"].astype(np.float64)
            expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            np.testing.assert_allclose(probabilities[name], expected, atol=1e-5)
    votes = np.mean([probabilities[name] for name in members], axis=0)
    np.testing.assert_allclose(probabilities["e"], votes, atol=1e-5)
    ran("train", *base, *FROZEN, *CROPS, "objective=distill", "objective.teacher=e", "run.dir=student")
    assert reading.stored(here / "student")["feature_seconds"] > 0
    ran("export", "student", "--to", "torch_export", "--out", "m.pt2")

    pytest.importorskip("pytorch_grad_cam", reason="the extra explain is not installed")
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outside = np.ones((16, 16), bool)
    outside[1:-1, 1:-1] = False
    for name, most in (("s/0000", 0.0), ("e", 1 / 3)):  # one of the three members sees the border
        heat = np.stack([one.heat for one in activations(load(here / name, [], "cpu"), images, None)])
        assert heat.shape == (8, 16, 16)
        assert heat[:, outside].max() <= most + 1e-6
        assert heat[:, ~outside].max() > 0.5
    ran("explain-image", "s/0000", str(root / "test/cat/00.png"), "--out", "p.png")
