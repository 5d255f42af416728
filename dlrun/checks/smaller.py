"""Smaller images for the checks that train or differentiate, so that large networks fit into `check.budget` (C4, C7).

A step on 64 pixels a side costs a twelfth of one on 224, and tells the same of labels, modes and backward passes. Only
networks that take other sizes get smaller images; `outputs`, `reach` and `flow` use those of the data.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dlrun.checks.sandbox import replica, samples
from dlrun.data.splits import Split
from dlrun.models.outputs import logits_of
from dlrun.training.experiment import Experiment

__all__ = ["shown", "shrunk", "small_samples", "smaller_side"]

SIDES = (64, 96, 128)
WORTH = 1.5  # times as long a side, below which little is saved


# what was found for a model and the height and width of its images
KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], int]] = WeakKeyDictionary()


def small_samples(
    exp: Experiment, count: int, split: Split | None = None, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The samples that dlrun.checks.sandbox.samples returns, in smaller images if the network takes them."""
    x, y = samples(exp, count, split, index)
    return shrunk(x, smaller_side(exp)), y


def smaller_side(exp: Experiment) -> int:
    """The shorter side, in pixels, of smaller images that the network takes; 0 if those of the data are small.

    0 as well if it takes no other size, as one with a linear layer for a fixed number of pixels.
    """
    size = tuple(exp.data.shape[:2])
    before, known = KNOWN.get(exp.model, ((), 0))
    if before != size:
        KNOWN[exp.model] = size, (known := _found(exp, min(size)))
    return known


def _found(exp: Experiment, side: int) -> int:
    tried = [s for s in SIDES if s * WORTH <= side]
    if not tried:
        return 0
    model, (x, _) = replica(exp), samples(exp, 2)
    for s in tried:
        try:
            with torch.no_grad():
                outputs = [logits_of(model.train(mode)(shrunk(x, s))) for mode in (True, False)]
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
            continue
        if all(tuple(o.shape) == (len(x), exp.num_classes) and bool(o.isfinite().all()) for o in outputs):
            return s
    return 0


def shrunk(x: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) whose shorter side has `side` pixels; unchanged if it is 0."""
    if not side:
        return x
    scale = side / min(x.shape[2:])
    size = [round(length * scale) for length in x.shape[2:]]
    return interpolate(x, size=size, mode="bilinear", antialias=True)


def shown(side: int) -> str:
    """What to add to a message: " (at 64 pixels)", or "" for images of full size."""
    return f" (at {side} pixels)" if side else ""
