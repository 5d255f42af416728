"""Tensors of a stored file, compared with what they must be before anything uses them (`dlrun resume`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOST", "Misfit", "Tensors", "described", "extent", "tensor"]

MOST = 10**15  # of any counter
SMALL = 1 << 16  # values of a tensor, which a copy costs little


class Misfit(Exception):
    """What is not as expected, in words."""


class Tensors:
    """Tensors whose values are looked at together: a network has hundreds of small ones.

    With `finite` they were looked at when they were written, and are not again.
    """

    def __init__(self, finite: bool = False) -> None:
        self._finite = finite
        self._small: dict[float, list[tuple[Tensor, str, Tensor | None]]] = {}

    def add(
        self,
        found: Any,
        name: str,
        dtype: torch.dtype,
        shape: Sequence[int],
        *,
        low: float = -math.inf,
        like: Tensor | None = None,
    ) -> None:
        """Raise Misfit for anything but a tensor of this type and shape.

        Its values must be at least `low`, and finite unless `like` is not; `hold` looks at those of small tensors.
        """
        if not isinstance(found, Tensor) or found.layout != torch.strided:
            raise Misfit(f"{_wanted(name, dtype, shape)}, found {described(found)}")
        if found.dtype != dtype or found.shape != shape:
            of = f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
            raise Misfit(f"{_wanted(name, dtype, shape)}, found {of}")
        if _comparable(found) and not self._finite:
            if found.numel() > SMALL:
                _hold_values(found, name, low, like)
            else:
                self._small.setdefault(low, []).append((found, name, like))

    def hold(self) -> None:
        """Look at the values of all small tensors."""
        for low, small in self._small.items():
            least, most = extent(torch.cat([found.flatten() for found, _, _ in small]))
            if not low <= least <= most < math.inf or least == -math.inf:
                for found, name, like in small:
                    _hold_values(found, name, low, like)


def tensor(found: Any, name: str, dtype: torch.dtype, shape: Sequence[int], like: Tensor | None = None) -> None:
    """Raise Misfit for anything but a tensor of this type and shape, finite unless `like` is not."""
    values = Tensors()
    values.add(found, name, dtype, shape, like=like)
    values.hold()


def _hold_values(found: Tensor, name: str, low: float, like: Tensor | None) -> None:
    if low > -math.inf:
        least, most = extent(found)
        finite = math.isfinite(least) and math.isfinite(most)
    else:
        least, finite = low, _finite(found)
    if not finite and (like is None or _finite(like)):
        raise Misfit(f"{_wanted(name, found.dtype, found.shape)}, found values that are not finite")
    if least < low:
        raise Misfit(f"{name}: expected no values below {low:g}")


def _wanted(name: str, dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{name}: expected {str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _finite(found: Tensor) -> bool:
    """Whether all values are finite. Their sum tells it in two thirds of the time unless it overflows."""
    if not _comparable(found) or math.isfinite(float(found.sum())):
        return True
    return all(map(math.isfinite, extent(found)))


def _comparable(found: Tensor) -> bool:
    """Whether a tensor has numbers that torch compares: it does not those of 8 bits, nor a sparse tensor."""
    return found.is_floating_point() and found.itemsize > 1 and found.layout == torch.strided


def extent(found: Tensor) -> tuple[float, float]:
    """The least and the largest value in one pass, NaN if there is one; 0 for what torch does not compare."""
    if not _comparable(found) or not found.numel():
        return 0.0, 0.0
    least, most = torch.aminmax(found)  # isfinite makes five copies
    return float(least), float(most)


def described(found: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
    if type(found) in (int, float):
        return str(found) if abs(found) <= MOST else "a number beyond all bounds"
    return type(found).__name__
