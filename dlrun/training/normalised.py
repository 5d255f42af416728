"""A model of raw pixels, and the probe: a few images and its logits (`dlrun train`, `dlrun predict`, E6).

The end of training stores four images and the logits that the model gives them; whoever loads the run computes them
again. Code that was changed since, or another version of a library, is noticed before it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlrun.data import crops
from dlrun.training.experiment import Experiment
from dlrun.training.multi_crop import viewed

__all__ = ["Normalised", "differs", "probe"]

COUNT = 4
# of the largest logit: processors round float32 differently by 1e-5, accelerators may multiply in TF32 (10 bits)
ON_PROCESSOR, ELSEWHERE = 1e-3, 3e-2


class Normalised(nn.Module):
    """A model of raw pixels: images (B, C, H, W) in the units of the dataset -> logits (B, K).

    Only the centre of `crop` (height, width) is looked at.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        crop: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.crop = model, crop
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # multiplied, as in Batches: the same logits to the last bit
        logits: Tensor = self.model((crops.centre(images, self.crop, 2).float() - self.mean) * self.std.reciprocal())
        return logits


def probe(exp: Experiment) -> dict[str, Any]:
    """Return a few images (N, H, W, C), of validation if there are any, and their logits (N, K) by the model as it is.

    Empty if it gives other logits the second time: then there is nothing to compare with.
    """
    split = exp.data.val if len(exp.data.val) else exp.data.train
    images = split.images.take(torch.arange(min(COUNT, len(split))))
    record = exp.data.record()
    model = Normalised(viewed(exp.model, exp.cfg.trainer.multi_crop), record["mean"], record["std"], exp.val.crop)
    training = exp.model.training
    model.eval().to(exp.device)
    logits = _logits(model, images, exp.device)
    arrays = {"images": images.numpy(), "logits": logits, "device": np.array(exp.device.type)}
    again = differs(model, arrays, exp.device)
    exp.model.train(training)
    return {} if again or not np.isfinite(logits).all() else arrays


def differs(model: Normalised, arrays: Mapping[str, Any], device: torch.device) -> float:
    """Return by how much the logits of a stored probe differ from those that the model gives now; 0 if within rounding.

    Also 0 for arrays that are no probe, which an older dlrun has not stored.
    """
    images, logits = arrays.get("images"), arrays.get("logits")
    if images is None or logits is None or images.ndim != 4 or images.dtype.kind not in "uf" or not len(images):
        return 0.0
    found = _logits(model, torch.from_numpy(images), device)
    if found.shape != logits.shape or logits.dtype.kind != "f":
        return float("inf")
    same = str(arrays.get("device")) == device.type == "cpu"
    gap = float(np.abs(found - logits).max())
    allowed = (ON_PROCESSOR if same else ELSEWHERE) * max(1.0, float(np.abs(logits).max()))
    return 0.0 if gap <= allowed else gap if np.isfinite(gap) else float("inf")


@torch.inference_mode()
def _logits(model: Normalised, images: Tensor, device: torch.device) -> Any:
    return model(images.to(device).permute(0, 3, 1, 2)).float().cpu().numpy()
