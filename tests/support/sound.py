"""Sound but unusual networks and losses, for the checks to pass (M3, C1-C10)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dlrun.training.experiment import Experiment
from support.composed import alter
from support.pairs import wear
from support.unusual import (
    Auxiliary,
    Checkpointed,
    Distances,
    Experts,
    Focal,
    FromTheFirstBatch,
    LogProbabilities,
    OneAgainstTheRest,
    Tied,
    Trunk,
    new_norm,
    old_norm,
)

__all__ = ["SOUND"]


def both(*changes: Callable[[Experiment], None]) -> Callable[[Experiment], None]:
    return lambda exp: [change(exp) for change in changes] and None


def scored(loss: nn.Module) -> Callable[[Experiment], None]:
    return lambda exp: alter(exp, loss=loss)


SOUND: dict[str, Callable[[Experiment], None]] = {
    "log-probabilities and NLL": both(wear(LogProbabilities), scored(nn.NLLLoss())),
    "auxiliary head in a tuple": wear(lambda: Auxiliary("tuple")),
    "auxiliary head in a dict": wear(lambda: Auxiliary("dict")),
    "weight norm, old": wear(lambda: old_norm("weight_norm")),
    "spectral norm, old": wear(lambda: old_norm("spectral_norm")),
    "weight norm": wear(lambda: new_norm("weight_norm")),
    "spectral norm": wear(lambda: new_norm("spectral_norm")),
    "distances": wear(Distances),
    "experts": wear(Experts),
    "initialised from the first batch": wear(FromTheFirstBatch),
    "tied weights": wear(Tied),
    "checkpointed": wear(Checkpointed),
    "focal loss of a detached weight": both(wear(Trunk), scored(Focal())),
    "one against the rest": both(wear(Trunk), scored(OneAgainstTheRest())),
}
