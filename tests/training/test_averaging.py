"""The running average of the weights: exact numbers, and what a run reports of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.training import averaging
from support.commands import TINY, Outcome


def test_the_average_follows_with_a_warm_up_and_then_the_decay() -> None:
    model = nn.BatchNorm1d(1)
    model.weight.data.fill_(0.0)
    average = averaging.started(model)
    model.weight.data.fill_(1.0)
    model.running_mean.fill_(1.0)  # type: ignore[union-attr,operator]
    model.num_batches_tracked.fill_(7)  # type: ignore[union-attr,operator]
    expected = 0.0
    for step in range(1, 40):
        averaging.follow(average, model, 0.7, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
        assert float(average.weight) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
        assert float(average.running_mean) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert int(average.num_batches_tracked) == 7  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in average.parameters())
    assert float(model.weight.detach()) == 1.0


def test_a_run_scores_both_kinds_of_weights_and_keeps_the_better(dlrun: Callable[..., Outcome]) -> None:
    words = [w for w in TINY if not w.startswith("trainer.epochs")]
    done = dlrun("train", *words, "trainer.ema=0.9", "trainer.epochs=2", "run.dir=run")
    assert done.code == 0, done.err
    rows = Path("run/metrics.csv").read_text().splitlines()
    assert {"ema_val_loss", "ema_val_acc", "ema_val_macro_f1"} <= {*rows[0].split(",")}
    result: dict[str, Any] = json.loads(Path("run/result.json").read_text())
    kinds = {w: (-result[f"{w}_val_acc"], result[f"{w}_val_loss"]) for w in ("raw", "ema")}
    better = min(kinds, key=lambda w: kinds[w])
    assert result["weights"] == better
    assert f"better on validation: {better}" in done.out
    for score in ("val_acc", "val_loss", "test_acc", "test_loss"):
        assert result[score] == result[f"{better}_{score}"]
    with np.load("run/predictions.npz") as found:
        right = float((found["test_logits"].argmax(1) == found["test_labels"]).mean())
    assert right == result["test_acc"]
    saved = torch.load("run/checkpoints/last.pt", weights_only=True)
    assert saved["ema"].keys() == saved["model"].keys()
    assert not torch.equal(saved["ema"]["head.weight"], saved["model"]["head.weight"])


def test_without_it_nothing_is_averaged(dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *TINY, "run.dir=run").code == 0
    assert "ema" not in Path("run/metrics.csv").read_text()
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["ema"] is None
    assert "weights" not in json.loads(Path("run/result.json").read_text())


def test_a_decay_of_one_is_refused(dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("train", "trainer.ema=1")
    assert done.code == 2
    assert re.search(r"\btrainer\.ema=1: .*\b0\b.*\b1\b", done.err)
