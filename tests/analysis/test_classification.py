"""Scores of a classifier equal scikit-learn's, on random, imbalanced and degenerate predictions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics

from dlrun.analysis import classification as ours

SKLEARN = {
    "balanced_acc": metrics.balanced_accuracy_score,
    "macro_f1": lambda y, p: metrics.f1_score(y, p, average="macro", zero_division=0),
    "weighted_f1": lambda y, p: metrics.f1_score(y, p, average="weighted", zero_division=0),
    "macro_precision": lambda y, p: metrics.precision_score(y, p, average="macro", zero_division=0),
    "macro_recall": lambda y, p: metrics.recall_score(y, p, average="macro", zero_division=0),
    "kappa": metrics.cohen_kappa_score,
    "mcc": metrics.matthews_corrcoef,
    "acc": metrics.accuracy_score,
}


def case(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels (N,), predicted classes (N,) and the number of classes."""
    draw = np.random.default_rng(len(name))
    y = draw.integers(0, 7, 300)
    p = np.where(draw.random(300) < 0.6, y, draw.integers(0, 7, 300))
    if name == "imbalanced":
        y = draw.choice(7, 300, p=[0.8, 0.1, 0.04, 0.03, 0.01, 0.01, 0.01])
        p = np.where(draw.random(300) < 0.7, y, 0)
    elif name == "two classes":
        return y % 2, p % 2, 2
    elif name == "absent in labels":
        y = y % 3
    elif name == "absent in predictions":
        p = p % 3
    elif name == "absent in both":
        return y, p, 50
    elif name == "all wrong":
        p = (y + 1) % 7
    elif name == "all right":
        p = y
    elif name == "one class predicted":
        p = np.full(300, 2)
    elif name == "one label":
        y = np.full(300, 2)
    elif name == "one of each":
        y, p = np.full(300, 2), np.full(300, 3)
    elif name == "one image":
        y, p = y[:1], p[:1] * 0 + (y[:1] + 1) % 7
    return y, p, 7


CASES = ["random", "imbalanced", "two classes", "absent in labels", "absent in predictions", "absent in both"]
CASES += ["all wrong", "all right", "one class predicted", "one label", "one of each", "one image"]


@pytest.mark.parametrize("name", CASES)
def test_scores_of_counts_equal_those_of_sklearn(name: str) -> None:
    y, p, classes = case(name)
    found = ours.agreement(ours.count(y, p, classes))
    assert found.keys() == SKLEARN.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {score: function(y, p) for score, function in SKLEARN.items()}
    assert {k: v for k, v in found.items() if v is not None} == pytest.approx(expected, abs=1e-12)
    assert (ours.confusion(y, p, classes) == metrics.confusion_matrix(y, p, labels=range(classes))).all()


def test_what_sklearn_leaves_undefined_is_none() -> None:
    same = np.full(5, 2)
    found = ours.agreement(ours.count(same, same, 4))
    assert (found["kappa"], found["mcc"], found["macro_f1"], found["acc"]) == (None, 0.0, 1.0, 1.0)
    empty = np.zeros(0, int)
    none = ours.measures(np.zeros((0, 3)), np.zeros((0, 3)), empty, empty)
    assert set(none.values()) == {None}
    assert ours.auc(np.full((5, 4), 0.25), same) is None


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_auc_and_top_5_equal_those_of_sklearn(classes: int, tied: bool) -> None:
    draw = np.random.default_rng(classes)
    y = np.concatenate([np.arange(classes), draw.integers(0, classes, 200)])
    z = draw.normal(size=(len(y), classes)) + np.eye(classes)[y]
    z = np.round(z) if tied else z
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p = np.round(p, 12)  # so that equal values stay equal
    score = p[:, 1] if classes == 2 else p / p.sum(1, keepdims=True)
    score = np.round(score, 9) if tied and classes == 2 else score
    shares = np.stack([1 - score, score], 1) if classes == 2 else score
    assert ours.auc(shares, y) == pytest.approx(metrics.roc_auc_score(y, score, multi_class="ovr"), abs=1e-12)
    if classes > 5:
        assert ours.top(z, y, 5) == metrics.top_k_accuracy_score(y, z, k=5, labels=range(classes))
        assert ours.top(z, y, 1) == metrics.top_k_accuracy_score(y, z, k=1, labels=range(classes))
    else:
        assert ours.top(z, y, 5) == 1.0


def test_auc_is_over_the_classes_that_are_there() -> None:
    y, draw = np.array([0, 1, 0, 1, 1, 0]), np.random.default_rng(0)
    p = draw.dirichlet(np.ones(4), 6)
    each = [metrics.roc_auc_score(y == k, p[:, k]) for k in (0, 1)]
    assert ours.auc(p, y) == pytest.approx(np.mean(each))


def test_per_class_equals_the_report_of_sklearn() -> None:
    y, p, _ = case("imbalanced")
    rows = ours.per_class(ours.count(y, p, 8), [f"c{k}" for k in range(8)])
    expected = metrics.precision_recall_fscore_support(y, p, labels=range(8), zero_division=0)
    assert [row["class"] for row in rows] == [f"c{k}" for k in range(8)]
    for column, values in zip(("precision", "recall", "f1", "n"), expected, strict=True):
        assert [row[column] for row in rows] == pytest.approx(list(values))


def test_an_interval_is_that_of_images_drawn_one_by_one() -> None:
    y, p, classes = case("imbalanced")
    found = ours.interval(y, p, classes, ("acc", "macro_f1"))
    assert found == ours.interval(y, p, classes, ("acc", "macro_f1"))
    draw, drawn = np.random.default_rng(5), {"acc": [], "macro_f1": []}
    for _ in range(1000):
        rows = draw.integers(0, len(y), len(y))
        one = ours.agreement(ours.count(y[rows], p[rows], classes))
        for name, values in drawn.items():
            values.append(one[name])
    for name, values in drawn.items():
        assert found[name] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.015)
        assert found[name][0] < SKLEARN[name](y, p) < found[name][1]


def test_a_calibration_curve_has_the_error_of_its_bins() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.2, 1, 500)
    right = draw.random(500) < confidence**2
    curve = ours.calibration(confidence, right)
    there = curve["n"] > 0
    error = (curve["n"] * np.abs(curve["accuracy"] - curve["confidence"]))[there].sum() / 500
    assert ours.ece(confidence, right) == pytest.approx(error)
    assert np.isnan(curve["accuracy"][~there]).all()


def test_an_interval_of_a_mean_is_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).exponential(size=900)
    low, high = ours.interval_of_mean(values)
    error = 1.96 * values.std() / 30
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.15 * error)
