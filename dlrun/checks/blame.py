"""Where in a network learning stops: the module and the line of the user's code (behind `overfit` and others, C3, C7).

`blame` looks for this in turn: samples become alike, from a module on; no gradient reaches the modules before a cut;
units at the limits of their activation. `lost` looks for the module from which on the nearest mean of a class no longer
tells classes apart. Functions between modules have no name, so the modules around them are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.checks.advice import line_now
from dlrun.checks.causes import nearest_mean
from dlrun.checks.sandbox import named
from dlrun.data.batches import Batch
from dlrun.training.experiment import Experiment

__all__ = ["blame", "lost"]

ALIKE = 1e-5  # spread of a value over the samples, in its size
LIMITS: dict[type[nn.Module], tuple[float, float]] = {nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}
KNOWN = 1e-3  # p of so many hits by chance, below which values know the classes
AT_LIMIT, MOST = 0.03, 0.5  # of the range of an activation, and the share of values that close to its ends


@dataclass(frozen=True)
class _Ran:
    """A module without parts that ran, and what it made of samples that differ."""

    name: str
    module: nn.Module
    line: str
    varied: bool  # its input differs between samples
    alike: bool  # and its output does not
    limits: float  # the share of its output at the limits of an activation

    @property
    def shown(self) -> str:
        return f"{self.name} ({type(self.module).__name__}{self.line})"


def blame(exp: Experiment, model: nn.Module, x: Tensor, y: Tensor) -> str:
    """Return "; …" with the module where samples (B, C, H, W) or gradients are lost in a copy of the model, or ""."""
    ran: list[_Ran] = []
    leaves = [(n, m) for n, m in model.named_modules() if n and not any(True for _ in m.children())]
    hooks = [m.register_forward_hook(_look(n, ran)) for n, m in leaves]
    try:
        for p in model.parameters():
            p.grad = None
        with exp.autocast(), torch.enable_grad():
            value, _ = exp.objective(model.train(), exp.loss, Batch(x, y))
        if value.requires_grad:
            torch.autograd.backward(value)
    finally:
        for hook in hooks:
            hook.remove()
    lost = next((one for one in ran if one.varied and one.alike), None)
    if lost is not None:
        return f"; all samples are alike from {lost.shown} on"
    if found := _cut(ran):
        return found
    full = max(ran, key=lambda one: one.limits, default=None)
    if full is not None and full.limits > MOST:
        return f"; {full.limits:.0%} of the values of {full.shown} are at their limits, where the slope is 0"
    return ""


def lost(
    model: nn.Module, train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], p: Callable[[Tensor, Tensor], float]
) -> str:
    """Return "; …" with the module where classes stop being told apart, by images and labels of both parts, or "".

    p: the probability that predictions (N,) meet labels (N,) so often by chance
    """
    found: list[str] = []
    count = len(train[1]) + len(held[1])

    def knows(values: Any) -> bool:
        if not isinstance(values, Tensor) or len(values) != count:
            return True
        known, asked = values[: len(train[1])], values[len(train[1]) :]
        return p(nearest_mean((known, train[1]), (asked, held[1])), held[1]) < KNOWN

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if found:
            return
        name = f"{names[module]} ({type(module).__name__}{line_now().replace(' at ', ', ')})"
        if args and not knows(args[0]):
            found.append(f"; it is lost before {name}, in code between the modules")
        elif not knows(output):
            found.append(f"; it is lost in {name}")

    names = {m: n for n, m in model.named_modules() if n and not any(True for _ in m.children())}
    hooks = [m.register_forward_hook(hook) for m in names]
    try:
        with torch.no_grad():
            model.eval()(torch.cat([train[0], held[0]]))
    finally:
        for one in hooks:
            one.remove()
    return found[0] if found else ""


def _look(name: str, ran: list[_Ran]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        given = args[0] if args else None
        if not (isinstance(given, Tensor) and isinstance(output, Tensor) and output.ndim > 1 and len(output) > 1):
            return
        alike = not _varies(output)
        limits = LIMITS.get(type(module))
        share = 0.0
        if limits is not None:
            near = AT_LIMIT * (limits[1] - limits[0])
            share = float(((output - limits[0] < near) | (limits[1] - output < near)).float().mean())
        ran.append(_Ran(name, module, line_now().replace(" at ", ", "), _varies(given), alike, share))

    return hook


def _varies(x: Tensor) -> bool:
    x = x.detach().float()
    return float((x - x[:1]).abs().max()) > ALIKE * float(x.abs().max())


def _cut(ran: list[_Ran]) -> str:
    """A sentence if the gradient reaches some modules and none before them."""
    reached = [(one, _reached(one.module)) for one in ran if any(True for _ in one.module.parameters())]
    missed = [one for one, has in reached if not has]
    if not missed:
        return ""
    frozen = [one for one in missed if not any(p.requires_grad for p in one.module.parameters())]
    if frozen:
        return f"; {named([one.shown for one in frozen])} is frozen: requires_grad_(True)"
    after = next((one for k, (one, has) in enumerate(reached) if has and k and not reached[k - 1][1]), None)
    where = f", so the cut lies before {after.shown}" if after is not None else ""
    return f"; no gradient reaches {named([one.shown for one in missed])}{where}"


def _reached(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
