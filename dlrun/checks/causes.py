"""Why a copy of the network cannot memorise or generalise, from what its training left (`dlrun check`, C3, C7).

`overfit` and `garbage` call this when they fail: the likely cause, with the numbers that separate it from others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrun.checks.sandbox import named

__all__ = ["Attempt", "nearest_mean", "unlearned"]

FLAT = 0.05  # of the first loss: less than that is noise
ALIKE = 1e-3  # spread of a logit over samples, in its size


@dataclass(frozen=True)
class Attempt:
    """One training on a few examples: its rate, the loss of every step, the logits (B, K) before the last one."""

    rate: float
    losses: list[float]
    logits: Tensor | None
    connected: bool  # whether the loss had a gradient
    model: nn.Module | None = None  # as it was left

    def accuracy(self, y: Tensor) -> float:
        """The share of right answers, 0 before the first step."""
        return 0.0 if self.logits is None else float((self.logits.argmax(1) == y).float().mean())


def unlearned(attempts: list[Attempt], best: Attempt, x: Tensor, y: Tensor, goal: float, classes: list[str]) -> str:
    """Return the likely cause in words; `best` is the attempt that got farthest, `goal` the loss it had to reach."""
    first, last = best.losses[0] if best.losses else math.nan, best.losses[-1] if best.losses else math.nan
    run = f"from {first:.3g} to {last:.3g}"
    broken = [one for one in attempts if one.losses and not math.isfinite(one.losses[-1])]
    if not best.connected:
        return "the loss has no gradient: look for detach(), .data, no_grad() or argmax between weights and loss"
    if len(broken) == len(attempts):
        steps = max(len(one.losses) for one in broken)
        return f"the loss is not finite after {steps} steps at every rate: a logarithm of 0, a root of 0 or an overflow"
    if (twice := _contradictory(x, y)) is not None:
        return f"{classes[twice[0]]} and {classes[twice[1]]} label the same image, so one of them is always wrong"
    wrong = y[best.logits.argmax(1) != y].tolist() if best.logits is not None else []
    lost = sorted({classes[c] for c in wrong})
    if last < goal:
        what = f"the loss is near zero ({last:.2g}) with wrong answers for {named(lost)}"
        few = len(lost) <= max(1, len(set(y.tolist())) // 4)
        return f"{what}: {'the class is never counted: ignore_index, a mask or a weight of 0?' if few else LABELS}"
    if last > (1 + FLAT) * first:
        return (
            f"the loss rises {run} while steps follow its gradient: a wrong sign or a wrong gradient in loss or layer"
        )
    if abs(last - first) <= FLAT * abs(first):
        logits = best.logits
        if logits is not None and float(logits.std(0).max()) <= ALIKE * max(float(logits.abs().mean()), ALIKE):
            return (
                f"the loss stays at {last:.3g}, and all samples get the same logits: dead or saturated units, a frozen "
                "or detached layer, or weights that all start alike"
            )
        return (
            f"the loss stays at {last:.3g} though samples get different logits: a frozen or detached layer, dead or "
            "saturated units, or a wrong gradient"
        )
    if best.accuracy(y) < 0.5 and last < 0.3 * first:
        return f"the loss falls {run} while accuracy stays at {best.accuracy(y):.2f}: {LABELS}"
    guessed = set() if best.logits is None else set(best.logits.argmax(1).tolist())
    if (never := [classes[c] for c in sorted(set(y.tolist()) - guessed)]) and len(never) <= len(set(y.tolist())) // 2:
        return f"the loss falls {run}, and {named(never)} is never predicted: a unit of the last layer that cannot win"
    return (
        f"the loss falls {run} and stops there: saturated or dead units, a part that is frozen or detached, "
        "or too few weights"
    )


LABELS = "the loss does not use these labels as they are: another order, another target, a mixture?"


def _contradictory(x: Tensor, y: Tensor) -> tuple[int, int] | None:
    """Two labels of equal images, if images differ at all."""
    flat = x.flatten(1)
    same = (flat[:, None] == flat[None]).all(2) & (y[:, None] != y[None])
    if bool((flat == flat[0]).all()) or not bool(same.any()):
        return None
    i, j = (int(k) for k in same.nonzero()[0])
    return int(y[i]), int(y[j])


def nearest_mean(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]) -> Tensor:
    """Return for each held-out image (N, C, H, W) the class whose mean of training pixels is nearest (N,)."""
    x, y = train[0].flatten(1).float(), train[1]
    known = torch.tensor(sorted(set(y.tolist())), device=y.device)
    means = torch.stack([x[y == c].mean(0) for c in known])
    return known[torch.cdist(held[0].flatten(1).float(), means).argmin(1)]
