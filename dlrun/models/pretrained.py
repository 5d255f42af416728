"""What models of timm and torchvision share: weights files, shapes tried without computing (`model.weights=`, M3)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlrun.errors import UserError
from dlrun.models.weights_file import Weights, read

__all__ = ["Statistics", "expected_input", "named_file", "try_shapes"]


@dataclass(frozen=True)
class Statistics:
    """The input that pretrained weights expect.

    `mean` and `std` per channel in shares of white, `size` in pixels ((height, width); empty: unknown), `crop`: the
    share of the shorter side that is seen.
    """

    of: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, ...] = ()
    interpolation: str = "bilinear"
    crop: float = 1.0


def expected_input(model: Mapping[str, Any]) -> Statistics | None:
    """Return the input that the weights of a config's `model` expect, a file's by its architecture; None if unknown."""
    name, target = str(model.get("name")), model.get("_target_")
    if target == "dlrun.models.timm.build" and importlib.util.find_spec("timm") is not None:
        return _of_timm(name)
    return _of_torchvision(name, model.get("weights")) if target == "dlrun.models.torchvision.build" else None


def _of_timm(name: str) -> Statistics | None:
    import timm

    try:
        cfg: Any = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag, which building the model refuses
        return None
    if cfg is None:
        return None
    size = tuple(cfg.input_size[1:])
    return Statistics(f"timm {name}", tuple(cfg.mean), tuple(cfg.std), size, cfg.interpolation, float(cfg.crop_pct))


def _of_torchvision(name: str, weights: Any) -> Statistics | None:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    known = torchvision.models.get_model_weights(name)
    chosen = known[weights] if weights in known.__members__ else known.DEFAULT
    how: Any = chosen.transforms()
    side, whole = int(how.crop_size[0]), int(how.resize_size[0])
    between = how.interpolation.value
    return Statistics(f"torchvision {name}", tuple(how.mean), tuple(how.std), (side, side), between, side / whole)


def named_file(weights: Any, otherwise: str) -> Weights:
    """Read the file that model.weights names; `otherwise` says what else it may be. Raises UserError."""
    path = Path(str(weights)).expanduser()
    if not path.is_file():
        raise UserError(f"model.weights={weights} is neither a file nor one of {otherwise}")
    return read(path, f"model.weights={weights}")


def try_shapes(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Pass two images (C, H, W) through on the meta device: computes only shapes, draws no random number."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    images = torch.empty(2, *shape, device="meta")
    with torch.no_grad():
        torch.func.functional_call(model.eval(), meta, (images,))
    model.train()
