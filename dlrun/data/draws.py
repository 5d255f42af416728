"""Random numbers of each sample, whatever batch it is in (`dlrun train augment=resized_crop seed=1`, D7).

A number is a hash of (seed, epoch, purpose, sample, position): splitmix64 (Steele et al. 2014, Fast splittable
pseudorandom number generators). So a resumed run, another batch size, another device and one more augmentation leave
all other numbers as they are. They are made on the processor: a choice by them never waits for an accelerator.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["REPEAT", "Draws", "occurrences", "sent"]

GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # as signed 64-bit integers
REPEAT = 1 << 40  # more than there are samples


class Draws:
    """Draws for `sample` (B,), int64 numbers of samples; the same sample twice in an epoch needs two numbers."""

    def __init__(self, seed: int, epoch: int, sample: Tensor) -> None:
        self.seed, self.epoch, self.sample = seed, epoch, sample.cpu()

    @classmethod
    def of(cls, draws: Draws | torch.Generator, count: int) -> Draws:
        """Return draws for `count` samples; of a generator, which gives the seed, they are numbered from 0."""
        if isinstance(draws, Draws):
            return draws
        seed = torch.randint(1 << 62, (), generator=draws, device=draws.device)
        return cls(int(seed), 0, torch.arange(count))

    def __len__(self) -> int:
        return len(self.sample)

    def uniform(self, purpose: str, count: int = 1) -> Tensor:
        """Return numbers (count, B), float32, at least 0 and below 1."""
        return _shifted(self._hashed(purpose, count), 40).float() / (1 << 24)

    def integers(self, purpose: str, end: int, count: int = 1) -> Tensor:
        """Return whole numbers (count, B), int64, from 0 to `end` - 1; `end` is less than a million."""
        return _shifted(self._hashed(purpose, count), 24) * end >> 40

    def normal(self, purpose: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return Gaussian numbers (B, *shape) on a device, on which the values depend."""
        found, generator = torch.empty(len(self), *shape, device=device), torch.Generator(device)
        for out, key in zip(found, (self._hashed(purpose, 1)[0] & (2**63 - 1)).tolist(), strict=True):
            generator.manual_seed(key)
            torch.randn(shape, generator=generator, out=out)
        return found

    def _hashed(self, purpose: str, count: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed} {self.epoch} {purpose}".encode()).digest()
        key = _mixed(self.sample * GOLDEN + int.from_bytes(digest[:7], "big"))
        return _mixed(key + (torch.arange(count)[:, None] + 1) * GOLDEN)


def sent(drawn: Tensor, device: torch.device) -> Tensor:
    """Return what was drawn on the processor, on a device; CUDA is not waited for.

    MPS is: its copies that do not wait read memory that was released in the meantime (pytorch issue 189690).
    """
    return drawn.to(device, non_blocking=device.type == "cuda")


def occurrences(order: Tensor) -> Tensor:
    """Return numbers for `Draws` (N,) of the samples of an epoch, of which some may be repeated: modulo REPEAT those
    of the samples."""
    ranked, places = order.sort(stable=True)
    turn = torch.empty_like(order)
    turn[places] = torch.arange(len(order)) - torch.searchsorted(ranked, ranked)
    return order + turn * REPEAT


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Unsigned shift to the right: torch has only the signed one."""
    return bits >> count & (1 << (64 - count)) - 1


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)
