"""Evaluation by several views of an image: `trainer.multi_crop=mirror|mirror_translate|mirror_larger|mirror_scales`.

Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU, §2. Touvron et al. 2019, Fixing the train-test resolution
discrepancy: random-resized crops show things larger than whole images do, so larger images are better in the test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import UserError

__all__ = ["VIEWS", "MultiCrop", "largest", "unviewed", "viewed"]

# by how much height and width of the images are enlarged. 1.25 is about one over the root of the mean area of crops of
# 35 to 100 %, those of experiment=scratch. With 1.5 as well seven networks gained 0.1 to 0.8 points
# (tests/benchmarks/README.md, scenes)
SCALES: Mapping[str, tuple[float, ...]] = {"mirror_larger": (1.25,), "mirror_scales": (1.25, 1.5)}
# what all views of an image cost, in evaluations of one
VIEWS = {"none": 1.0, "mirror": 2.0, "mirror_translate": 6.0} | {
    kind: sum(2 * scale**2 for scale in scales) for kind, scales in SCALES.items()
}


class MultiCrop(nn.Module):
    """A model that returns the mean of its logits over views of an image.

    mirror: the image and its mirror image, weight 1/2 each. mirror_translate: these two with weight 1/4 each, and with
    1/8 each the same two of the image shifted by one pixel up and left, and down and right, with a reflected border.
    mirror_larger: mirror of the image enlarged to 1.25 of its height and width, bilinearly. mirror_scales: this, and
    mirror of the image enlarged to 1.5, weight 1/4 each.

    (B, C, H, W) -> logits (B, K).
    """

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.translate, self.scales = model, kind == "mirror_translate", SCALES.get(kind, ())

    def forward(self, x: Tensor) -> Tensor:
        parts = [weight * self.model(view).float() for weight, view in self._views(x)]
        return torch.stack(parts).sum(0)

    def _views(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        crops = [(1.0, x)]
        if self.translate:
            height, width = x.shape[2:]
            padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
            crops = [(0.5, x), (0.25, padded[:, :, :height, :width]), (0.25, padded[:, :, 2:, 2:])]
        elif self.scales:
            sizes = [_enlarged(x.shape[2:], scale) for scale in self.scales]
            resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for size in sizes]
            crops = [(1 / len(resized), image) for image in resized]
        for weight, crop in crops:
            yield weight / 2, crop
            yield weight / 2, crop.flip(3)


def _enlarged(size: Sequence[int], scale: float) -> tuple[int, int]:
    return int(size[0] * scale), int(size[1] * scale)


def largest(size: Sequence[int], kind: str) -> tuple[int, int]:
    """Return height and width of the largest view of an image."""
    return _enlarged(size, max(SCALES.get(kind, (1.0,))))


def viewed(model: nn.Module, kind: str) -> nn.Module:
    """Return the model, or a MultiCrop around it if the kind is not none. Raises UserError for an unknown kind."""
    if kind not in VIEWS:
        raise UserError(f"trainer.multi_crop={kind}: must be one of {', '.join(VIEWS)}")
    return model if kind == "none" else MultiCrop(model, kind)


def unviewed(model: nn.Module) -> nn.Module:
    """Return the model within a MultiCrop, or the model itself."""
    return model.model if isinstance(model, MultiCrop) else model
