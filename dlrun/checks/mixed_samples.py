"""Which module of a network mixes the samples of a batch (behind the check `independence`, C8)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["mixing"]

FEW = 4  # images: what every module returns is kept
NEAR = 1e-4  # of the size of an output, which rounding explains

Seen = list[tuple[str, nn.Module, Tensor | None, Tensor | None]]


def mixing(model: nn.Module, x: Tensor) -> str:
    """Return ", in NAME (Class)" or ", between NAME and NAME", where the samples of images (B, C, H, W) meet, or ""."""
    x = x[: 2 * FEW]
    half = len(x) // 2
    other = x.clone()
    other[half:] = 1 - 3 * x[half:].flip(0)
    with _watched(model) as first, torch.no_grad():
        model(x.clone())
    with _watched(model) as second, torch.no_grad():
        model(other)
    before = "the images"
    for (name, module, given, made), (_, _, given2, made2) in zip(first, second, strict=False):
        came, left = _same(given, given2, half, len(x)), _same(made, made2, half, len(x))
        if came is False:
            return f", between {before} and {name} ({type(module).__name__})"
        if left is False and came:
            switched = " in training mode" if module.training else ""
            return f", in {name} ({type(module).__name__}{switched})"
        if left:
            before = name
    return f", after {before}" if first and before != "the images" else ""


def _same(a: Tensor | None, b: Tensor | None, half: int, count: int) -> bool | None:
    """Whether the first samples are alike in both; None if these are no tensors of the whole batch."""
    if a is None or b is None or a.shape != b.shape or a.ndim == 0 or len(a) % count or not a.is_floating_point():
        return None
    rows = half * (len(a) // count)
    size = float(a[:rows].abs().max()) + 1e-12
    return float((a[:rows] - b[:rows]).abs().max()) <= NEAR * size


@contextmanager
def _watched(model: nn.Module) -> Iterator[Seen]:
    """What every module without parts got and returned, in order."""
    seen: Seen = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            given = args[0] if args and isinstance(args[0], Tensor) else None
            made = output if isinstance(output, Tensor) else None
            before, after = (None if t is None else t.detach().clone() for t in (given, made))
            seen.append((name, module, before, after))

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if n and not any(True for _ in m.children())]
    hooks = [m.register_forward_hook(look(n)) for n, m in leaves]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
