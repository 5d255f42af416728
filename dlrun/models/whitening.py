"""A frozen first layer that whitens patches of the images: `dlrun train model=airbench`, `model=cnn model.whiten=true`.

Its filters come from training images: code that builds a model together with its data calls `whiten`. Checkpoints
store them like any other weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.models.layers import Style, activation

__all__ = ["Whitening", "WhiteningBlock", "whiten"]

EPS = 5e-4  # added to the variances, as in airbench94: directions without variance must not be amplified


class Whitening(nn.Conv2d):
    """Convolution of patches with the eigenvectors of their covariance, each with both signs; only the bias trains.

    (B, C, H, W) -> (B, 2·C·k², H-k+1, W-k+1) with k = kernel_size. Its weights are random until `fit`.
    """

    def __init__(self, in_channels: int, kernel_size: int = 2) -> None:
        super().__init__(in_channels, 2 * in_channels * kernel_size**2, kernel_size)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the filters from normalised images (B, C, H, W), so that their outputs are uncorrelated, of variance 1.

        ±e / √(λ + EPS) for every eigenvalue λ and eigenvector e of the patches' second moments (Page 2019, Jordan
        2024). The mean is not subtracted: it is close to 0 in normalised images.
        """
        size = self.weight[0].numel()
        total, count = torch.zeros(size, size, dtype=torch.float64), 0
        for images in batches:
            patches = F.unfold(images.cpu().float(), self.kernel_size).transpose(1, 2).reshape(-1, size)
            total += (patches.T @ patches).double()
            count += len(patches)
        values, vectors = torch.linalg.eigh(total / max(count, 1))
        filters = vectors.T / (values.clamp_min(0) + EPS).sqrt()[:, None]
        self.weight.copy_(torch.cat([filters, -filters]).view(self.weight.shape))


class WhiteningBlock(nn.Sequential):
    """`conv`, which whitens, and `activation`, omitted for maxout: the two signs of a filter are not pieces.

    With `frozen` false `conv` is an ordinary convolution of the same shape.
    """

    def __init__(self, in_channels: int, style: Style, *, frozen: bool = True) -> None:
        super().__init__()
        conv = Whitening(in_channels)
        self.out_channels = conv.out_channels
        self.conv = conv if frozen else nn.Conv2d(in_channels, conv.out_channels, 2)
        if style.pieces == 1:
            self.activation = activation(style.activation)


def whiten(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Fit the whitening layers of a model, if it has any, to batches of normalised training images (B, C, H, W)."""
    layers = [m for m in model.modules() if isinstance(m, Whitening)]
    if layers:
        held = list(batches)
        for layer in layers:
            layer.fit(held)
