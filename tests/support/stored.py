"""Run folders like those of finished runs, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_run(path: Path, config: dict[str, Any] | None = None, **result: Any) -> Path:
    """Write a run folder like that of a finished run, without training."""
    write(path / "config.yaml", "seed: 1\n")
    if config is not None:
        result["config"] = config
    write(path / "result.json", json.dumps(result))
    return path


BASE: dict[str, Any] = {
    "seed": 1,
    "trust": [],
    "run": {"dir": None},
    "trainer": {"epochs": 3, "monitor": "val_acc"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "betas": [0.9, 0.999]},
    "scheduler": {"_target_": "dlrun.optim.schedulers.cosine", "epochs": 3},
    "check": {"enabled": True},
    "choices": {"optimizer": "adam", "model": "cnn", "check": "default", "experiment": None},
}


def config(**changes: Any) -> dict[str, Any]:
    """BASE with some keys, named with __ for dots, set to other values."""
    made: dict[str, Any] = json.loads(json.dumps(BASE))
    for name, value in changes.items():
        *groups, key = name.split("__")
        node = made
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = value
    return made


def result(cfg: dict[str, Any], acc: float | None = None, **more: Any) -> dict[str, Any]:
    scores = (
        {} if acc is None else {"val_acc": acc, "val_loss": 1 - acc, "test_acc": acc - 0.01, "test_loss": 1.1 - acc}
    )
    return {
        "config": cfg,
        "status": "completed",
        "monitor": cfg["trainer"]["monitor"],
        "epochs": 3,
        **scores,
        **more,
    }
