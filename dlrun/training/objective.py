"""What an objective may have besides its loss, and those of others that take images and labels instead of a batch.

`objective._target_=mine.Mixup`. All of it is optional: `mixing(batch)` and `joined(batch)` change whole batches, the
latter by images without labels (`objective=pseudo_label`, D8); `due(epoch)` asks for the logits of `pool.split`, which
`label` gets; `begin_epoch()`; `columns()` and `record()` are for metrics.csv and result.json; `state_dict()` and
`load_state_dict()` are those of a checkpoint; `notes` are lines for the screen. One that is `unsupervised` reads no
labels, and its `parameters()` are trained with those of the model (`objective=simclr`, M10).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.config.settings import Settings
from dlrun.config.targets import instantiate
from dlrun.data import Batches, Data, Split
from dlrun.data.batches import Batch
from dlrun.errors import UserError

__all__ = ["Unpacked", "begin_epoch", "columns", "is_unsupervised", "must_fit", "objective_of", "own_keys", "prepared"]
__all__ += ["record", "state_of", "with_batch", "with_parameters"]

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
    """Return what the objective makes of a whole batch before it is divided into parts: mixed images (R3), others."""
    for change in (getattr(objective, name, None) for name in ("mixing", "joined")):
        batch = batch if change is None else change(batch)
    return batch


def objective_of(
    cfg: Settings, data: Data, device: torch.device, loss: nn.Module, train: Batches, model: nn.Module
) -> Any:
    """Build the objective of a run. Raises UserError for what it asks for and cannot be had."""
    classes, node, trust = len(data.classes), cfg.plain["objective"], list(cfg.trust)
    given = {"data": data, "packages": trust, "device": device, "num_classes": classes}
    if str(node["_target_"]).startswith("dlrun."):  # arguments of others may have these names
        given |= {"augment": train.augment, "batch_size": train.batch_size, "seed": cfg.seed, "model": model}
    made = with_batch(instantiate(own_keys(node), trust, "objective", **given))
    must_fit(made, loss, classes, device)
    return made


def is_unsupervised(objective: Any) -> bool:
    """Whether the objective reads no labels."""
    return bool(getattr(objective, "unsupervised", False))


def with_parameters(optimizer: torch.optim.Optimizer, objective: Any) -> torch.optim.Optimizer:
    """Return the optimizer, which also trains the weights that the objective has itself."""
    if is_unsupervised(objective):
        optimizer.add_param_group({"params": objective.parameters()})
    return optimizer


def begin_epoch(objective: Any, epoch: int, logits: Callable[[Split], Tensor]) -> None:
    """Let the objective begin an epoch; `logits` are those of the model for images that it wants to label (D8)."""
    if getattr(objective, "due", None) is not None and objective.due(epoch):
        objective.label(logits(objective.pool.split))
    if (begin := getattr(objective, "begin_epoch", None)) is not None:
        begin()


def columns(objective: Any) -> dict[str, Any]:
    """Return the columns of metrics.csv that the objective adds, after an epoch."""
    found: dict[str, Any] = objective.columns() if hasattr(objective, "columns") else {}
    return found


def record(objective: Any) -> dict[str, Any]:
    """Return what the objective adds to result.json, after an epoch."""
    found: dict[str, Any] = objective.record() if hasattr(objective, "record") else {}
    return found


def state_of(objective: Any) -> dict[str, Any] | None:
    """Return what a checkpoint keeps of the objective, None if it keeps nothing."""
    ours = type(objective).__module__.startswith("dlrun.") and hasattr(objective, "state_dict")
    return objective.state_dict() if ours else None


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
