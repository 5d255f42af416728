"""Frozen weights: `dlrun train model.freeze=backbone model.unfreeze_at=3 model.hold_norms=frozen` (M3, O7).

A part whose weights are all frozen stays in evaluation mode while the rest trains: its batch norms use and keep their
running statistics, its dropout is off. Weights that are never to train get no gradient and no moments; others join at
their epoch (`starts` of their parameter groups, see Scheduler).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from types import MethodType
from typing import Any

from torch import nn

from dlrun.errors import UserError
from dlrun.models.depths import classifiers, depths
from dlrun.optim.groups import similar
from dlrun.training import norms

__all__ = ["Freezing", "begin", "planned", "too_late"]

BACKBONE = "backbone"  # everything but the classifier


@dataclass(frozen=True)
class Freezing:
    """What is frozen on request, by name: each parameter with the epochs (0.0 is the start) after which it trains.

    `norms` are batch norms without weights that are frozen with their surroundings. `hold`: frozen, all or none, the
    batch norms whose running statistics stay.
    """

    starts: Mapping[str, float] = field(default_factory=dict)  # inf: never
    norms: frozenset[str] = frozenset()
    hold: str = "frozen"

    @property
    def never(self) -> frozenset[str]:
        """The parameters that do not train at all."""
        return frozenset(name for name, start in self.starts.items() if math.isinf(start))

    @property
    def text(self) -> str:
        """One phrase about it for the screen; empty if nothing is frozen."""
        if not self.starts:
            return ""
        epochs = sorted({int(start) + 1 for start in self.starts.values() if math.isfinite(start)})
        until = f", from epoch {' and '.join(map(str, epochs))} on they train" if epochs else ""
        return f"{len(self.starts)} tensors frozen{until}"

    def released(self, model: nn.Module, epochs: int) -> None:
        """Unfreeze in a copy of the model all that trains within so many epochs."""
        for name, parameter in model.named_parameters():
            if self.starts.get(name, math.inf) < epochs:
                parameter.requires_grad_()
        model.train(model.training)


def planned(node: Mapping[str, Any], model: nn.Module, classes: int) -> Freezing | None:
    """Return what the keys `freeze`, `unfreeze_at` and `hold_norms` of a model's config ask for; None if nothing.

    Raises UserError for a pattern that matches nothing, and for a list of epochs that there are no layers for.
    """
    asked, hold = node.get("freeze"), str(node.get("hold_norms", "frozen"))
    patterns = [asked] if isinstance(asked, str) else list(asked or ())
    if not patterns:
        return Freezing(hold=hold) if hold == "all" else None
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for pattern in patterns for name in _matching(pattern, names, model, classes)}
    if len(frozen) == len(names):
        raise UserError(
            f"model.freeze={asked}: freezes every weight, so nothing can be learned; leave out the last layer"
        )
    apart = classifiers(model, classes) if BACKBONE in patterns else []
    bare = [name for name, norm in norms.running(model).items() if not any(True for _ in norm.parameters())]
    held = {name for name in bare if any(_covers(p, name) or p == BACKBONE for p in patterns) and name not in apart}
    return Freezing(_starts(node.get("unfreeze_at") or 0, frozen, model, classes), frozenset(held), hold)


def too_late(plan: Freezing | None, epochs: int) -> tuple[str, ...]:
    """A line on weights that would train after the last epoch, if there are any."""
    late = [start for start in (plan.starts.values() if plan else ()) if epochs <= start < math.inf]
    if not late:
        return ()
    first = int(min(late)) + 1
    return (f"trainer.epochs={epochs} ends before epoch {first} of model.unfreeze_at: what it unfreezes never trains",)


def _matching(pattern: str, names: Sequence[str], model: nn.Module, classes: int) -> list[str]:
    if pattern == BACKBONE:
        last = classifiers(model, classes)
        if not last:
            what = f"{type(model).__name__} has no layer with {classes} outputs to leave unfrozen"
            raise UserError(f"model.freeze={BACKBONE}: {what}; name the parts to freeze, such as model.freeze=[stem]")
        return [name for name in names if not any(name.startswith(f"{place}.") for place in last)]
    found = [name for name in names if _covers(pattern, name)]
    if not found:
        near = ", ".join(similar(pattern, names))
        raise UserError(f"model.freeze: {pattern!r} matches no parameter or module; similar names: {near}, {BACKBONE}")
    return found


def _covers(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _starts(asked: Any, frozen: set[str], model: nn.Module, classes: int) -> dict[str, float]:
    """The epochs after which each frozen parameter trains; a list unfreezes the deepest part first."""
    if not asked:
        return dict.fromkeys(sorted(frozen), math.inf)
    epochs = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    known = depths(model, classes)
    levels = sorted({known[name] for name in frozen}, reverse=True)
    if len(epochs) > len(levels):
        raise UserError(f"model.unfreeze_at={asked}: expected at most {len(levels)} epochs, one per frozen layer")
    turn = {level: place * len(epochs) // len(levels) for place, level in enumerate(levels)}
    return {name: float(epochs[turn[known[name]]] - 1) for name in sorted(frozen)}


def begin(model: nn.Module, plan: Freezing) -> None:
    """Freeze what never trains, and let `model.train()` keep frozen parts in evaluation mode, also that of copies."""
    for name in plan.never:
        model.get_parameter(name).requires_grad_(False)
    # a method of the instance: every caller of train() is met, and deepcopy binds it to the copy
    model.train = MethodType(partial(_train, plan=plan), model)  # type: ignore[method-assign]
    model.train(model.training)


def _train(model: nn.Module, mode: bool = True, *, plan: Freezing) -> nn.Module:
    type(model).train(model, mode)
    if not mode:
        return model
    for child in model.children():
        _hold(child)
    for name, norm in norms.running(model).items():
        if plan.hold == "none":
            norm.training = True
        elif plan.hold == "all" or (name in plan.norms and _all_frozen(model, plan)):
            norm.training = False
    return model


def _hold(module: nn.Module) -> None:
    own = list(module.parameters())
    if own and not any(p.requires_grad for p in own):
        module.eval()
        return
    for child in module.children():
        _hold(child)


def _all_frozen(model: nn.Module, plan: Freezing) -> bool:
    return not any(p.requires_grad for name, p in model.named_parameters() if name in plan.starts)
