"""Muon: steps along the orthogonalised momentum of hidden layers (`dlrun train optimizer=muon`, O1).

Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks. torch.optim.Muon takes only matrices;
here convolution filters are matrices too, one row per output channel, and all other tensors use SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

__all__ = ["Muon", "orthogonalised"]

# of x ↦ a x + b x³ + c x⁵, which moves singular values to about 1: steep at 0, so five steps suffice (Jordan 2024)
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, steps: int = 5, *, bf16: bool = False) -> Tensor:
    """Return approximately U Vᵀ of the singular value decomposition U S Vᵀ of a matrix (R, C).

    Singular values become 0.68 to 1.14 by `steps` Newton-Schulz iterations with QUINTIC; those below a hundredth of
    the matrix's norm stay smaller. With `bf16` computed, and returned, in bfloat16.
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if bf16 else matrix
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    done: Tensor = x.T if tall else x
    return done


class Muon(Optimizer):
    """Muon for tensors of two or more dimensions, SGD with Nesterov momentum for the others and for those of `head`.

    Filters (R, C, H, W) are matrices (R, C·H·W). A step moves a matrix (R, N) by lr · √max(1, R/N) along its momentum,
    orthogonalised by `steps` iterations; before that, weight_decay shrinks it by lr · weight_decay. With `unit_norm` it
    is first scaled to the norm √R, for layers followed by a norm (Jordan 2024, airbench94_muon). `sgd_lr` and
    `sgd_momentum` are those of SGD, whose weight_decay is added to the gradient. A group's own lr applies to both,
    unless it has an sgd_lr too. `bf16`: orthogonalise in bfloat16.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        unit_norm: bool = False,
        weight_decay: float = 0.0,
        sgd_lr: float = 0.1,
        sgd_momentum: float = 0.9,
        head: Collection[Tensor] = (),
        bf16: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps, "unit_norm": unit_norm}
        defaults |= {"weight_decay": weight_decay, "bf16": bf16, "orthogonal": True}
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        apart = {id(p) for p in head}
        parts = [part for group in groups for part in _parts(group, sgd_lr, sgd_momentum, apart)]
        # Muon's groups first: the learning rate shown is that of the first group
        super().__init__(sorted(parts, key=lambda part: not part["orthogonal"]), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = _muon if group["orthogonal"] else _sgd
            for p in group["params"]:
                if p.grad is not None:
                    move(p, p.grad, self.state[p], group)
        return loss


def _parts(group: dict[str, Any], sgd_lr: float, sgd_momentum: float, apart: Collection[int]) -> list[dict[str, Any]]:
    """Divide a group into tensors for Muon and for SGD; an empty part is omitted."""
    options = {k: v for k, v in group.items() if k not in ("params", "sgd_lr", "sgd_momentum")}
    sgd = {**options, "lr": group.get("sgd_lr", group.get("lr", sgd_lr))}
    sgd["momentum"] = group.get("sgd_momentum", group.get("momentum", sgd_momentum))
    kinds = [p.ndim >= 2 and id(p) not in apart for p in group["params"]]
    found = []
    for orthogonal, own in ((True, options), (False, sgd)):
        mine = [p for p, kind in zip(group["params"], kinds, strict=True) if kind is orthogonal]
        if mine:
            found.append({**own, "params": mine, "orthogonal": orthogonal})
    return found


def _direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The momentum, or with Nesterov's what it will be after one more such gradient."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    buffer: Tensor = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
    return gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer


def _muon(p: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    rows = len(p)
    matrix = _direction(gradient, state, group).reshape(rows, -1)
    update = orthogonalised(matrix, group["steps"], bf16=group["bf16"]).reshape(p.shape)
    if group["unit_norm"]:
        p.mul_(rows**0.5 / p.norm().clamp_min(1e-7))
    p.mul_(1 - group["lr"] * group["weight_decay"])
    p.add_(update.to(p.dtype), alpha=-group["lr"] * max(1.0, rows / matrix.size(1)) ** 0.5)


def _sgd(p: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if group["weight_decay"]:
        gradient = gradient.add(p, alpha=group["weight_decay"])
    p.add_(_direction(gradient, state, group), alpha=-group["lr"])
