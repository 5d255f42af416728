"""Weights near 0, of a run with L1 or a pruned one (`dlrun train regularizer=l1`, `dlrun prune RUN`, R4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.folders import reading

if TYPE_CHECKING:
    from dlrun.training.experiment import Experiment

__all__ = ["judged", "shares"]


def shares(exp: Experiment) -> dict[str, Any]:
    """Return what result.json records: the share of all weights, and by layer."""
    from dlrun.training.diagnostics import sparsity

    every, by_layer = sparsity(exp.model)
    return {"sparsity": every, "sparsity_by_layer": by_layer}


def judged(exp: Experiment, source: str, ending: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shares of a pruned model, and a verdict if validation lost accuracy against the run it was made of."""
    from dlrun.analysis import fitting  # late, since it slows the start of every run

    made = shares(exp)
    before = reading.stored(Path(source)).get("val_acc")
    lost = fitting.lost(before, ending.get("val_acc"), len(exp.data.val), made["sparsity"])
    return made | {"verdicts": [lost.record()] if lost else []}
