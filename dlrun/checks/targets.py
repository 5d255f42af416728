"""R3: which labels an objective gives to the images that it feeds to the network (behind the check `mixture`).

The network is replaced by a stand-in that records its input and answers with logits that are parameters. What the
input is made of is found from its pixels; which labels are wanted from the gradient of the loss by the logits if the
loss is a cross-entropy, else by lowering the loss over the logits, as a network that memorises would.
"""

from __future__ import annotations

import copy
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dlrun.checks.sandbox import data_loss
from dlrun.data.batches import Batch
from dlrun.training.experiment import Experiment
from dlrun.training.objective import prepared

__all__ = ["Aim", "aim"]

DRAWS, FEWER = 12, 4  # batches, and those on which a loss is lowered
SURE = 40.0  # a logit that softmax makes certain
NEAR = 0.02  # of the values that a cross-entropy has to reproduce
CLEAR, STEPS, RATE = 0.6, 40, 0.5  # the share of a label that has to win, and steps of Adam until it does
KNOWN, AMBIGUOUS = 0.98, 0.3  # of the pixels that are those of an original, and of those that are of several


class Aim(NamedTuple):
    """Means over batches: shares from 0 to 1.

    `off`: of the labels' weight that does not fit the images; `mixed`: of the images that comes from others; `exact`:
    whether that is known to a few percent; `smoothed`: of the weight that is spread over classes that are not there;
    `sums`: least and largest sum of the labels of a sample.
    """

    off: float
    mixed: float
    exact: bool
    smoothed: float
    sums: tuple[float, float]


class _StandIn(nn.Module):
    """Records its input, and answers with logits (B, K) that want a gradient."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.logits[: len(x)]


def aim(exp: Experiment, x: Tensor, y: Tensor) -> Aim | None:
    """Return what the objective makes of images (B, C, H, W) and labels (B,); None if that cannot be seen."""
    found: list[tuple[float, float, bool, float]] = []
    sums: list[Tensor] = []
    known = nn.functional.one_hot(y.cpu(), exp.num_classes).double()
    for draw in range(DRAWS):
        try:
            made = _target(exp, x, y, draw)
            target, fed = made if made is not None else (None, _run(exp, x, y, draw, torch.zeros_like(known))[1])
            if fed is None or fed.shape != x.shape:
                return None
            shares, exact = _shares(x, fed)
            fitting = shares @ known
            if target is None:
                if draw < FEWER:
                    found.append(_won(exp, x, y, draw, fitting))
                continue
        except Exception:  # the objective wants a real network
            return None
        total = target.sum(1, keepdim=True)
        sums.append(total)
        target = target / total
        absent = fitting < 1e-6
        smooth = float((target * absent).sum() / absent.sum()) * exp.num_classes if absent.any() else 0.0
        smooth = min(max(smooth, 0.0), 0.9)
        target = (target - smooth / exp.num_classes) / (1 - smooth)
        off = float((target - fitting).abs().sum(1).mean()) / 2
        found.append((off, 1 - float(shares.diagonal().mean()), exact, smooth))
    off, mixed, all_exact, smoothed = (sum(values) / len(found) for values in zip(*found, strict=True))
    ends = torch.cat(sums) if sums else torch.ones(1)
    return Aim(off, mixed, all_exact == 1, smoothed, (float(ends.min()), float(ends.max())))


def _run(exp: Experiment, x: Tensor, y: Tensor, draw: int, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient of the loss by these logits (B, K), times B, and the input of the network; the same for a draw."""
    torch.manual_seed(draw)
    random.seed(draw)
    np.random.seed(draw)
    objective, model = copy.deepcopy(exp.objective), _StandIn(logits.float().to(exp.device)).train()
    batch = prepared(objective, Batch(x.clone(), y.clone(), epoch=draw, step=draw))
    value, _ = objective(model, data_loss(exp), batch)
    (slope,) = torch.autograd.grad(value, model.logits)
    return slope.cpu().double() * len(y), model.seen[0] if len(model.seen) == 1 else None


def _target(exp: Experiment, x: Tensor, y: Tensor, draw: int) -> tuple[Tensor, Tensor | None] | None:
    """The labels (B, K) that a cross-entropy is given, and the input of the network; None for another loss.

    Its gradient is s softmax - target, with s the sum of the target: two places give both.
    """
    zero = torch.zeros(len(y), exp.num_classes)
    sure = zero.clone()
    sure[:, 0] = SURE
    (slope, fed), (other, _) = (_run(exp, x, y, draw, logits) for logits in (zero, sure))
    total = (other - slope)[:, :1] / (1 - 1 / exp.num_classes)
    target = total / exp.num_classes - slope
    ends = torch.cat([total - other[:, :1] - target[:, :1], -other[:, 1:] - target[:, 1:]], 1)
    right = float(ends.abs().max()) < NEAR and float(target.min()) > -NEAR and float(total.min()) > NEAR
    return (target, fed) if right else None


def _won(exp: Experiment, x: Tensor, y: Tensor, draw: int, fitting: Tensor) -> tuple[float, float, bool, float]:
    """How many labels win that are not those of most of an image, when the loss is lowered over the logits."""
    logits = torch.zeros_like(fitting).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    for _ in range(STEPS):
        logits.grad = _run(exp, x, y, draw, logits.detach())[0]
        optimizer.step()
    share, label = fitting.max(1)
    clear = share > CLEAR
    wrong = float((logits.detach().argmax(1) != label)[clear].double().mean()) if clear.any() else 0.0
    return wrong, 0.0, True, 0.0


def _shares(x: Tensor, fed: Tensor) -> tuple[Tensor, bool]:
    """How much of each original (B,) each image that was fed has (B, B), float64, and whether that is exact."""
    x, fed = x.cpu().double(), fed.cpu().double()  # MPS has no float64
    same = ((fed[:, None] - x[None]).abs() < 1e-3 * x.std()).all(2)  # (B, B, H, W)
    index = torch.arange(len(x))
    own = same[index, index]
    if not own.all() and float(same.any(1).double().mean()) > KNOWN:
        return _pasted(same, own), float((same.sum(1) > 1).double().mean()) < AMBIGUOUS
    a, b = x.flatten(1).T, fed.flatten(1).T
    found = torch.linalg.lstsq(a, b).solution
    exact = float((a @ found - b).norm() / b.norm().clamp_min(1e-12)) < NEAR
    shares = found.T.clamp(0, 1)
    return shares / shares.sum(1, keepdim=True).clamp_min(1e-6), exact


def _pasted(same: Tensor, own: Tensor) -> Tensor:
    """The areas (B, B) of others in images whose pixels are those of originals; a box that surrounds them, if any."""
    count = len(same)
    shares = torch.eye(count, dtype=torch.double)
    for i in range(count):
        foreign = same[i] & ~own[i]
        j = int(foreign.flatten(1).sum(1).argmax())
        if j == i or not foreign[j].any():
            continue
        box = foreign[j].any(1)[:, None] & foreign[j].any(0)[None]
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        box[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
        area = box if not (box & ~same[i, j]).any() else foreign[j]
        shares[i, j] = float(area.double().mean())
        shares[i, i] = 1 - shares[i, j]
    return shares
