"""Images whose labels may be wrong, from predictions of models that were not trained on them (`dlrun suspects`, D2).

Confident learning (Northcutt, Jiang and Chuang 2021, Journal of Artificial Intelligence Research 70), as the package
cleanlab implements it. Nothing here imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["COLUMNS", "suspects"]

# as many images as the confident joint has off its diagonal, those with the lowest probability of their label: with 5 %
# of the labels of scenes swapped, the most precise of cleanlab's rules (tests/benchmarks/bench_suspects.py)
FILTER = "low_self_confidence"
COLUMNS = ("rank", "id", "label", "suggested", "score", "probability")


def suspects(probabilities: Array, labels: Array, ids: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row of suspects.csv per image whose label may be wrong, the most suspicious first.

    `probabilities` (N, K) are out of sample; `labels` (N,) are class numbers. How many images are suspects follows from
    the confident joint: the images whose probability of another class is above the mean of that class. `suggested` is
    the most probable other class, `probability` is its own, and `score` that of the label: 0 is surely wrong.
    """
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few images, whose labels it leaves as they are
        found = find_label_issues(
            labels, probabilities, filter_by=FILTER, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    rows = []
    for rank, k in enumerate(found.tolist(), 1):
        label = int(labels[k])
        other = int(np.where(np.arange(len(classes)) == label, -1.0, probabilities[k]).argmax())
        numbers = {"score": probabilities[k, label], "probability": probabilities[k, other]}
        about = {"rank": rank, "id": str(ids[k]), "label": classes[label], "suggested": classes[other]}
        rows.append(about | {name: f"{value:.6g}" for name, value in numbers.items()})
    return rows
