"""Less memory for more time: `dlrun train model.checkpointing=true` computes blocks again in the backward pass (O6).

Chen et al. 2016, "Training deep nets with sublinear memory cost". Only the input of a block is kept. Gradients are the
same bits: dropout draws the same masks again, and batch norms count each batch once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dlrun.errors import UserError

__all__ = ["Recomputed", "held_statistics", "recompute"]


class Recomputed(nn.Sequential):
    """A sequence whose parts are computed again in the backward pass of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and torch.is_grad_enabled()):
            plain: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return plain

        def twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), held_statistics(self)

        # compiled, only values are computed again and no statistics, and torch takes no function like this one
        more: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": twice}
        for part in self:
            x = checkpoint(part, x, use_reentrant=False, **more)
        return x


@contextmanager
def held_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms unchanged in the `with` block, also in training mode."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counters = [None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms]
    for norm in norms:
        # not without statistics: a recomputation must save the same tensors as the first pass
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            if counter is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counter)


def recompute(model: nn.Module) -> None:
    """Make every sequence of blocks of a model one that is Recomputed; the names of its weights stay.

    Raises UserError if the model has none.
    """
    if not _swapped(model):
        raise UserError(f"model.checkpointing=true: {type(model).__name__} has no sequence of blocks to compute again")


def _swapped(module: nn.Module) -> int:
    """The number of sequences below a module that were exchanged; those inside of another one stay."""
    count = 0
    for child in module.children():
        if type(child) is nn.Sequential and any(len(list(part.children())) for part in child):
            child.__class__ = Recomputed  # a copy of the model keeps it, unlike a replaced method
            count += 1
        else:
            count += _swapped(child)
    return count
