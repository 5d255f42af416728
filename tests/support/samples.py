"""Small splits in memory, prepared as a run does it."""

from __future__ import annotations

import numpy as np
import torch

from dlrun.data import Raw, Split, prepare
from dlrun.data.images import InMemory

__all__ = ["counts", "everything", "made", "raw", "ready", "smooth"]

RNG = np.random.default_rng(1)


def made(counts, shape=(4, 5, 3), dtype=np.uint8) -> Split:
    """A split with `counts` samples per class, in shuffled order."""
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(len(counts)), counts))
    x = RNG.integers(0, 256, (len(labels), *shape)).astype(dtype)
    return Split(InMemory(torch.from_numpy(x)), torch.from_numpy(labels), [f"train/{i}" for i in range(len(x))])


def raw(split: Split, test=None, val=None) -> Raw:
    return Raw(split, test, [f"c{label}" for label in range(int(split.labels.max()) + 1)], val)


def ready(source, **keys):
    return prepare(source, **{"val_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0, "split": "position", **keys})


def counts(split: Split) -> list[int]:
    return torch.bincount(split.labels).tolist()


def everything(split: Split) -> torch.Tensor:
    return split.images.take(torch.arange(len(split)))


def smooth(*shape: int, count: int = 6, seed: int = 0) -> torch.Tensor:
    """Smooth random float images (count, C, H, W) from 0 to 1: a resampling of noise would hide its errors."""
    small = torch.rand(count, shape[0], 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, shape[1:], mode="bicubic").clamp(0, 1)
