"""Which epoch is best, when to stop, and which checkpoints stay (O8-O10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dlrun.config.settings import Trainer
from dlrun.folders.run import Run
from dlrun.training.checkpoint import State
from dlrun.vocabulary import lower_is_better

__all__ = ["advance", "best_weights", "better", "kept", "stopped_early"]


def advance(state: State, row: Mapping[str, Any], monitor: str) -> bool:
    """Count the epoch, and say whether it is the best so far."""
    state.epoch = row["epoch"]
    score = best_weights(row, monitor)
    is_best = better(score, state.best, monitor)
    if is_best:
        state.best = {"epoch": state.epoch, "value": score[monitor], "val_loss": score["val_loss"]}
    return is_best


def best_weights(row: Mapping[str, Any], monitor: str) -> Mapping[str, Any]:
    """Return the row with the scores of the better weights by the monitor: the raw ones or their average (O10)."""
    if f"ema_{monitor}" not in row:
        return row
    averaged = {**row, monitor: row[f"ema_{monitor}"], "val_loss": row["ema_val_loss"], "weights": "ema"}
    raw = {"value": row[monitor], "val_loss": row["val_loss"]}
    return averaged if better(averaged, raw, monitor) else row


def better(row: Mapping[str, Any], best: Mapping[str, Any] | None, monitor: str) -> bool:
    """Say whether an epoch beats the best so far; among equal scores, common on small folds, the lower loss does.

    An epoch in which nothing could be measured, such as dead units of a network without any, beats none.
    """
    if best is None or row[monitor] is None:
        return best is None
    if best["value"] is None:
        return True
    gain = float(row[monitor] - best["value"])
    if lower_is_better(monitor):
        gain = -gain
    return gain > 0 or (gain == 0 and row["val_loss"] < best["val_loss"])


def stopped_early(state: State, trainer: Trainer, history: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the best epoch lies trainer.patience epochs back (O8); never with patience 0.

    With trainer.while_gap_shrinks that is not enough: val_loss - train_loss, its mean over as many epochs, must no
    longer be smaller than over those before (O9). history has the rows of metrics.csv, as text or numbers.
    """
    patience = trainer.patience
    if not patience or not state.best or state.epoch - int(state.best["epoch"]) < patience:
        return False
    if not trainer.while_gap_shrinks:
        return True
    gaps = [float(row["val_loss"]) - float(row["train_loss"]) for row in history[-2 * patience :]]
    return fmean(gaps[-patience:]) >= fmean(gaps[:-patience])


def kept(run: Run, history: Sequence[Mapping[str, Any]], trainer: Trainer) -> set[str]:
    """The names of the checkpoints that stay, drawn from the rows so far: a resumed run keeps the same ones."""
    keep, monitor = trainer.keep, trainer.monitor
    if keep not in ("top3", "all"):
        return set()
    ranked: list[Any] = []
    for text in history:
        row = {c: float(text[c]) if text[c] not in ("", None) else None for c in ("epoch", monitor, "val_loss")}
        score = {"value": row[monitor], "val_loss": row["val_loss"]}
        place = next((i for i, (_, other) in enumerate(ranked) if better(row, other, monitor)), len(ranked))
        ranked.insert(place, (run.epoch_checkpoint(row, monitor), score))
    return {name for name, _ in (ranked if keep == "all" else ranked[:3])}
