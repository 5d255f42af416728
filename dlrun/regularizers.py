"""Penalties on the weights and the max-norm constraint.

Reached by `regularizer=l2`, `regularizer=elastic`, `regularizer.max_norm=3` (R1, R3; C2 scales it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dlrun.errors import UserError

__all__ = ["Penalty"]


@dataclass(frozen=True)
class Penalty:
    """l1·‖w‖₁ + ½·l2·‖w‖², and ‖incoming weights of a unit‖ ≤ max_norm; 0 disables each.

    w is every trainable tensor of two or more dimensions; biases and norms are exempt unless `biases`.
    Raises UserError for a negative strength.
    """

    l1: float = 0.0
    l2: float = 0.0
    max_norm: float = 0.0
    biases: bool = False

    def __post_init__(self) -> None:
        for key in ("l1", "l2", "max_norm"):
            if not getattr(self, key) >= 0.0:
                raise UserError(f"regularizer.{key}={getattr(self, key):g} must not be negative; 0.0 disables it")

    @property
    def active(self) -> bool:
        """Whether the penalty can be nonzero."""
        return bool(self.l1 or self.l2)

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar to add to the loss, with a graph when active."""
        weights = self._tensors(model) if self.active else []
        terms = []
        # sums and not torch._foreach_norm, which on the CPU loses four digits over a million weights
        if self.l1:
            terms += [self.l1 * w.abs().sum() for w in weights]
        if self.l2:
            terms += [0.5 * self.l2 * w.square().sum() for w in weights]
        if terms:
            return torch.stack(terms).sum()
        return torch.zeros((), device=next((p.device for p in model.parameters()), None))

    def scaled(self, factor: float) -> Penalty:
        """Return the penalty with l1 and l2 multiplied by a factor; max_norm stays."""
        return replace(self, l1=self.l1 * factor, l2=self.l2 * factor)

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        """Rescale in place each unit whose incoming weights exceed max_norm; called after each step.

        A unit is an index of the first dimension, as in linear and convolution layers (Srivastava et al.
        2014, §5.1).
        """
        if not self.max_norm:
            return
        for tensor in self._tensors(model):
            # processes that divide weights have rows of them, each of a unit
            tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            if tensor.ndim >= 2:
                tensor.renorm_(2, 0, self.max_norm)
            else:
                tensor.clamp_(-self.max_norm, self.max_norm)

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        return [p for p in model.parameters() if p.requires_grad and (self.biases or p.ndim >= 2)]
