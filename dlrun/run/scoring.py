"""All scores of a finished run, those of each class, and the interval of its test scores (end of `dlrun train`, S9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from dlrun.analysis.classification import bootstrap, by_class, interval_of_mean, measures
from dlrun.data import Data
from dlrun.folders.run import Run
from dlrun.training import tasks
from dlrun.training.experiment import Experiment
from dlrun.training.loop import Predictions
from dlrun.vocabulary import PER_EPOCH

__all__ = ["arrays_of", "further"]

MOST = 20_000  # test images whose losses are computed one by one, at 40 microseconds each


def arrays_of(data: Data, found: Predictions) -> dict[str, Any]:
    """Return the logits (N, K) and labels (N,) that predictions.npz has of a split.

    Of several tasks it has `targets` (N, T), class numbers, and no labels: who reads one label per image finds none.
    """
    if data.tasks is None:
        return {"logits": found.logits.numpy(), "labels": found.labels.numpy()}
    return {"logits": found.logits.numpy(), "targets": data.tasks.columns(found.labels).numpy()}


def further(exp: Experiment, run: Run, found: Mapping[str, Predictions]) -> dict[str, Any]:
    """Write per_class.csv of predictions on `val` and `test`, and return all scores but loss and accuracy.

    The intervals are of the test accuracy and of the test score that trainer.monitor names; of a loss if it is a mean
    over images, which it is not with weights of classes.
    """
    if exp.data.tasks is not None:
        scores, rows = tasks.further(exp.data.tasks, found)
        run.write_per_class(rows)
        return scores
    scores = {}
    answers = {s: (labels.numpy(), logits.argmax(1).numpy()) for s, (logits, labels) in found.items()}
    for split, (logits, _) in found.items():
        p = logits.double().softmax(1).numpy()
        scores |= {f"{split}_{name}": value for name, value in measures(logits.numpy(), p, *answers[split]).items()}
    run.write_per_class(by_class(answers, exp.data.classes))
    monitored = exp.cfg.trainer.monitor.removeprefix("val_")
    names = ("acc", *(name for name in PER_EPOCH if name == monitored))
    intervals = bootstrap(*answers["test"], len(exp.data.classes), names)
    if monitored == "loss" and len(answers["test"][0]) <= MOST:
        intervals |= _of_loss(exp, found["test"])
    return scores | {"bootstrap": intervals}


def _of_loss(exp: Experiment, test: Predictions) -> dict[str, list[float]]:
    """The interval of test_loss; nothing if the loss of all images is not the mean of those of each."""
    pairs = zip(*(torch.split(part.to(exp.device), 1) for part in test), strict=True)
    each = torch.stack([exp.loss(logits, labels) for logits, labels in pairs]).cpu().double().numpy()
    whole = float(exp.loss(test.logits.to(exp.device), test.labels.to(exp.device)))
    same = math.isclose(whole, float(each.mean()), rel_tol=1e-4)
    return {"test_loss": [*interval_of_mean(each)]} if same else {}
