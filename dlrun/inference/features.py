"""What the last layer of a model gets: the features of images (`dlrun embed RUN photos/`, E6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.inference.classify import BATCH, Outcome, Sources, batches
from dlrun.inference.predictor import Predictor
from dlrun.models.depths import classifiers
from dlrun.vocabulary import Exit

__all__ = ["features"]


def features(predictor: Predictor, sources: Sources, screen: Screen, done: Outcome) -> dict[str, NDArray[Any]]:
    """Return the features of all images that can be read, with the prediction of each; of an ensemble side by side.

    `features` (N, D) float32, `names` (N,), `classes` (N,) and `probabilities` (N, K), the arrays of the file.
    Raises UserError if there is no such image, or no layer with one output per class.
    """
    names: list[str] = []
    found: list[NDArray[np.float32]] = []
    chosen: list[str] = []
    probabilities: list[NDArray[Any]] = []
    with _heard(predictor) as heard:
        parts = batches(predictor, sources, BATCH, done)
        total = -(-len(sources.files) // BATCH) + len(sources.arrays)
        for some, images in screen.work(parts, total, "embedding", lambda: f"{done.predicted:,} images"):
            vote = predictor(images)
            found.append(np.concatenate([_mean(views)[: len(some)] for views in heard], axis=1))
            names += some
            chosen += [predictor.classes[int(k)] for k in vote.classes]
            probabilities.append(vote.probabilities)
            done.predicted += len(some)
    if not names:
        reasons = "; ".join(f"{name}: {why}" for name, why in [*done.unreadable.items()][:3])
        raise UserError(f"no image could be read: {reasons}", Exit.FAILED)
    return {
        "features": np.concatenate(found),
        "names": np.array(names),
        "classes": np.array(chosen),
        "probabilities": np.concatenate(probabilities).astype(np.float32),
    }


@contextmanager
def _heard(predictor: Predictor) -> Iterator[list[list[Tensor]]]:
    """What the last layer of each model gets in a forward pass, once per view of the image."""
    heard: list[list[Tensor]] = []
    handles = []
    for whole in predictor.models:
        places = classifiers(whole, len(predictor.classes))
        if not places:
            name = type(whole.model).__name__
            raise UserError(f"{predictor.path}: {name} has no layer with {len(predictor.classes)} outputs")
        views: list[Tensor] = []
        heard.append(views)
        layer = whole.get_submodule(places[-1])
        # a forward pass begins: what the one before has left is no longer wanted
        handles.append(whole.register_forward_pre_hook(lambda *_, views=views: views.clear()))
        handles.append(layer.register_forward_pre_hook(lambda _, given, views=views: views.append(given[0])))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _mean(views: list[Tensor]) -> NDArray[np.float32]:
    """The mean over the views and, of a map, over its pixels: (B, D)."""
    stacked = sum(view.float() for view in views[1:]) + views[0].float() if views else None
    if stacked is None:
        raise UserError("the last layer was not called in the forward pass")
    mean = stacked / len(views)
    mean = mean.flatten(2).mean(2) if mean.ndim == 4 else mean
    made: NDArray[np.float32] = mean.flatten(1).cpu().numpy()
    return made
