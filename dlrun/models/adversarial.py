"""Images changed within a small distance so that a model errs on them (`objective=adversarial`, D9).

One step is the fast gradient sign method (Goodfellow et al. 2015, Explaining and harnessing adversarial examples, §4),
several steps from a random start are projected gradient ascent (Madry et al. 2018, Towards deep learning models
resistant to adversarial attacks, §2.1; the step of 2.5 ε / steps is theirs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrun.models.checkpointing import held_statistics
from dlrun.models.outputs import logits_of

__all__ = ["NORMS", "Attack"]

Loss = Callable[[Tensor, Tensor], Tensor]
NORMS = ("linf", "l2")
STRIDE = 2.5  # of ε / steps: an ascent may cross the ball and back


@dataclass(frozen=True)
class Attack:
    """How images are changed: by at most `epsilon`, a share of the range from black to white, in `steps` steps.

    In the norm linf that is the change of each value; in l2 the root of the mean square of all changes of an image, so
    that both have the same unit. `mean` and `std` (C,) are those of the normalisation, `low` and `high` the range of
    values before it.
    """

    epsilon: float
    steps: int
    norm: str
    mean: Tensor
    std: Tensor
    low: float
    high: float

    def __call__(
        self, model: nn.Module, loss: Loss, x: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return changed images (B, C, H, W) for normalised ones, without gradients; weights and statistics stay.

        `target` are labels (B,) or shares (B, K). `generator` draws the start of several steps; without it they start
        at the images.
        """
        std, mean = self.std.to(x).view(1, -1, 1, 1), self.mean.to(x).view(1, -1, 1, 1)
        start = x.detach()
        # augmentation may have left the range already
        least = torch.minimum(start, (self.low - mean) / std)
        most = torch.maximum(start, (self.high - mean) / std)
        radius = self.epsilon * (self.high - self.low) / std  # of normalised values, by channel
        change = torch.zeros_like(start)
        if self.steps > 1 and generator is not None:
            drawn = torch.rand(start.shape, generator=generator, device=x.device, dtype=x.dtype)
            change = self._within(change + (2 * drawn - 1), start, least, most, radius)
        stride = STRIDE / self.steps if self.steps > 1 else 1.0
        with held_statistics(model), torch.enable_grad():
            for _ in range(self.steps):
                moved = (start + change * radius).requires_grad_()
                (slope,) = torch.autograd.grad(loss(logits_of(model(moved)), target), moved)
                change = self._within(change + stride * self._unit(slope * radius), start, least, most, radius)
        return start + change * radius

    def _unit(self, slope: Tensor) -> Tensor:
        """A step of length one up the slope, in units of the radius."""
        return slope.sign() if self.norm == "linf" else slope / _rms(slope)

    def _within(self, change: Tensor, start: Tensor, least: Tensor, most: Tensor, radius: Tensor) -> Tensor:
        """The change, in units of the radius, cut to a ball of one and to the range of values."""
        change = change.clamp(-1, 1) if self.norm == "linf" else change / _rms(change).clamp_min(1)
        return ((start + change * radius).clamp(least, most) - start) / radius


def _rms(change: Tensor) -> Tensor:
    """The root of the mean square of each image (B, 1, 1, 1); never 0."""
    return change.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(torch.finfo(change.dtype).tiny)
