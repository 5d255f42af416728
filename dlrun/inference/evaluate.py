"""A model on labelled images: logits, all scores, those of each class, calibration (`dlrun evaluate RUN photos/`, S9).

The batches are those of the evaluations in training: on the run's own test images the logits are those it stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.analysis import classification
from dlrun.console import Screen
from dlrun.data import images as pixels
from dlrun.data.identity import contents, keys_of
from dlrun.data.images import InMemory, Streamed
from dlrun.data.listing import printable
from dlrun.data.splits import Split
from dlrun.data.tasks import Tasks
from dlrun.data.units import Unfit, factor, values_of
from dlrun.ensembles.votes import Vote, scores
from dlrun.errors import UserError
from dlrun.inference import by_task
from dlrun.inference.classify import Outcome, Sources, batches, divided
from dlrun.inference.labelled import Labelled
from dlrun.inference.predictor import Predictor
from dlrun.vocabulary import PER_EPOCH, Exit, Status

__all__ = ["Evaluation", "evaluate"]

TINY = 1e-12  # as ensembles store their probabilities
PART = 64  # images whose values are measured at a time


@dataclass(frozen=True)
class Evaluation:
    """Logits (N, K), labels (N,) and ids of the images that could be read, their vote, and what was noted."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: list[str]
    vote: Vote
    split: Split  # the images that could be read
    done: Outcome
    gap: float | None  # the largest difference from the logits that the run stored; None if there are none
    thresholds: list[float] | None = None  # of the classes of a set
    tasks: Tasks | None = None  # of a run with several targets: labels are codes, and the vote has classes (N, T)

    def result(self, classes: list[str]) -> dict[str, Any]:
        """Return the scores under the names of those of a test split, with their intervals."""
        y, p, chosen = self.labels, self.vote.probabilities, self.vote.classes
        found: dict[str, Any] = {"status": Status.COMPLETED, "test_samples": len(y)}
        if self.tasks is not None:
            data = {"classes": classes, "test": len(y), "tasks": self.tasks.record()}
            return found | by_task.result(self, self.tasks) | {"data": data}
        found |= {f"test_{name}": value for name, value in scores(self.vote, y).items()}
        found |= {f"test_{name}": v for name, v in classification.measures(self.logits, p, y, chosen).items()}
        found["bootstrap"] = classification.bootstrap(y, chosen, len(classes), ("acc", *PER_EPOCH))
        return found | {"data": {"classes": classes, "test": len(y)}}

    def tables(self, classes: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of per_class.csv, confusion.csv and calibration.csv."""
        if self.tasks is not None:  # a table of confusions has one answer per image
            rows, confidence, right = by_task.tables(self, self.tasks)
            return {"per_class": rows, "calibration": _curve(confidence, right)}
        y, chosen = self.labels, self.vote.classes
        counts = classification.count(y, chosen, len(classes))
        confusion = classification.confusion(y, chosen, len(classes)).tolist()
        rows = _curve(self.vote.probabilities[np.arange(len(y)), chosen], chosen == y)
        pairs = [{"true": c} | dict(zip(classes, row, strict=True)) for c, row in zip(classes, confusion, strict=True)]
        return {"per_class": classification.per_class(counts, classes), "confusion": pairs, "calibration": rows}

    def arrays(self) -> dict[str, Any]:
        """Return what predictions.npz has of the images; see run/scoring.py."""
        if self.tasks is None:
            return {"test_logits": self.logits, "test_labels": self.labels, "test_ids": self.ids}
        targets = self.tasks.columns(torch.from_numpy(self.labels)).numpy()
        return {"test_logits": self.logits, "test_targets": targets, "test_ids": self.ids}


def _curve(confidence: NDArray[Any], right: NDArray[Any]) -> list[dict[str, Any]]:
    """The rows of calibration.csv."""
    curve = classification.calibration(confidence, right)
    bins = len(curve["n"])
    return [
        {"from": f"{k / bins:.4f}", "to": f"{(k + 1) / bins:.4f}"}
        | {name: "" if np.isnan(values[k]) else values[k].item() for name, values in curve.items()}
        for k in range(bins)
    ]


def evaluate(predictor: Predictor, found: Labelled, screen: Screen) -> Evaluation:
    """Predict all images. Raises UserError if none can be read, or if their values are in other units."""
    done = Outcome()
    size, count = predictor.batch_size, len(found.labels)
    parts = _files(predictor, found.images, done) if _is_folder(found) else _held(predictor, found, done)
    steps = screen.work(parts, len(divided(count, size)), "evaluating", lambda: f"{done.predicted:,} images")
    logits = []
    for images in steps:
        logits.append(predictor.logits(images))
        done.predicted += len(images)
    if not logits:
        why = "; ".join(f"{name}: {reason}" for name, reason in [*done.unreadable.items()][:3])
        raise UserError(f"no image could be read: {why}", Exit.FAILED)
    whole = np.concatenate(logits, axis=1)
    vote = predictor.voted(whole)
    made = whole[0] if len(whole) == 1 else np.log(vote.probabilities + TINY).astype(np.float32)
    kept = _readable(found, done)
    _count_seen(predictor, found, done)
    gap = None
    if found.stored is not None and found.stored.shape == made.shape:
        gap = float(np.abs(found.stored - made).max())
    labels, ids = found.labels[kept], [found.ids[k] for k in kept]
    split = Split(found.images.subset(torch.tensor(kept)), torch.from_numpy(labels), ids)
    return Evaluation(made, labels, ids, vote, split, done, gap, predictor.thresholds or None, predictor.tasks)


def _is_folder(found: Labelled) -> bool:
    """Whether the images are files that the run did not bring itself, decoded as it decodes."""
    return isinstance(found.images, Streamed) and not found.own


def _files(predictor: Predictor, images: Any, done: Outcome) -> Iterator[Tensor]:
    sources = Sources([])
    sources.files = list(images.files)
    for _, part in batches(predictor, sources, predictor.batch_size, done):
        yield part


def _held(predictor: Predictor, found: Labelled, done: Outcome) -> Iterator[Tensor]:
    """The batches of images in memory, or of the run's own files, in the units of the run."""
    scale = 1.0
    if isinstance(found.images, InMemory) and not found.own:
        parts = torch.split(torch.arange(len(found.labels)), PART)
        values = values_of(found.images.take(part).numpy() for part in parts)
        try:
            scale = factor(values, predictor.units)
        except Unfit as error:
            raise UserError(f"{found.ids[0]}: {error}") from None
        if scale != 1:
            words = f"multiplied by {scale:.6g}: the training images are {predictor.units}"
            done.scaled["images"] = f"are {values}; {words}"
    index = [torch.tensor(part) for part in divided(len(found.labels), predictor.batch_size)]
    for part in pixels.read(found.images, index):
        yield part if scale == 1 else part.float() * scale


def _readable(found: Labelled, done: Outcome) -> list[int]:
    """The numbers of the images that were predicted."""
    if not done.unreadable or not isinstance(found.images, Streamed):
        return [*range(len(found.labels))]
    return [k for k, file in enumerate(found.images.files) if printable(file) not in done.unreadable]


def _count_seen(predictor: Predictor, found: Labelled, done: Outcome) -> None:
    """Count the images that the run was trained on (train) or chosen by (val): their scores say little."""
    if predictor.seen and not found.own:
        keys = keys_of(contents(found.images, found.ids))
        done.seen.update(predictor.seen[key] for key in keys if key in predictor.seen)
