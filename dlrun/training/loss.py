"""The loss of a run, of dlrun or of another package, with the class counts of its data (`loss=cross_entropy`, D6).

With `dataset.targets=[species,age_group] loss.weights=[1,0.5]` it is the sum of one loss per task (M11).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.config.targets import instantiate
from dlrun.data import Data
from dlrun.data.tasks import Tasks
from dlrun.errors import UserError
from dlrun.training.tasks import shares

__all__ = ["ByTask", "loss_of", "prior"]


class ByTask(nn.Module):
    """The sum of a loss per task, each on its own logits and times its weight (M11).

    `losses`, `weights`: one per task. Of logits (N, K) and codes (N,), see `Tasks`. At chance it costs Σ w ln C for
    cross-entropy.
    """

    def __init__(self, tasks: Tasks, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.tasks, self.losses, self.shares = tasks, nn.ModuleList(losses), tuple(weights)
        if all(hasattr(one, "chance") for one in losses):
            self.chance = self._chance
        if all(hasattr(one, "weights") for one in losses):
            self.weights = self._weights

    @property
    def label_smoothing(self) -> float:
        """Of every task's loss; setting it sets that of all."""
        return float(getattr(self.losses[0], "label_smoothing", 0.0))

    @label_smoothing.setter
    def label_smoothing(self, value: float) -> None:
        for one in self.losses:
            if hasattr(one, "label_smoothing"):
                one.label_smoothing = value  # type: ignore[assignment]

    def each(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> list[Tensor]:
        """Return the mean loss of every task (scalars), without its weight; `weight` (N,) are those of samples."""
        parts = zip(self.losses, self.tasks.split(logits), self.tasks.columns(labels).unbind(1), strict=True)
        more = () if weight is None else (weight,)
        return [one(part, label, *more) for one, part, label in parts]

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the weighted sum (scalar)."""
        found = zip(self.shares, self.each(logits, labels, weight), strict=True)
        return torch.stack([share * value for share, value in found]).sum()

    def _chance(self, _num_classes: int) -> float:
        parts = zip(self.shares, self.losses, self.tasks.sizes, strict=True)
        return float(sum(share * one.chance(size) for share, one, size in parts))  # type: ignore[operator]

    def _weights(self, _labels: Tensor, weight: Tensor | None = None) -> Tensor | None:
        return weight  # no class has one


def loss_of(node: dict[str, Any], trust: list[str], data: Data) -> nn.Module:
    """Build a loss, of several tasks one for each (M11).

    Raises UserError for one that takes no weights of samples, if the samples have some.
    """
    if data.tasks is None:
        loss: nn.Module = instantiate(_own_loss(node), trust, "loss", class_counts=data.counts)
    else:
        own = _own_loss({key: value for key, value in node.items() if key != "weights"})
        if data.tasks.sets:  # of the logits 0 and z softmax is a sigmoid: the same loss as bce, which must_suit expects
            own["_target_"] = "dlrun.losses.CrossEntropy"
        counted = data.tasks.counts(data.train.labels)
        parts = [instantiate(own, trust, "loss", class_counts=counts) for counts in counted]
        loss = ByTask(data.tasks, parts, shares(node.get("weights") or [], data.tasks))
    if data.train.weights is not None and not hasattr(loss, "weights"):
        name = node["_target_"]
        raise UserError(f"loss._target_={name}: takes no weights of samples; choose loss=cross_entropy, or omit them")
    return loss


def _own_loss(node: dict[str, Any]) -> dict[str, Any]:
    """The config of a loss; that of another package does not get weights of classes that are off (loss._target_=…)."""
    node = {key: value for key, value in node.items() if key != "weights" or value}
    if str(node["_target_"]).startswith("dlrun.") or node.get("weight") != "none":
        return node
    return {key: value for key, value in node.items() if key not in ("weight", "beta")}


def prior(data: Data, loss: nn.Module) -> Tensor:
    """Return the share of each class (K,), float64, in training batches as the loss weights them (D6, M7)."""
    classes = len(data.classes)
    found = torch.bincount(data.train.labels, minlength=classes).double()
    if data.balance:
        found = torch.ones(classes, dtype=torch.float64)
    weight = getattr(loss, "class_weight", None)
    weight = getattr(loss, "weight", None) if weight is None else weight  # of torch's own
    if isinstance(weight, Tensor) and weight.shape == (classes,):
        found = found * weight.cpu().double()
    return found / found.sum()
