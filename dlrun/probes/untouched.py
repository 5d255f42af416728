"""Training steps that leave no trace, for commands that measure before a run (`dlrun lr_range`, `dlrun batch_time`).

Practices O5, O6: afterwards weights, optimizer and random state are bit for bit what they were before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count

import torch
from torch import Tensor

from dlrun.data.batches import Batches
from dlrun.training.experiment import Experiment
from dlrun.training.random_state import rng_state, set_rng_state

__all__ = ["endless", "untouched"]


@contextmanager
def untouched(exp: Experiment) -> Iterator[None]:
    """Restore weights, buffers, modes, optimizer and random state at the end, also after an error."""
    random = rng_state()
    parts = (exp.model, exp.loss)
    tensors = [(t, t.detach().clone()) for part in parts for t in chain(part.parameters(), part.buffers())]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    optimizer = copy.deepcopy(exp.optimizer.state_dict())
    try:
        yield
    finally:
        exp.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
        for module, training in modes:
            module.training = training
        exp.optimizer.load_state_dict(optimizer)
        set_rng_state(random)


def endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Return the batches of epochs 1, 2, … without end."""
    return chain.from_iterable(batches.epoch(number) for number in count(1))
