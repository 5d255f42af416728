"""Copies of a model, also of one that torch cannot copy (`dlrun check`, `dlrun train trainer.ema=0.999`).

The older torch.nn.utils.weight_norm and spectral_norm keep the computed weight as an attribute, a tensor with a graph,
which deepcopy refuses. Their hook computes it again in every forward pass, so a copy of its values is enough.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["copied"]

M = TypeVar("M", bound=nn.Module)


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """Return a deep copy of a model; `memo` is that of copy.deepcopy."""
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
