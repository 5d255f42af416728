"""Depthwise convolutions in fp32 where the rest of a network computes in bf16 on a processor (`trainer.precision=`).

torch computes their gradients in bf16 without vector instructions: with them in fp32 a step of EfficientNet-Lite0 at
112 pixels takes two thirds of the time (tests/benchmarks/bench_depthwise.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

__all__ = ["widen"]

if TYPE_CHECKING:
    Layer = nn.Conv2d
else:
    Layer = object


class Wide(Layer):
    """The forward pass of a convolution in fp32, with an output of the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


@lru_cache
def _wide(kind: Any) -> Any:
    return type(kind.__name__, (Wide, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def widen(model: nn.Module) -> None:
    """Let the depthwise convolutions of torch and timm in a model ignore autocast on a processor.

    Weights and their names stay, and so does everything without autocast. Classes of others are left as they are.
    """
    for layer in model.modules():
        kind: Any = type(layer)
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        if depthwise and not isinstance(layer, Wide) and kind.__module__.split(".")[0] in ("torch", "timm"):
            layer.__class__ = _wide(kind)  # a copy of the model keeps it, unlike a replaced method
