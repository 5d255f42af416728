"""Sound but unusual networks and losses, as one file of a user's own code (M3, C1-C10)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = [
    "Auxiliary",
    "Checkpointed",
    "Distances",
    "Experts",
    "Focal",
    "FromTheFirstBatch",
    "Lazy",
    "LogProbabilities",
    "OneAgainstTheRest",
    "StraightThrough",
    "Tied",
    "Trunk",
    "new_norm",
    "old_norm",
]


class Trunk(nn.Module):
    """Two convolutions, and a place for what is unusual."""

    def __init__(self, width: int = 8, norm: Callable[[Any], Any] = lambda layer: layer) -> None:
        super().__init__()
        self.conv1 = norm(nn.Conv2d(1, width, 3, padding=1))
        self.conv2 = norm(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.head = nn.Linear(width * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class LogProbabilities(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), 1)


class Auxiliary(Trunk):
    """Returns a second classifier's logits in training mode."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.aux, self.kind = nn.Linear(8 * 64, 10), kind

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if not self.training:
            return logits
        other = self.aux(F.relu(self.conv1(x)).flatten(1))
        return {"aux": other, "logits": logits} if self.kind == "dict" else (logits, other)


class Distances(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 4)
        self.prototypes = nn.Parameter(torch.randn(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(super().forward(x), self.prototypes).square()


class Experts(Trunk):
    """Top-1 routing; with so many experts a few samples do not reach them all."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(128, count)
        self.experts = nn.ModuleList(nn.Linear(128, 128) for _ in range(count))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        weight, chosen = self.gate(x).softmax(1).max(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if mine.any():
                out[mine] = weight[mine, None] * expert(x[mine])
        return x + out


class FromTheFirstBatch(Trunk):
    """Sets a scale and a shift so that the first batch has mean 0 and variance 1, as flows and SELU nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(128)), nn.Parameter(torch.zeros(128))
        self.register_buffer("ready", torch.tensor(False))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        if self.training and not self.ready:
            with torch.no_grad():
                self.scale.copy_(1 / (x.std(0) + 0.1))
                self.shift.copy_(-x.mean(0) * self.scale)
                self.ready.fill_(True)  # type: ignore[operator]
        return x * self.scale + self.shift


class Tied(Trunk):
    """Uses one convolution three times, and was built to."""

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for _ in range(3):
            x = F.relu(F.conv2d(x, self.conv2.weight, self.conv2.bias, padding=1))
        return self.conv2(x).flatten(1)


class Checkpointed(Trunk):
    def features(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(super().features, x, use_reentrant=False)  # type: ignore[no-untyped-call]
        return found


def old_norm(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trunk(norm=getattr(nn.utils, kind))


def new_norm(kind: str) -> nn.Module:
    return Trunk(norm=getattr(nn.utils.parametrizations, kind))


class Lazy(Trunk):
    """Takes its sizes from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.head = nn.LazyConv2d(8, 3, padding=1), nn.LazyLinear(10)


class Rounding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + ((16 * x).round() / 16 - x).detach()


class StraightThrough(Trunk):
    """Rounds its features, and gives the gradient to what was rounded; `check.skip=[gradient:rounding]` declares it."""

    def __init__(self) -> None:
        super().__init__()
        self.rounding = Rounding()

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.rounding(super().features(x))
        return found


class Focal(nn.Module):
    """Focal loss whose weight has no gradient."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        cost = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - torch.exp(-cost)).detach() ** 2 * cost).mean()


class OneAgainstTheRest(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 10).to(logits))
