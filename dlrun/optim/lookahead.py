"""Slow weights that follow the fast ones of any optimizer: `dlrun train optimizer.lookahead=5` (O1).

Zhang et al. 2019, "Lookahead optimizer: k steps forward, 1 step back".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Lookahead"]


class Lookahead(Optimizer):
    """After every k steps of `inner`: slow ← slow + share (fast − slow), and fast ← slow.

    The slow weights start as the weights before the first step. Groups and state are those of `inner`; the slow weights
    and the count of steps are part of state_dict.
    """

    def __init__(self, inner: Optimizer, every: int, share: float) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.every, self.share = inner, every, share
        self.slow: list[Tensor] = []
        self.steps = 0
        self._follow()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the inner optimizer, and every k-th time one of the slow weights."""
        if not self.slow:
            self.slow = [p.detach().clone() for p in self._fast()]
        found = self.inner.step() if closure is None else self.inner.step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            fast = self._fast()
            with torch.no_grad():
                torch._foreach_lerp_(self.slow, fast, self.share)
                torch._foreach_copy_(fast, self.slow)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner optimizer, the slow weights and the count of steps."""
        return {"inner": self.inner.state_dict(), "slow": list(self.slow), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.inner.load_state_dict(state_dict["inner"])
        fast = self._fast()
        self.slow = [slow.to(p, copy=True) for slow, p in zip(state_dict["slow"], fast, strict=False)]
        self.steps = int(state_dict["steps"])
        self._follow()

    def _follow(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _fast(self) -> list[Tensor]:
        return [p.detach() for group in self.inner.param_groups for p in group["params"]]
