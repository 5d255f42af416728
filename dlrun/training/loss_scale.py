"""The scale of the loss in fp16, so that small gradients are not rounded to 0: `trainer.precision=fp16` (O10).

Micikevicius et al. 2018, "Mixed precision training", §3.2. The numbers are those of torch.amp.GradScaler. Unlike there,
a batch whose gradient overflows is computed again with half the scale, so that no step is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrun.training.sharded import whole

__all__ = ["LossScale"]

FIRST, FACTOR, INTERVAL = 2.0**16, 2.0, 2000


class LossScale:
    """A power of two by which the loss is multiplied; doubled after INTERVAL steps without overflow, halved by one."""

    def __init__(self) -> None:
        self.value, self.fine = FIRST, 0

    @torch.no_grad()
    def unscaled(self, parameters: Sequence[Tensor]) -> bool:
        """Divide the gradients in place; return whether they are finite, or the scale cannot fall further."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.value)
        finite = not gradients or bool(whole(torch.nn.utils.get_total_norm(gradients)).isfinite())
        if not finite and self.value > 1:
            self.value, self.fine = self.value / FACTOR, 0
            return False
        self.fine += 1
        if finite and self.fine % INTERVAL == 0:
            self.value *= FACTOR
        return True

    def state_dict(self) -> dict[str, float]:
        """Return the scale and the steps since it changed."""
        return {"value": self.value, "fine": self.fine}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore a state of `state_dict`."""
        self.value, self.fine = float(state["value"]), int(state["fine"])
