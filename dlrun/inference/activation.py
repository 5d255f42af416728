"""Which parts of an image a class depends on: Grad-CAM at the last map of a model (`dlrun explain-image`, E6).

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", by the
package pytorch-grad-cam.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlrun.data import crops
from dlrun.errors import UserError
from dlrun.inference.predictor import Predictor

__all__ = ["Activation", "activations"]


class Activation(NamedTuple):
    """The map of an image (H, W) in 0 to 1, the class it is of, the predicted class, and the probability of each."""

    heat: NDArray[np.float32]
    label: int
    predicted: int
    probabilities: NDArray[np.float64]


def activations(predictor: Predictor, images: Tensor, label: int | None) -> list[Activation]:
    """Return the map of each image (B, H, W, C) for a class by number, or for the predicted one; the mean over members.

    Raises UserError for a model without a layer that gives maps, such as mlp.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    vote = predictor(images)
    labels = [int(k) for k in vote.classes] if label is None else [label] * len(images)
    x = images.to(predictor.device).permute(0, 3, 1, 2).float()
    heat = torch.zeros(len(images), *predictor.shape[:2])
    for whole in predictor.models:
        layer, last = _last_map(whole, x[:1])
        whole.requires_grad_()  # also of frozen layers: the map is made of gradients
        with GradCAM(whole, [layer], reshape_transform=_first if last else None) as cam:
            seen = crops.centre(x, whole.crop, 2)  # the rest of an image has no part in it
            made = cam(seen, [ClassifierOutputTarget(k) for k in labels]) / len(predictor.models)
            crops.centre(heat, whole.crop).add_(torch.from_numpy(made))
    found = zip(heat.numpy(), labels, vote.classes, vote.probabilities, strict=True)
    return [Activation(one, k, int(best), np.asarray(p, dtype=np.float64)) for one, k, best, p in found]


def _last_map(model: nn.Module, x: Tensor) -> tuple[nn.Module, bool]:
    """The module that returns a map (1, C, H, W), H and W above 1, last, and whether C is the last dimension there."""
    seen: list[tuple[nn.Module, bool]] = []

    def look(module: nn.Module, _: object, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and module is not model:
            last = out.shape[1] == out.shape[2] != out.shape[3]
            if min(out.shape[1:3] if last else out.shape[2:]) > 1:
                seen.append((module, last))

    handles = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with torch.no_grad():
            model(x.expand(2, -1, -1, -1))
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise UserError("this model has no layer that returns a map of the image; expected a convolutional network")
    return seen[-1]


def _first(maps: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return maps.permute(0, 3, 1, 2)
