"""What is done with runs on cached features and on crops: sweeps, ensembles, distillation, predict, export (M3, D7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.folders import reading
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
    trials = [here / "s/0000", here / "s/0001"]
    assert all(reading.stored(trial)["feature_seconds"] > 0 for trial in trials)
    ran("train", *base, "augment=resized_crop", "augment.crop=12", "augment.eval_crop=full", "run.dir=whole")
    ran("ensemble", "s", "whole", "--out", "e")
    ran("evaluate", "e")
    ran("predict", "e", str(root / "test"), "--out", "e.csv")
    for teacher in ("e", "s/0000"):
        words = ("objective=distill", f"objective.teacher={teacher}", f"run.dir=of {Path(teacher).name}")
        ran("train", *base, *FROZEN, *CROPS, *words)
        assert reading.stored(here / f"of {Path(teacher).name}")["feature_seconds"] > 0
    ran("export", "s/0000", "--to", "torch_export", "--out", "m.pt2")
