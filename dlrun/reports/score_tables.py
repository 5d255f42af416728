"""The scores of a model as a table of a page: validation beside test, with intervals (`dlrun report`, S9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.reports.page import table
from dlrun.vocabulary import MEASURES

__all__ = ["as_lines", "by_target", "scores_table"]

# what a score is called on a page
NAMES = {
    "acc": "accuracy",
    "balanced_acc": "balanced accuracy",
    "macro_f1": "F1, mean over classes",
    "weighted_f1": "F1, weighted by images",
    "macro_precision": "precision, mean over classes",
    "macro_recall": "recall, mean over classes",
    "kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
    "top5_acc": "accuracy, best of five",
    "auc": "area under the ROC curve",
    "ece": "calibration error",
}
INTERVAL = "95 % interval"
SPLITS = {"val": "validation", "test": "test"}


def scores_table(result: Mapping[str, Any], splits: Mapping[str, str] = SPLITS) -> str:
    """Return the scores that a result has; empty for an older run, whose page shows accuracy and loss alone."""
    return table(_rows(result, splits))


def by_target(result: Mapping[str, Any]) -> str:
    """Return the scores of each of several targets; empty for a run with one (M11)."""
    found = result.get("tasks")
    shown = ("acc", "balanced_acc", "macro_f1", "auc", "ece")
    rows = [
        {"target": name}
        | {
            f"{SPLITS[s]} {NAMES[key]}": _number(one.get(f"{s}_{key}"))
            for s in SPLITS
            for key in shown
            if f"{s}_acc" in one
        }
        for name, one in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(one, Mapping)
    ]
    return table(rows)


def as_lines(result: Mapping[str, Any]) -> str:
    """Return the scores of an evaluation for reading: name, value and interval, one line per score."""
    rows = [row for row in _rows(result, {"test": "value"}) if row["value"]]
    width = max(len(row["score"]) for row in rows)
    lines = [f"  {row['score']:<{width}}  {row['value']}  {row[INTERVAL]}".rstrip() for row in rows]
    loss = _number(result.get("test_loss"))
    return "\n".join([f"  {'':<{width}}  value   {INTERVAL}", *lines, f"  {'log loss':<{width}}  {loss}"])


def _rows(result: Mapping[str, Any], splits: Mapping[str, str]) -> list[dict[str, str]]:
    found = result.get("bootstrap")
    intervals = found if isinstance(found, Mapping) else {}
    splits = {split: name for split, name in splits.items() if f"{split}_kappa" in result}
    rows = []
    for score in ("acc", *MEASURES) if splits else ():
        row = {"score": NAMES[score], "column": score}
        row |= {name: _number(result.get(f"{split}_{score}")) for split, name in splits.items()}
        row[INTERVAL if len(splits) == 1 else f"{INTERVAL} of test"] = _interval(intervals.get(f"test_{score}"))
        rows.append(row)
    return rows


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def _interval(ends: Any) -> str:
    fits = isinstance(ends, (list, tuple)) and len(ends) == 2 and all(isinstance(end, float) for end in ends)
    return f"{ends[0]:.4f} to {ends[1]:.4f}" if fits else ""
