"""The loss of a run, of dlrun or of another package, with the class counts of its data (`loss=cross_entropy`, D6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dlrun.config.targets import instantiate
from dlrun.data import Data
from dlrun.errors import UserError

__all__ = ["loss_of"]


def loss_of(node: dict[str, Any], trust: list[str], data: Data) -> nn.Module:
    """Build a loss. Raises UserError for one that takes no weights of samples, if the samples have some."""
    counts = torch.bincount(data.train.labels, minlength=len(data.classes)).tolist()
    loss: nn.Module = instantiate(_own_loss(node), trust, "loss", class_counts=counts)
    if data.train.weights is not None and not hasattr(loss, "weights"):
        name = node["_target_"]
        raise UserError(f"loss._target_={name}: takes no weights of samples; choose loss=cross_entropy, or omit them")
    return loss


def _own_loss(node: dict[str, Any]) -> dict[str, Any]:
    """The config of a loss; that of another package does not get weights of classes that are off (loss._target_=…)."""
    if str(node["_target_"]).startswith("dlrun.") or node.get("weight") != "none":
        return node
    return {key: value for key, value in node.items() if key not in ("weight", "beta")}
