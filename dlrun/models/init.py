"""Initial weights as a hyperparameter: `dlrun train model.init=he_normal` (M6), `model.output_bias` (M7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.layers import one_of

__all__ = ["INITS", "head", "initialise", "output_bias"]

# m is the fan-in and n the fan-out of the weights; random numbers come from torch's global generator
INITS: dict[str, Callable[[Tensor], object] | None] = {
    "default": None,  # as the layers were created
    "he_normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),  # variance 2/m
    "normal": lambda w: nn.init.normal_(w, std=0.1**0.5),  # variance 0.1
    "uniform": lambda w: nn.init.uniform_(w, -(_fan_in(w) ** -0.5), _fan_in(w) ** -0.5),  # ±m^-1/2
    "glorot_uniform": nn.init.xavier_uniform_,  # ±(6/(m+n))^1/2
    "glorot_sigmoid": lambda w: nn.init.xavier_uniform_(w, gain=4.0),  # 4 times that
    "orthogonal": nn.init.orthogonal_,
}


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def initialise(model: nn.Module, name: str) -> None:
    """Redraw the weights of every linear and convolution layer (M6) and set their biases to 0.

    Norm layers stay unchanged; `default` changes nothing. Raises UserError on an unknown name.
    """
    fill = INITS[one_of("model.init", name, INITS)]
    if fill is None:
        return
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def head(model: nn.Module, classes: int) -> nn.Linear | None:
    """Return the last linear layer with one output per class."""
    return next((m for m in [*model.modules()][::-1] if isinstance(m, nn.Linear) and m.out_features == classes), None)


def output_bias(model: nn.Module, class_frequencies: Sequence[float] | Tensor) -> None:
    """Set the bias of the last linear layer to the log frequency of each class (M7); counts work too.

    The weights stay: the first loss is exactly the label entropy if they give 0, and close to it if they give
    little. Raises UserError if no linear layer with a bias has one output per class, or if a class has no
    samples.
    """
    classes = len(class_frequencies)
    last = head(model, classes)
    if last is None:
        raise UserError(
            f"model.output_bias needs a linear layer with {classes} outputs, and {type(model).__name__} "
            "has none; type model.output_bias=default"
        )
    if last.bias is None:
        raise UserError(
            f"model.output_bias: the last layer of {type(model).__name__} has no bias; type model.output_bias=default"
        )
    frequencies = torch.as_tensor(class_frequencies, dtype=torch.float64)
    if not bool((frequencies > 0).all()):
        empty = int((frequencies <= 0).nonzero()[0])
        raise UserError(
            f"model.output_bias: class {empty} has no training samples, and log 0 is -inf; "
            "type model.output_bias=default"
        )
    with torch.no_grad():
        last.bias.copy_((frequencies / frequencies.sum()).log())
