"""Where activation functions pass no gradient: what the diagnostics of a run count as dead or saturated (B4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from dlrun.models.outputs import logits_of

__all__ = ["BENDS", "Bend", "bend_of", "nonlinear"]

MIDDLES = 8  # pairs of images, at most, in whose middle the network is evaluated


class Bend(NamedTuple):
    """The inputs at which an activation function passes no gradient; None if there are none."""

    dead: float | None = None  # a unit never above this input is dead: the slope stays under about 0.01
    saturated: float | None = None  # beyond this |input| the output is over 97 % of its limit


BENDS = {
    **dict.fromkeys(("relu", "relu_", "relu6"), Bend(dead=0.0)),
    "gelu": Bend(dead=-3.0),
    "silu": Bend(dead=-6.0),
    "mish": Bend(dead=-6.0),
    "hardswish": Bend(dead=-3.0),
    **dict.fromkeys(("tanh", "tanh_"), Bend(saturated=math.atanh(0.97))),
    # its limits are 0 and 1, its middle 0.5
    **dict.fromkeys(("sigmoid", "sigmoid_"), Bend(saturated=2 * math.atanh(0.97))),
    "softsign": Bend(saturated=0.97 / 0.03),
    "hardtanh": Bend(saturated=0.97),
    "hardsigmoid": Bend(saturated=3 * 0.97),
    **dict.fromkeys(("leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "softplus"), Bend()),
}

GATES = ("sigmoid", "sigmoid_", "hardsigmoid")


def bend_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bend | None:
    """Return the bend of an activation function; None if it is none."""
    name = getattr(function, "__name__", "")
    if name == "hardtanh" and kwargs.get("min_val", args[1] if len(args) > 1 else -1.0) >= 0:
        return BENDS["relu6"]  # torch.nn.ReLU6 calls it so: zero is its off state, not a limit
    if name in GATES and getattr((args or [*kwargs.values()])[0], "shape", ())[2:] == (1, 1):
        return Bend()  # a gate of squeeze-and-excitation, which may be open or closed: the gradient passes beside it
    return BENDS.get(name)


def nonlinear(model: nn.Module, images: Tensor) -> float | None:
    """How far the logits in the middle between two images are from the middle of theirs, over half of their distance.

    0 for an affine network. In full precision, whatever the training has, of which rounding alone leaves a hundredth.
    """
    pairs = min(MIDDLES, len(images) // 2)
    if not pairs:
        return None
    a, b = images[:pairs], images[pairs : 2 * pairs]
    ends = [logits_of(model(x)) for x in (a, b, (a + b) / 2)]
    if not all(isinstance(one, Tensor) and bool(one.isfinite().all()) for one in ends):
        return None
    first, second, middle = (one.cpu().double() for one in ends)  # MPS has no float64
    far = float((first - second).norm()) / 2
    return float((middle - (first + second) / 2).norm()) / far if far > 0 else None
