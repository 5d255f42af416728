"""Objectives of others that take images and labels instead of a batch (`objective._target_=mine.Mixup`)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch
from dlrun.errors import UserError

__all__ = ["Unpacked", "must_fit", "own_keys", "prepared", "with_batch"]

MIXING = {"mixup": 0.0, "cutmix": 0.0, "mix_share": 1.0}  # keys of dlrun's objectives, and the values that mean off
WORDS = ("x", "images", "inputs")  # names of the third argument, after the model and the loss


class Unpacked:
    """Calls an objective of (model, loss, x, y) or (model, loss, x, y, index) with the parts of a batch."""

    def __init__(self, inner: Any, indexed: bool) -> None:
        self.inner, self.indexed = inner, indexed
        self.train_acc_valid = bool(getattr(inner, "train_acc_valid", True))

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        more = (batch.index,) if self.indexed else ()
        found: tuple[Tensor, Tensor] = self.inner(model, loss, batch.x, batch.y, *more)
        return found


def own_keys(node: dict[str, Any]) -> dict[str, Any]:
    """Return the config of an objective; that of another package does not get the keys of mixing that are off."""
    if str(node["_target_"]).startswith("dlrun."):
        return node
    return {key: value for key, value in node.items() if key not in MIXING or value != MIXING[key]}


def with_batch(objective: Any) -> Any:
    """Return an objective that takes a batch: this one, or one that passes its parts on."""
    try:
        names = [*inspect.signature(objective).parameters]
    except (TypeError, ValueError):
        return objective
    if len(names) < 4 or names[2] not in WORDS:
        return objective
    return Unpacked(objective, indexed=len(names) > 4 and names[4] == "index")


def prepared(objective: Any, batch: Batch) -> Batch:
    """Return what the objective makes of a whole batch before it is divided into parts: mixed images (R3)."""
    mixing = getattr(objective, "mixing", None)
    made: Batch = batch if mixing is None else mixing(batch)
    return made


def must_fit(objective: Any, loss: nn.Module, classes: int, device: torch.device) -> None:
    """Raise UserError if images are to be mixed and the loss takes no shares of classes (B, K) in place of labels."""
    mixing = getattr(objective, "mixing", None)
    if mixing is None or not mixing.active:
        return
    shares = torch.full((2, classes), 1 / classes, device=device)
    try:
        loss(torch.zeros_like(shares), shares)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        key = f"objective.mixup={mixing.mixup:g} objective.cutmix={mixing.cutmix:g}"
        name = f"{type(loss).__module__}.{type(loss).__name__}"
        what = f"mixed images have shares of classes, which loss._target_={name} does not take"
        raise UserError(f"{key}: {what}; choose loss=cross_entropy, or type objective=supervised") from error
