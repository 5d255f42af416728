"""Ingredients of recipes together: a run that was cut gives the same bits, and the model is used afterwards (O8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.commands import TINY, Outcome
from support.tensors import tensors

COMMON = (*(w for w in TINY if "epochs" not in w), "trainer.epochs=3", "trainer.diagnostics=false")
DEEP = ("model=resnet20", "model.blocks=[1,1]", "model.stochastic_depth=0.3", "model.se_ratio=0.25", "model.stem=half")
DEEP += ("model.antialias=true", "model.shortcut=pooled", "model.checkpointing=true", "model.zero_init_residual=true")
SHARP = ("optimizer=adamw", "optimizer.lookahead=2", "optimizer.sam=0.05", "loss=bce", "regularizer=label_smoothing")
SHARP += ("regularizer.dropout_per_layer={stage2: 0.2}", "scheduler=flat_cosine", "scheduler.warmup_steps=3")
SHARP += ("trainer.accumulate=2", "trainer.clip_norm=1", "trainer.ema=0.9")
FLAT = ("optimizer=radam", "trainer.swa=0.6", "trainer.precision=fp16", "regularizer=l2", "optimizer.sam=0.1")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("words", [(*DEEP, *SHARP), FLAT], ids=["deep", "flat"])
def test_a_cut_run_gives_the_same_bits(words: tuple[str, ...], dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("train", *COMMON, *words, "run.dir=whole")
    assert done.code == 0, done.err
    assert dlrun("train", *COMMON, *words, "run.dir=cut", "trainer.stop_after=2").code == 0
    assert dlrun("resume", "cut").code == 0
    found: list[dict[str, Any]] = [
        torch.load(f"{run}/checkpoints/last.pt", weights_only=True) for run in ("whole", "cut")
    ]
    for key in ("model", "optimizer", "ema", "scale", "averaged", "rng"):
        a, b = (tensors(one[key]) for one in found)
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), key
        assert key not in ("scale", "averaged") or found[0][key] == found[1][key]
    if words == FLAT:
        assert found[0]["averaged"] == 2  # 0.4 of three epochs are over in the second
        assert found[0]["scale"]["value"] >= 1
    result = json.loads(Path("whole/result.json").read_text())
    assert {"raw_val_acc", "ema_val_acc"} <= result.keys()
    if words != FLAT:
        assert {*found[0]["optimizer"]} == {"inner", "slow", "steps"}
        with np.load("whole/probe.npz") as probe:
            np.savez("new.npz", x=probe["images"])
        assert dlrun("predict", "whole", "new.npz", "--out", "new.csv").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [(*DEEP, *SHARP), FLAT, ("model=cnn", "model.pool=blur", "model.se_ratio=0.25")])
def test_the_checks_have_nothing_against_them(words: tuple[str, ...], dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("check", "trainer.threads=1", "trainer.epochs=3", "check.budget=300", *words)
    assert done.code == 0, done.out
    assert " fail " not in done.out
    assert " warn " not in done.out


@pytest.mark.slow
def test_a_run_of_all_of_them_is_exported(dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *COMMON, *DEEP, *SHARP, "run.dir=run").code == 0
    assert dlrun("export", "run", "--to", "torch_export").code == 0
