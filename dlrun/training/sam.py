"""Sharpness-aware minimisation: `dlrun train optimizer.sam=0.05`, two passes per step (O1, R3).

Foret et al. 2021, "Sharpness-aware minimization for efficiently improving generalization".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dlrun.models.checkpointing import held_statistics
from dlrun.training.sharded import local, whole

__all__ = ["ascended"]


@contextmanager
def ascended(model: nn.Module, parameters: list[Tensor], rho: float) -> Iterator[None]:
    """Move the weights by rho along their gradient, divided by its norm, in the `with` block; then exactly back.

    Batch norms do not count the pass inside. A gradient of zero moves nothing.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale = rho / whole(torch.nn.utils.get_total_norm(gradients)).clamp_min(torch.finfo(torch.float32).tiny)
    weights = [local(p.detach()) for p in parameters if p.grad is not None]
    before = [w.clone() for w in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, torch._foreach_mul([local(gradient) for gradient in gradients], scale))
    try:
        with held_statistics(model):
            yield
    finally:
        torch._foreach_copy_(weights, before)
