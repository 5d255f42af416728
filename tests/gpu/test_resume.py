"""The same weights bit for bit: after SIGKILL and `dlrun resume`, and from the same seed, with deterministic=true."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

COMMON = ("check=none", "trainer.report=false", "trainer.threads=1", "trainer.deterministic=true", "dataset=arrays")
EPOCHS = 12
KILLED = {
    "cnn": (
        *("model.width=8", "regularizer=dropout", "augment=crop_flip", "augment.hue=0.1", "augment.rotate=10"),
        *("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.05", "trainer.ema=0.95"),
    ),
    "muon": ("model=airbench", "model.widths=[8,16,16]", "optimizer=muon", "augment=crop_flip", "trainer.accumulate=2"),
    "recipes": (
        *("dataset.limit=400", "model=resnet20", "model.width=4", "model.stochastic_depth=0.2"),
        *("model.checkpointing=true", "model.antialias=true", "objective=cutmix", "objective.mixup=0.3"),
        *("augment=strong", "optimizer=adamw", "optimizer.sam=0.05", "optimizer.lookahead=3", "trainer.swa=0.6"),
    ),
}
TWICE = {
    "cnn": ("model.width=8", "augment=randaugment", "regularizer=dropout", "trainer.precision=fp32"),
    "resnet20": ("model=resnet20", "model.width=8", "optimizer=sgd", "augment=crop_flip"),
    "adamw": ("model.width=8", "optimizer=adamw", "trainer.clip_norm=1", "trainer.precision=bf16"),
    "fp16": ("model.width=8", "optimizer=adamw", "trainer.precision=fp16", "trainer.clip_norm=1"),
    "mixed": (
        *("model.width=8", "model.pool=blur", "augment=augmix", "objective=cutmix", "objective.mixup=0.4"),
        *("optimizer=sgd", "optimizer.sam=0.05", "trainer.accumulate=2"),
    ),
    "lbfgs": ("model=mlp", "optimizer=lbfgs", "trainer.batch_size=270", "optimizer.max_iter=5"),
}


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    """What a checkpoint holds, by the way to it."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    found = {k: v for key, value in pairs for k, v in leaves(value, f"{name}/{key}").items()}
    return found or {name: node}


def differing(one: Path, other: Path) -> list[str]:
    """The parts of two checkpoints that are not equal bit for bit; the seconds spent may differ."""
    first, second = (leaves(torch.load(p / "checkpoints" / "last.pt", weights_only=True)) for p in (one, other))
    assert first.keys() == second.keys()

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)

    return [name for name in first if name != "/seconds" and not same(first[name], second[name])]


def losses(folder: Path) -> list[tuple[str, ...]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [tuple(row[c] for c in ("epoch", "train_loss", "val_loss", "grad_norm")) for row in csv.DictReader(file)]


def epochs(folder: Path) -> int:
    file = folder / "metrics.csv"
    return file.read_text().count("\n") - 1 if file.exists() else 0


@pytest.mark.parametrize("setup", KILLED)
def test_a_run_that_is_killed_and_resumed_ends_like_one_that_was_not(
    started: Callable[..., subprocess.Popen[str]], here: Path, device: str, setup: str
) -> None:
    words = ("train", *COMMON, *KILLED[setup], f"trainer.device={device}", f"trainer.epochs={EPOCHS}")
    straight = started(*words, "run.dir=straight")
    broken = started(*words, "run.dir=broken")
    deadline = time.monotonic() + 120
    while epochs(here / "broken") < 3 and broken.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(broken.pid, signal.SIGKILL)
    said = broken.communicate(timeout=60)[0]
    assert broken.returncode == -signal.SIGKILL, said
    assert 3 <= epochs(here / "broken") < EPOCHS, said
    resumed = started("resume", "broken")
    said = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, said
    assert "resuming after epoch" in said
    said = straight.communicate(timeout=200)[0]
    assert straight.returncode == 0, said
    assert losses(here / "broken") == losses(here / "straight")
    assert differing(here / "broken", here / "straight") == []


@pytest.mark.parametrize("setup", TWICE)
def test_the_same_seed_gives_the_same_weights(train: Callable[..., Any], setup: str) -> None:
    words = (*COMMON[3:], *TWICE[setup], "dataset.limit=300", "trainer.epochs=2")
    first, second = (train(*words, folder=name) for name in ("one", "two"))
    assert differing(first.path, second.path) == []
    other = train(*words, "seed=2", folder="three")
    assert differing(first.path, other.path) != []


def test_a_checkpoint_holds_the_random_state_of_the_card(train: Callable[..., Any], card: torch.device) -> None:
    run = train("dataset.limit=200", "model.width=4", "trainer.epochs=1")
    states = run.checkpoint()["rng"]["cuda"]
    assert len(states) == torch.cuda.device_count()
    assert all(state.dtype == torch.uint8 for state in states)


def test_a_run_on_the_processor_does_not_touch_the_card(here: Path, card: torch.device) -> None:
    code = (
        "import sys, torch\nfrom dlrun import cli\n"
        "sys.argv = ['dlrun', 'train', 'trainer.device=cpu', 'dataset.limit=100', 'model.width=4', "
        "'trainer.epochs=1', 'trainer.report=false', 'check.only=[outputs]', 'run.dir=r']\n"
        "try:\n    cli.main()\nexcept SystemExit as ending:\n    assert not ending.code, ending.code\n"
        "print('initialised:', torch.cuda.is_initialized())\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "initialised: False" in done.stdout
