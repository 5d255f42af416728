"""What several processes cannot share, refused in one line before the checks (`dlrun train trainer.devices=2`, O10)."""

from __future__ import annotations

import math

from dlrun.config.ranks import Rank
from dlrun.errors import UserError
from dlrun.training.experiment import Experiment
from dlrun.training.objective import is_unsupervised

__all__ = ["must_divide"]

# optimizers that treat each number by itself; the others need norms or products of whole tensors
ALONE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop")
FURTHER = ("lion", "adan")


def must_divide(exp: Experiment, place: Rank) -> None:
    """Raise UserError for a setup whose batches several processes cannot share; `place` is the first of them."""
    trainer, alone = exp.cfg.trainer, f"type trainer.devices=1, which {place.world} processes are not"
    name = exp.cfg.choices.get("objective") or exp.cfg.objective.get("_target_")
    if is_unsupervised(exp.objective):
        raise UserError(f"objective={name}: compares images of a whole batch, which one process has to see; {alone}")
    if getattr(exp.objective, "joined", None) is not None:
        raise UserError(f"objective={name}: adds images without labels to a whole batch; {alone}")
    augment = exp.train.augment
    if augment is not None and getattr(augment, "active", True) and not getattr(augment, "per_sample", False):
        what = (
            f"augment._target_={exp.cfg.augment.get('_target_')}: draws for a batch, not for each sample (per_sample)"
        )
        raise UserError(f"{what}, so its images would depend on the number of processes; {alone}")
    if trainer.batch_size < 2 * place.world:
        least = f"expected {2 * place.world} or more, two images for each of {place.world} processes"
        raise UserError(f"trainer.batch_size={trainer.batch_size}: {least}")
    thaws = exp.frozen is not None and any(map(math.isfinite, exp.frozen.starts.values()))
    if trainer.hours and thaws:
        what = f"trainer.hours={trainer.hours:g} with model.unfreeze_at: weights would join within an epoch"
        raise UserError(f"{what}, which the processes agree on before it; use trainer.epochs, or {alone}")
    if trainer.sharding != "none":
        _must_shard(exp)


def _must_shard(exp: Experiment) -> None:
    """Raise UserError for what cannot train with parts of the weights."""
    key, end = f"trainer.sharding={exp.cfg.trainer.sharding}", "type trainer.sharding=none"
    target = str(exp.cfg.optimizer["_target_"])
    known = {*(f"torch.optim.{name}" for name in ALONE), *(f"dlrun.optim.further.{name}" for name in FURTHER)}
    if target not in known:
        name = exp.cfg.choices.get("optimizer") or target
        what = "its steps need whole tensors, and each process has a part of them"
        raise UserError(f"{key} with optimizer={name}: {what}; choose another, such as optimizer=adamw, or {end}")
    if exp.compiled is not None:
        raise UserError(f"{key} with trainer.compile=true: expected one of them; type trainer.compile=false, or {end}")
