"""The random state of a process: seeded once, kept in every checkpoint, restored by `dlrun resume`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["rng_state", "seed_everything", "set_rng_state"]


def rng_state() -> dict[str, Any]:
    """Return the random state of torch, its accelerators, numpy and Python, as plain numbers and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, gauss_next = random.getstate()  # a tensor is read 1.5 ms faster than 625 numbers
    return {
        "torch": torch.get_rng_state(),
        # a run on the processor must not claim memory of a card, which may be full or another's
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, torch.tensor(numbers), gauss_next],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore a state of `rng_state`; the state of an accelerator that is not available is ignored."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    if isinstance(numbers, torch.Tensor):  # not in the files of older versions
        numbers = numbers.tolist()
    random.setstate((version, tuple(numbers), gauss_next))


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python; a user's model may draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
