"""Copies of an optimizer on small copies of its tensors, which cost nothing whatever the model (`dlrun check`, O1).

`updates` gives them made gradients; `reference` is torch's optimizer of the same name with the same settings.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.checks.sandbox import copied_optimizer, peak_rates
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["STEPS", "Small", "length", "published", "reference"]

SIDE = 6  # entries per dimension of a small tensor
SIZE = 0.1  # of the made gradients, far above any epsilon
STEPS = 20
RULES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "nesterov": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
AFFIXES = r"^(my|own|custom|simple|plain|manual|scratch|basic|naive|mini|tiny|hand)+|(fromscratch|optimi[sz]er|\d+)+$"

Rule = Callable[[int, int], Tensor]  # the gradient of tensor number i at step t


def published(rule: type) -> bool:
    """Whether an optimizer comes from an installed package or from dlrun: a rule of its own is then meant."""
    file = getattr(sys.modules.get(rule.__module__), "__file__", None) or ""
    return "site-packages" in Path(file).parts or rule.__module__.startswith(("torch.", "dlrun."))


class Small:
    """Copies of an optimizer on small copies of its tensors."""

    def __init__(self, exp: Experiment) -> None:
        self.exp, self.name = exp, type(exp.optimizer).__name__
        self.rates, self.called = peak_rates(exp), False
        self.groups: list[dict[str, Any]] = exp.optimizer.param_groups
        generator = torch.Generator().manual_seed(0)
        tensors = [p for group in self.groups for p in group["params"]]
        self.owner = [g for g, group in enumerate(self.groups) for _ in group["params"]]
        self.start = [_small(p, generator) for p in tensors]
        self.slope = [SIZE * torch.randn(p.shape, generator=generator).to(p) for p in self.start]
        self.path = self.walk(lambda i, t: self.slope[i], STEPS)
        self.lengths = [length(self.moves(self.path, t)) for t in range(STEPS)]

    @property
    def classic(self) -> str:
        """The word in RULES that its class is named after, or ""."""
        word = re.sub(AFFIXES, "", self.name.lower().replace("_", ""))
        return word if word in RULES else ""

    @property
    def severe(self) -> Outcome:
        """A failure for a rule of a known name, whose behaviour is settled; a warning for others."""
        return Outcome.FAIL if self.classic else Outcome.WARN

    def copy(self) -> tuple[torch.optim.Optimizer, list[Tensor]]:
        """The optimizer on new small tensors, and these; what it keeps for each tensor is cut like it."""
        tensors = [p for group in self.groups for p in group["params"]]
        memo: dict[int, Any] = {id(p): s.clone().requires_grad_() for p, s in zip(tensors, self.start, strict=True)}
        for p in tensors:
            for kept in self.exp.optimizer.state.get(p, {}).values():
                if isinstance(kept, Tensor) and kept.shape == p.shape:
                    memo[id(kept)] = kept[tuple(slice(SIDE) for _ in p.shape)].to(memo[id(p)], copy=True)
        made = copied_optimizer(self.exp.optimizer, memo)
        return made, [memo[id(p)] for p in tensors]

    def walk(
        self, rule: Rule, steps: int, scale: float = 1.0, decay: Mapping[int, float] | None = None
    ) -> list[list[Tensor]]:
        """The tensors before every step and at the end; without decay but for that of these groups."""
        made, tensors = self.copy()
        for number, (group, rate) in enumerate(zip(made.param_groups, self.rates, strict=True)):
            group["lr"] = scale * rate
            if "weight_decay" in group:
                group["weight_decay"] = 0.0 if decay is None else decay[number]
        path = [[p.detach().clone() for p in tensors]]
        for t in range(steps):

            def closure(t: int = t) -> Tensor:
                self.called = True
                for i, p in enumerate(tensors):
                    p.grad = rule(i, t).clone()
                return torch.ones((), requires_grad=True) * 1.0

            made.step(closure)  # type: ignore[arg-type]
            path.append([p.detach().clone() for p in tensors])
        return path

    def moves(self, path: list[list[Tensor]], t: int, since: int | None = None) -> list[Tensor]:
        """What step t of a path added, or all steps from another one on."""
        return [new - old for new, old in zip(path[t + 1], path[t if since is None else since], strict=True)]

    def of(self, group: int, moves: list[Tensor]) -> list[Tensor]:
        """The moves of the tensors of a group."""
        return [m for m, owner in zip(moves, self.owner, strict=True) if owner == group]

    def setting(self, *names: str) -> Any:
        """A setting of the first group, or else an attribute of the optimizer, under one of these names."""
        for place in (self.groups[0], vars(self.exp.optimizer)):
            for name in names:
                if place.get(name) is not None:
                    return place[name]
        return None

    @property
    def momentum(self) -> float:
        """The configured momentum, the first beta of Adam, or 0."""
        betas = self.setting("betas")
        found = betas[0] if isinstance(betas, (tuple, list)) and betas else self.setting("momentum", "beta1")
        return float(found) if isinstance(found, (int, float)) else 0.0


def _small(p: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers in the shape of a tensor, cut to SIDE per dimension; in float64, so that a small decay shows."""
    shape = [min(SIDE, n) for n in p.shape]
    exact = torch.float64 if p.device.type != "mps" else p.dtype
    return (0.5 * torch.randn(shape, generator=generator) + 1.0).to(device=p.device, dtype=exact)


def length(moves: list[Tensor]) -> float:
    """Return the Euclidean norm of several tensors together."""
    return math.sqrt(sum(float(m.cpu().double().square().sum()) for m in moves))


def reference(small: Small) -> torch.optim.Optimizer | None:
    """torch's optimizer of the same name and settings on small tensors, None if there is none."""
    word = small.classic
    if not word:
        return None
    rule = getattr(torch.optim, RULES[word])
    options: dict[str, Any] = {}
    betas = small.setting("betas") or (small.setting("beta1", "b1"), small.setting("beta2", "b2"))
    if word.startswith("adam"):
        if len(betas) != 2 or None in betas:
            return None
        options["betas"] = tuple(map(float, betas))
    if word in ("sgd", "nesterov"):
        options["momentum"] = float(small.setting("momentum", "mu", "beta") or 0.0)
        options["dampening"] = float(small.setting("dampening") or 0.0)
        nesterov = small.setting("nesterov")
        options["nesterov"] = options["momentum"] > 0 and (
            bool(nesterov) if nesterov is not None else word == "nesterov"
        )
    if word == "rmsprop":
        options["alpha"] = float(small.setting("alpha", "rho", "decay", "beta") or 0.99)
        options["momentum"] = float(small.setting("momentum") or 0.0)
    eps = small.setting("eps", "epsilon")
    if eps is not None and word not in ("sgd", "nesterov"):
        options["eps"] = float(eps)
    tensors = [s.clone().requires_grad_() for s in small.start]
    groups = [
        {"params": [p for p, owner in zip(tensors, small.owner, strict=True) if owner == g], "lr": rate or 1e-12}
        for g, rate in enumerate(small.rates)
    ]
    made: torch.optim.Optimizer = rule(groups, **options, weight_decay=0.0)
    return made
