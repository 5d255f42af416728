"""The logits among what a model returns: some return more in training mode, such as auxiliary classifiers (M3, M11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["auxiliary", "logits_of"]

NAMES = ("logits", "out", "output", "main")


def logits_of(outputs: Any) -> Any:
    """Return the logits (B, K): the outputs, the entry named so, or the first one; None if there is no tensor."""
    found = _entries(outputs)
    return found[0] if found else None


def auxiliary(outputs: Any) -> list[Tensor]:
    """Return the other outputs of the shape of the logits: those of auxiliary classifiers."""
    found = _entries(outputs)
    return [one for one in found[1:] if one.shape == found[0].shape]


def _entries(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        named = [name for name in NAMES if name in outputs]
        values = [outputs[name] for name in [*named, *(k for k in outputs if k not in named)]]
    else:
        values = [*outputs] if isinstance(outputs, (tuple, list)) else []
    return [value for value in values if isinstance(value, Tensor)]
