"""Gradient clipping: `trainer.clip_norm=1`, `trainer.clip_value=0.1` (O4)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.training.sharded import whole

__all__ = ["clip"]


def clip(parameters: list[Tensor], norm: float, value: float) -> Tensor:
    """Clip gradients in place, 0 meaning no limit, and return the norm of the whole gradient before it (scalar)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = whole(torch.nn.utils.get_total_norm(gradients))
    if norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, norm, total)
    if value:
        torch.nn.utils.clip_grad_value_(parameters, value)
    return total
