"""The best epoch, early stopping, and checkpoints to keep: `trainer.monitor`, `patience`, `keep` (O8-O10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dlrun.config.settings import Trainer
from dlrun.folders.run import Run
from dlrun.training.checkpoint import State
from dlrun.vocabulary import lower_is_better, place

__all__ = ["advance", "best_weights", "better", "remember", "stopped_early"]


def advance(state: State, row: Mapping[str, Any], monitor: str) -> bool:
    """Add the epoch to the state, and return whether it is the best so far."""
    state.epoch = row["epoch"]
    score = best_weights(row, monitor)
    is_best = better(score, state.best, monitor)
    if is_best:
        state.best = {"epoch": state.epoch, "value": score[monitor], "val_loss": score.get("val_loss")}
    return is_best


def best_weights(row: Mapping[str, Any], monitor: str) -> Mapping[str, Any]:
    """Return the row with the scores of the raw weights or of their average, whichever the monitor prefers (O10)."""
    if f"ema_{monitor}" not in row:
        return row
    averaged = {**row, monitor: row[f"ema_{monitor}"], "val_loss": row["ema_val_loss"], "weights": "ema"}
    raw = {"value": row[monitor], "val_loss": row["val_loss"]}
    return averaged if better(averaged, raw, monitor) else row


def better(row: Mapping[str, Any], best: Mapping[str, Any] | None, monitor: str) -> bool:
    """Return whether a later epoch is better than the best so far, by the rule of `vocabulary.place`.

    An epoch without a value, such as the share of dead units in a network whose units cannot die, is never better.
    """
    if best is None:
        return True
    lower = lower_is_better(monitor)
    # an earlier epoch has the lower number
    candidate, holder = ((row[monitor], row.get("val_loss"), 1), (best["value"], best["val_loss"], 0))
    return place(*candidate, lower=lower) < place(*holder, lower=lower)


def stopped_early(state: State, trainer: Trainer, history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the last trainer.patience epochs brought no improvement (O8); never with patience 0.

    With trainer.while_gap_shrinks the mean of val_loss - train_loss over these epochs must also be no smaller than over
    as many epochs before them (O9). history has the rows of metrics.csv, as text or numbers.
    """
    patience = trainer.patience
    if not patience or not state.best or state.epoch - int(state.best["epoch"]) < patience:
        return False
    if not trainer.while_gap_shrinks:
        return True
    gaps = [float(row["val_loss"]) - float(row["train_loss"]) for row in history[-2 * patience :]]
    return fmean(gaps[-patience:]) >= fmean(gaps[:-patience])


def remember(state: State, run: Run, history: Sequence[Mapping[str, Any]], trainer: Trainer) -> tuple[str, set[str]]:
    """Return the name of the checkpoint of the newest epoch, "" if it is not kept, and those of other epochs to delete.

    The state decides, which the checkpoint stores: metrics.csv may have been edited, or be lost. With trainer.keep=all
    nothing is deleted. What is deleted stays in the state for an epoch, since a kill may come before it is gone.
    """
    monitor = trainer.monitor
    if trainer.keep not in ("top3", "all"):
        return "", set()
    newest = history[-1]
    name = run.epoch_checkpoint(newest, monitor)
    if trainer.keep == "all":
        return name, set()
    if state.files is None:  # of a checkpoint that an older version wrote
        state.files = []
        for row in history[:-1]:
            _ranked(state.files, run, row, monitor)
        del state.files[3:]
    gone = [file["name"] for file in state.files[3:]]
    _ranked(state.files, run, newest, monitor)
    best, rest = state.files[:3], state.files[3:]
    state.files = best + [file for file in rest if file["name"] not in gone]
    return name if any(file["name"] == name for file in best) else "", {file["name"] for file in rest}


def _ranked(files: list[dict[str, Any]], run: Run, text: Mapping[str, Any], monitor: str) -> None:
    """Insert the checkpoint of an epoch into those of earlier epochs, best first."""
    row = {c: float(text[c]) if text.get(c) not in ("", None) else None for c in ("epoch", monitor, "val_loss")}
    place = next((i for i, other in enumerate(files) if better(row, other, monitor)), len(files))
    name = run.epoch_checkpoint(row, monitor)
    files.insert(place, {"name": name, "value": row[monitor], "val_loss": row["val_loss"]})
