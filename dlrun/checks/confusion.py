"""Which two classes are taken for each other, from how like images are to each class by a probe (`numbering`, D4)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exchanged"]

MOST = 200  # classes, since all pairs are compared
SURE = 5.0, 3.0  # standard errors from 0 on held-out images, and in the other split, where the sign has to change
LEAST = 6  # images of a class in each split
BACK = 0.5  # of the contrast on held-out images, which exchanged classes have with the other sign


def exchanged(held: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> tuple[int, int] | None:
    """Return two classes whose images in `val` are like each other's, the pair that is surest; None if there is none.

    Both are likenesses (N, K) and labels (N,). The contrast of classes a and b is how much more their images are like
    their own class than like the other one. It is positive for held-out images, if the probe can tell the two apart at
    all, and negative in `val` if a is b there: this needs no right answers, and so no strong probe.
    """
    classes = held[0].shape[1]
    if classes > MOST:
        return None
    known, wrong = _contrasts(*held), _contrasts(*val)
    certain = (known[0] > SURE[0] * known[1]) & (wrong[0] < -SURE[1] * wrong[1]) & (wrong[0] < -BACK * known[0])
    if not certain.any():
        return None
    surest = torch.where(certain, -wrong[0] / wrong[1], 0.0).argmax()
    a, b = sorted((int(surest) // classes, int(surest) % classes))
    return a, b


def _contrasts(likeness: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The contrast of each two classes, and its standard error (K, K each); infinite for classes of few images."""
    classes = likeness.shape[1]
    x = likeness.double()
    means = torch.zeros(classes, classes, dtype=torch.double)
    spreads = torch.full((classes, classes), torch.inf, dtype=torch.double)  # of s_a - s_b over images of a
    for a in torch.unique(y).tolist():
        mine = x[y == a]
        if len(mine) < LEAST:
            continue
        means[a] = mine.mean(0)
        spreads[a] = (mine[:, a : a + 1] - mine).var(0) / len(mine)
    own = means.diagonal()
    contrast = own[:, None] + own[None] - means - means.T
    error = (spreads + spreads.T).sqrt()
    error.fill_diagonal_(torch.inf)
    return contrast, error.clamp_min(1e-12)
