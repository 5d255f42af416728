"""Scores of a model with several targets on labelled images (`dlrun evaluate RUN`, M11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.analysis import classification
from dlrun.data.tasks import Tasks
from dlrun.training.sets import HALF
from dlrun.training.tasks import further

if TYPE_CHECKING:
    from dlrun.inference.evaluate import Evaluation

__all__ = ["result", "right", "tables"]

TINY = 1e-12  # as in ensembles/votes.py


def result(made: Evaluation, tasks: Tasks) -> dict[str, Any]:
    """Return the scores of each task, their means, and the interval of the mean accuracy.

    The loss is the cross-entropy in nats, and of all tasks the sum, the log loss of all labels of an image.
    """
    labels = torch.from_numpy(made.labels)
    found, _ = further(tasks, {"test": (torch.from_numpy(made.logits), labels)}, made.thresholds)
    sure = np.concatenate([_of_labels(made, tasks, number)[:, None] for number in range(len(tasks.names))], 1)
    losses = -np.log(np.maximum(sure, TINY)).mean(0)
    for one, loss in zip(found["tasks"].values(), losses.tolist(), strict=True):
        one["test_loss"] = loss
    return {"test_acc": float(right(made, tasks).mean()), "test_loss": float(losses.sum())} | found


def right(made: Evaluation, tasks: Tasks) -> NDArray[np.bool_]:
    """Return whether the class of each task is right (N, T); of sets with 0.5 as the threshold, as in training."""
    chosen = made.vote.probabilities > HALF if tasks.sets else made.vote.classes
    found: NDArray[np.bool_] = chosen == tasks.columns(torch.from_numpy(made.labels)).numpy()
    return found


def tables(made: Evaluation, tasks: Tasks) -> tuple[list[dict[str, Any]], NDArray[Any], NDArray[Any]]:
    """Return the rows of per_class.csv, and for each image and task the confidence and whether it is right (N·T,)."""
    columns, rows = tasks.columns(torch.from_numpy(made.labels)).numpy(), list[dict[str, Any]]()
    for number, (name, classes) in enumerate(zip(tasks.names, tasks.classes, strict=True)):
        counts = classification.count(columns[:, number], made.vote.classes[:, number], len(classes))
        if tasks.sets:
            rows += classification.per_class(counts, [name] * 2)[1:]
        else:
            rows += classification.per_class(counts, [f"{name}={one}" for one in classes])
    sure = [part.max(1) for part in _parts(made, tasks)]
    return rows, np.concatenate(sure), right(made, tasks).T.reshape(-1)


def _parts(made: Evaluation, tasks: Tasks) -> list[NDArray[Any]]:
    """The probabilities (N, K_t) of each task."""
    if tasks.sets:
        return [np.stack([1 - p, p], 1) for p in made.vote.probabilities.T]
    return np.split(made.vote.probabilities, np.cumsum(tasks.sizes)[:-1], axis=1)


def _of_labels(made: Evaluation, tasks: Tasks, number: int) -> NDArray[Any]:
    """The probability of each image's label of a task (N,)."""
    column = tasks.columns(torch.from_numpy(made.labels))[:, number].numpy()
    found: NDArray[Any] = _parts(made, tasks)[number][np.arange(len(column)), column]
    return found
