"""Scores of a classifier from labels and predictions, equal to scikit-learn's, and intervals of them (D6, S9).

Balanced accuracy, F1, kappa … of every epoch of `dlrun train` (`trainer.monitor=val_macro_f1`), and all of them in
result.json, in `per_class.csv`, in the table of `dlrun ensemble` and in `dlrun evaluate`. Numpy alone.

If scikit-learn has no value or warns: a class without an image in labels and predictions counts in no mean; precision
and recall of 0 / 0 are 0; kappa is None if labels and predictions are all of one class, where Matthews correlation is
0; the area under the ROC curve is the mean over the classes that have images and are not all of them, None if there is
none; top-5 accuracy is 1 with five classes or fewer. Without an image every score is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Counts", "agreement", "auc", "bootstrap", "by_class", "calibration", "confusion", "count", "ece"]
__all__ += ["interval", "interval_of_mean", "measures", "per_class", "top"]

RESAMPLES, SEED = 1000, 0  # the same for every run, so that a repeated run has the same interval
BINS = 15  # of the calibration error (Guo et al. 2017)


class Counts(NamedTuple):
    """Images per class (K,): those of the class that are predicted right, those of the class, those predicted as it.

    With a leading axis (R, K), counts of R resamples.
    """

    right: Array
    true: Array
    predicted: Array


def count(labels: Array, predicted: Array, classes: int) -> Counts:
    """Return the counts of labels (N,) and predicted classes (N,)."""
    labels = labels.astype(np.int64)  # stored ones may be of 8 bits
    right = np.bincount(labels[labels == predicted], minlength=classes)
    return Counts(right, np.bincount(labels, minlength=classes), np.bincount(predicted, minlength=classes))


def confusion(labels: Array, predicted: Array, classes: int) -> Array:
    """Return the number of images by true and predicted class (K, K)."""
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def agreement(counts: Counts) -> dict[str, float | None]:
    """Return the scores that follow from the counts: cheap enough for every epoch."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = _agreement(counts)
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


def _agreement(counts: Counts) -> dict[str, Any]:
    """The scores, of resamples (R,) each; nan if one is undefined."""
    right, true, predicted = (part.astype(np.float64) for part in counts)
    total, hits = true.sum(-1), right.sum(-1)
    precision, recall, f1 = _ratios(right, true, predicted)
    there = np.maximum((true + predicted > 0).sum(-1), 1)
    chance, t, p = (true * predicted).sum(-1), (true * true).sum(-1), (predicted * predicted).sum(-1)
    spread = (total * total - t) * (total * total - p)
    # Gorodkin 2004, Computational Biology and Chemistry 28: R_K
    mcc = np.where(spread > 0, (hits * total - chance) / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)
    found = {
        "balanced_acc": recall.sum(-1) / np.maximum((true > 0).sum(-1), 1),
        "macro_f1": f1.sum(-1) / there,
        "kappa": (hits * total - chance) / (total * total - chance),
        "weighted_f1": (f1 * true).sum(-1) / np.maximum(total, 1),
        "macro_precision": precision.sum(-1) / there,
        "macro_recall": recall.sum(-1) / there,
        "mcc": mcc,
        "acc": hits / np.maximum(total, 1),
    }
    return {name: np.where(total > 0, value, np.nan) for name, value in found.items()}


def _ratios(right: Array, true: Array, predicted: Array) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of each class; 0 / 0 is 0."""
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(true, 1)
    return precision, recall, 2 * right / np.maximum(true + predicted, 1)


def measures(scores: Array, probabilities: Array, labels: Array, predicted: Array) -> dict[str, float | None]:
    """Return all scores: those of `agreement` but accuracy, top-5 accuracy, area under the ROC curve, and `ece`.

    `scores` (N, K) order the classes of an image, such as logits; probabilities (N, K), labels (N,), predicted (N,).
    """
    found = agreement(count(labels, predicted, scores.shape[1]))
    del found["acc"]
    if not len(labels):
        return found | dict.fromkeys(("top5_acc", "auc", "ece"))
    confidence = probabilities[np.arange(len(labels)), predicted]
    return found | {
        "top5_acc": top(scores, labels, 5),
        "auc": auc(probabilities, labels),
        "ece": ece(confidence, predicted == labels),
    }


def top(scores: Array, labels: Array, most: int) -> float:
    """Return the share of images whose class is among the `most` highest of scores (N, K).

    Of equal scores the last class is the higher one, as in scikit-learn's top_k_accuracy_score.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    later = np.arange(scores.shape[1]) > labels[:, None]
    return float((((scores > own) | ((scores == own) & later)).sum(1) < most).mean())


def auc(probabilities: Array, labels: Array) -> float | None:
    """Return the area under the ROC curve, one class against the rest, averaged over classes; None if undefined.

    By the ranks of the images (Mann and Whitney 1947), equal ones sharing theirs.
    """
    classes = probabilities.shape[1]
    areas = []
    for k in (1,) if classes == 2 else range(classes):  # of two classes both areas are the same
        own = labels == k
        positive, total = int(own.sum()), len(labels)
        if 0 < positive < total:
            values, order = np.unique(probabilities[:, k], return_inverse=True)
            each = np.bincount(order, minlength=len(values))
            ranks = np.cumsum(each) - (each - 1) / 2
            low = positive * (positive + 1) / 2
            areas.append((ranks[order[own]].sum() - low) / (positive * (total - positive)))
    return float(np.mean(areas)) if areas else None


def ece(confidence: Array, right: Array) -> float:
    """Return the expected calibration error of confidences (N,) and whether each image is right (N,).

    The mean over images of |accuracy - confidence| of their bin, of 15 equal bins: Guo et al. 2017, On Calibration of
    Modern Neural Networks, equation 3.
    """
    gaps = np.bincount(_bins(confidence), right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def calibration(confidence: Array, right: Array) -> dict[str, Array]:
    """Return the calibration curve, one value per bin (15,): `n` images, their mean `confidence`, their `accuracy`.

    Both are nan in a bin without images.
    """
    at = _bins(confidence)
    n = np.bincount(at, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(at, confidence, minlength=BINS) / n
        share = np.bincount(at, right.astype(float), minlength=BINS) / n
    return {"n": n, "confidence": mean, "accuracy": share}


def _bins(confidence: Array) -> Array:
    found: Array = np.ceil(confidence * BINS).astype(int) - 1  # (0, 1/15], (1/15, 2/15] …
    return np.clip(found, 0, BINS - 1)


def per_class(counts: Counts, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per class: its name, number of images `n`, precision, recall and F1."""
    columns = _ratios(*counts)
    return [
        {"class": name, "n": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
        for name, n, p, r, f in zip(names, counts.true, *columns, strict=True)
    ]


def by_class(found: Mapping[str, tuple[Array, Array]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of per_class.csv: those of `per_class` for labels and predicted classes of each split."""
    rows: list[dict[str, Any]] = [{"class": name} for name in names]
    for split, (labels, predicted) in found.items():
        for row, one in zip(rows, per_class(count(labels, predicted, len(names)), names), strict=True):
            row |= {f"{split}_{name}": value for name, value in one.items() if name != "class"}
    return rows


def bootstrap(
    labels: Array, predicted: Array, classes: int, names: Sequence[str], split: str = "test"
) -> dict[str, Any]:
    """Return `bootstrap` of result.json: how the intervals were made, and that of each score, as `interval` does."""
    ends = interval(labels, predicted, classes, names)
    about = {"level": 0.95, "method": "percentile", "resamples": RESAMPLES, "seed": SEED}
    return about | {f"{split}_{name}": list(pair) for name, pair in ends.items()}


def interval(labels: Array, predicted: Array, classes: int, names: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """Return the 95 % bootstrap interval of scores by name, of those that `agreement` has.

    Percentiles of the scores of 1,000 draws of the images with replacement (Efron 1979, Annals of Statistics 7).
    How often each pair of true and predicted class is drawn is multinomial, so no image is drawn one by one.
    """
    pairs, found = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    true, chosen = np.divmod(pairs, classes)
    drawn = np.random.default_rng(SEED).multinomial(len(labels), found / len(labels), size=RESAMPLES)
    parts = [drawn[:, true == chosen], drawn, drawn]
    at = [true[true == chosen], true, chosen]
    counts = Counts(*(_summed(part, places, classes) for part, places in zip(parts, at, strict=True)))
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = _agreement(counts)
    ends = {name: np.nanquantile(scores[name], (0.025, 0.975)) for name in names if np.isfinite(scores[name]).any()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def interval_of_mean(values: Array) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of one value per image (N,), as `interval` draws them."""
    draw, count = np.random.default_rng(SEED), len(values)
    means = [float(values[draw.integers(0, count, count)].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _summed(drawn: Array, places: Array, classes: int) -> Array:
    """Numbers drawn (R, P) added up by class (R, K)."""
    total = np.zeros((len(drawn), classes), dtype=np.int64)
    for column, place in enumerate(places.tolist()):
        total[:, place] += drawn[:, column]
    return total
