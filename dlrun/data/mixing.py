"""Images of a batch mixed with others of it: mixup and cutmix (`dlrun train objective=mixup objective.cutmix=1`, R3).

Zhang et al. 2018, mixup: Beyond empirical risk minimization; Yun et al. 2019, CutMix. Each image is mixed with the one
before it in the batch, whose order is random, as torchvision does. Each has its own share, drawn from (seed, epoch,
sample); the share of its label is that of its pixels which are left.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dlrun.data.batches import Batch, Mix
from dlrun.data.draws import Draws, sent
from dlrun.errors import UserError

__all__ = ["Mixing", "cut", "faded"]


class Mixing:
    """Mixes a batch of `classes` classes; off if both strengths are 0.

    `mixup` and `cutmix` are alpha of the Beta(alpha, alpha) that a share is drawn from; 0 switches one off, and with
    both on each image gets either with probability 1/2. `share` of the images are mixed.
    """

    def __init__(self, mixup: float, cutmix: float, share: float, classes: int) -> None:
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise UserError(f"objective.{name}={value:g}: must be 0 (off) or more, such as 0.2")
        self.mixup, self.cutmix, self.share, self.classes = mixup, cutmix, share, classes
        self.active = bool(mixup or cutmix) and share > 0

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with mixed images, and `mix`, the other labels with the shares of the own ones."""
        if not self.active or len(batch) < 2:
            return batch
        device = batch.x.device
        sample = batch.index if batch.sample is None else batch.sample
        draws = Draws(batch.seed, batch.epoch, torch.arange(len(batch)) if sample is None else sample)
        which, whether, u, across, down = draws.uniform("mixing", 5)
        patched = which < (0.5 if self.mixup and self.cutmix else float(bool(self.cutmix)))
        kept = torch.where(patched, _beta(self.cutmix, u), _beta(self.mixup, u))
        kept = torch.where(whether < self.share, kept, torch.ones_like(kept))
        kept, patched, across, down = (sent(one, device) for one in (kept, patched, across, down))
        centre = across, down
        cropped, left = cut(batch.x, torch.where(patched, kept, torch.ones_like(kept)), centre)
        x = faded(cropped, torch.where(patched, torch.ones_like(kept), kept), batch.x)
        kept = torch.where(patched, left, kept)
        return self._labelled(replace(batch, x=x), kept)

    def _labelled(self, batch: Batch, kept: Tensor) -> Batch:
        """A mixed image counts as two samples, with the weights of both in their shares."""
        y, index = batch.y.roll(1), None if batch.index is None else batch.index.roll(1)
        weight, own = batch.weight, kept
        if weight is not None:
            ours = kept * weight
            weight = ours + (1 - kept) * weight.roll(1)
            own = ours / weight.clamp_min(torch.finfo(weight.dtype).tiny)
        return replace(batch, mix=Mix(y, index, own, self.classes), weight=weight)


def _beta(alpha: float, u: Tensor) -> Tensor:
    """Quantiles of Beta(alpha, alpha)."""
    if alpha in (0, 1):
        return u
    from scipy.special import betaincinv  # a tenth of a second

    return torch.from_numpy(betaincinv(alpha, alpha, u.double().numpy())).float()


def faded(x: Tensor, kept: Tensor, other: Tensor) -> Tensor:
    """Return images (B, C, H, W) with their share `kept` (B,) of the values, and those before them in `other`."""
    return torch.lerp(_before(other), x, kept[:, None, None, None].to(x.dtype))


def cut(x: Tensor, kept: Tensor, centre: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return images (B, C, H, W) with a rectangle of those before them, and the share of each that is left (B,).

    Its sides are √(1 - kept) of those of the image, clipped at the border; `centre`: its place across and down, (B,),
    from 0 to 1. As torchvision's CutMix.
    """
    inside, area = [], torch.ones_like(kept)
    for place, size in zip(centre, (x.shape[3], x.shape[2]), strict=True):
        middle, half = (place * size).floor()[:, None], ((1 - kept).sqrt() * size * 0.5).floor()[:, None]
        at = torch.arange(size, device=x.device)
        inside.append((at >= middle - half) & (at < middle + half))
        area = area * inside[-1].sum(1)
    patch = inside[1][:, :, None] & inside[0][:, None, :]
    return torch.where(patch[:, None], _before(x), x), 1 - area / (x.shape[2] * x.shape[3])


def _before(x: Tensor) -> Tensor:
    """The images before these in the batch. As roll(1, 0), which on CUDA loses the layout of the memory."""
    return torch.cat([x[-1:], x[:-1]])
