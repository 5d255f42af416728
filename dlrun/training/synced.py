"""Batch norm over all parts of a batch, which several processes compute (`trainer.sync_batchnorm=true`, O10).

On GPUs that is torch's SyncBatchNorm, which refuses processors; here the same sums are written out for these. The
statistics of few images are noisy: below 16 the error of batch norm rises steeply (Wu & He 2018, Group normalization,
figure 1), and `auto` synchronises there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dlrun.training import norms

__all__ = ["apart", "convert", "wanted"]

FEW = 16


def wanted(asked: str | bool, model: nn.Module, images: int) -> bool:
    """Whether to synchronise, with so many images in a part of a batch; `asked` is auto, true or false."""
    return bool(norms.running(model)) and (images < FEW if asked == "auto" else bool(asked))


def convert(model: nn.Module, device: torch.device) -> None:
    """Let the batch norms of a model synchronise, in place; their weights and names stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]


def apart(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms with running statistics that do not synchronise."""
    return [norm for norm in norms.running(model).values() if not isinstance(norm, (_Synced, nn.SyncBatchNorm))]


class _Synced(_BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        tracks = self.track_running_stats and self.running_mean is not None
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)
        return y  # type: ignore[no-any-return]


class _Synced1d(_Synced, nn.BatchNorm1d): ...


class _Synced2d(_Synced, nn.BatchNorm2d): ...


class _Synced3d(_Synced, nn.BatchNorm3d): ...


KINDS: dict[type, type] = {nn.BatchNorm1d: _Synced1d, nn.BatchNorm2d: _Synced2d, nn.BatchNorm3d: _Synced3d}


class _Normalise(torch.autograd.Function):
    """(x - mean) / std · weight + bias with mean and variance over all processes, which are returned as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        axes, count = [0, *range(2, x.ndim)], x.numel() // x.shape[1]
        flat = x.float()
        var, mean = torch.var_mean(flat, axes, correction=0)
        # differences from the mean of all, not sums of squares, which lose digits
        total = torch.cat([mean * count, mean.new_tensor([count])])
        dist.all_reduce(total)
        whole, all_of_them = total[:-1] / total[-1], total[-1]
        spread = (var + (mean - whole) ** 2) * count
        dist.all_reduce(spread)
        spread /= all_of_them
        y = F.batch_norm(flat, whole, spread, weight, bias, False, 0.0, eps).to(x.dtype)
        ctx.save_for_backward(x, weight, whole, spread)
        ctx.eps, ctx.count, ctx.axes = eps, all_of_them, axes
        ctx.mark_non_differentiable(whole, spread, all_of_them)
        return y, whole, spread, all_of_them

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.ndim - 2)]
        dy, scale = gradients[0].float(), (var + ctx.eps).rsqrt()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        own = torch.stack([dy.sum(ctx.axes), (dy * normal).sum(ctx.axes)])  # of bias and weight, averaged later
        both = own.clone()
        dist.all_reduce(both)
        both /= ctx.count
        dx = dy - both[0].view(shape) - normal * both[1].view(shape)
        dx = dx * (scale if weight is None else scale * weight).view(shape)
        return dx.to(x.dtype), None if weight is None else own[1], None if weight is None else own[0], None
