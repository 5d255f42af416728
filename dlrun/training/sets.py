"""Scores of sets of classes: average precision, and F1 at thresholds chosen on validation alone (M11).

`dlrun train dataset=table dataset.multilabel=true loss=bce`: `val_map` is a column of metrics.csv; result.json has
`test_map`, `test_tuned_f1` and the `thresholds`. `val_acc` is the mean over classes of the share of right answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrun.data.tasks import Tasks

__all__ = ["HALF", "average_precision", "f1", "further", "scores", "threshold"]

HALF = 0.5  # the threshold of a class that validation says nothing of
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def average_precision(p: Floats, there: Bools) -> float | None:
    """Return Σ (R_n - R_n-1) P_n over falling thresholds n, of precision P and recall R; None without a positive.

    `p` (N,) orders the images, `there` (N,) says which have the class. Equal values are one threshold, as in
    scikit-learn's average_precision_score.
    """
    if not there.any():
        return None
    order = np.argsort(-p, kind="stable")
    hits, last = np.cumsum(there[order]), np.append(np.diff(p[order]) != 0, True)
    precision, recall = hits[last] / (np.flatnonzero(last) + 1), hits[last] / there.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def f1(p: Floats, there: Bools, limit: float) -> float:
    """Return F1 of the images whose p (N,) is at least the limit; 0 / 0 is 0."""
    chosen = p >= limit
    return float(2 * (chosen & there).sum() / max(1, chosen.sum() + there.sum()))


def threshold(p: Floats, there: Bools) -> float:
    """Return the threshold with the highest F1 on images with p (N,): 0.5, or the middle between two values of p.

    Among equal ones that next to 0.5, which is also that of a class without a positive.
    """
    if not there.any():
        return HALF
    values, number = np.unique(p, return_inverse=True)
    hits = np.bincount(number, there, len(values))[::-1].cumsum()[::-1]  # with at least this value
    chosen = np.bincount(number, minlength=len(values))[::-1].cumsum()[::-1]
    below = np.append(0.0, values[:-1])
    limits = np.where((below < HALF) & (values >= HALF), HALF, (below + values) / 2)
    found = np.round(2 * hits / (chosen + there.sum()), 12)
    return float(limits[np.lexsort((np.abs(limits - HALF), -found))[0]])


def _by_class(tasks: Tasks, logits: Any, labels: Any) -> list[tuple[Floats, Bools]]:
    """Probabilities (N,) and whether the image has the class (N,), for each class."""
    p, there = logits.double().sigmoid().numpy(), tasks.columns(labels).numpy().astype(bool)
    return [*zip(p.T, there.T, strict=True)]


def scores(tasks: Tasks, logits: Any, labels: Any, split: str) -> dict[str, Any]:
    """Return the mean average precision of a split and the mean F1 of the classes at 0.5, of logits (N, C)."""
    each = _by_class(tasks, logits, labels)
    return {f"{split}_map": _map(each), f"{split}_macro_f1": fmean(f1(*one, HALF) for one in each)}


def _map(each: Sequence[tuple[Floats, Bools]]) -> float | None:
    """The mean over the classes that have a positive."""
    known = [value for one in each if (value := average_precision(*one)) is not None]
    return fmean(known) if known else None


def further(
    tasks: Tasks,
    found: Mapping[str, tuple[Any, Any]],
    each: dict[str, dict[str, Any]],
    thresholds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return mAP, F1 at 0.5 and at the thresholds by split, and the thresholds; add those of a class to `each`.

    Without thresholds they are chosen on `val`; without that they are 0.5.
    """
    splits = {split: _by_class(tasks, *pair) for split, pair in found.items()}
    if thresholds is None:
        thresholds = [threshold(*one) for one in splits["val"]] if "val" in splits else [HALF] * len(tasks.names)
    made: dict[str, Any] = {"thresholds": dict(zip(tasks.names, thresholds, strict=True))}
    for split, classes in splits.items():
        tuned = [f1(*one, limit) for one, limit in zip(classes, thresholds, strict=True)]
        made |= scores(tasks, *found[split], split) | {f"{split}_tuned_f1": fmean(tuned)}
        for name, one, value in zip(tasks.names, classes, tuned, strict=True):
            each[name] |= {f"{split}_ap": average_precision(*one), f"{split}_macro_f1": f1(*one, HALF)}
            each[name][f"{split}_tuned_f1"] = value
    return made
