"""Completed runs with made-up logits, for ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from support.stored import write_run

DATA = {"classes": ["ant", "bee", "cow"], "shape": [8, 8, 1], "mean": [4.0], "std": [2.0]}
DATA |= {"decoding": {"resize": "crop", "interpolation": "bilinear"}}


def member(path: Path, seed: int, skill: float = 1.0, count: int = 60, **changes: Any) -> Path:
    """A completed run whose logits are noise around the labels, the same labels for all."""
    labels, draw = np.random.default_rng(9).integers(0, 3, count), np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for split in ("val", "test"):
        z = draw.normal(size=(count, 3)) + skill * 2 * np.eye(3)[labels]
        ids = np.array([f"{split}/{k}" for k in range(count)])
        arrays |= {f"{split}_logits": z.astype(np.float32), f"{split}_labels": labels, f"{split}_ids": ids}
    changed = {k: v for k, v in changes.items() if k in arrays}
    write_run(path, status="completed", parameters=1000, data=DATA | {k: v for k, v in changes.items() if k in DATA})
    (path / "metrics.csv").write_text("epoch,eval_seconds\n1,0.3\n2,0.12\n3,0.06\n")
    np.savez(path / "predictions.npz", **(arrays | changed))
    return path
