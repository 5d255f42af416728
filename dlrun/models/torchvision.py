"""Any torchvision classifier, for fine-tuning too (M3): `dlrun train model=torchvision model.name=resnet18`.

`model.weights` is null, true or a name that torchvision knows (`DEFAULT`, downloaded once), or a file: a state dict
or a checkpoint of dlrun, .pt or .safetensors. All pretrained weights are used, except a classifier for another number
of classes.
If the number of channels is not 3, the first convolution is replaced: pretrained filters are summed over the
colours and divided among the channels, so that a gray image gives the same output as in colour.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.layers import dropout_layer, one_of
from dlrun.models.loading import heads, put
from dlrun.models.pretrained import named_file, try_shapes
from dlrun.models.weights_file import Weights

__all__ = ["build"]


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 224,
    *,
    weights: str | bool | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """The torchvision model `name`: (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    Auxiliary classifiers are omitted. `dropout` sets the rate of the model's own dropout layers, or adds one
    before the classifier if it has none; None keeps the rates of the model. Raises UserError on an unknown
    name or weights, weights that cannot be downloaded, read or fitted, and an unsupported image size.
    """
    import torchvision

    one_of("model.name", name, torchvision.models.list_models(module=torchvision.models))
    found = _weights(name, weights) if weights else None
    model = _construct(name, image_size, num_classes)
    for module in model.modules():
        if hasattr(module, "inplace"):  # hooks and the gradient check read the inputs of activations
            module.inplace = False  # type: ignore[assignment]
    _replace_first_conv(model, in_channels)
    if found is not None:
        put(model, found, f"model.weights={weights}", heads(model), ())
    if dropout is not None:
        _set_dropout(model, dropout)
    return model


def _construct(name: str, image_size: int, num_classes: int) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {"num_classes": num_classes}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        try_shapes(model, (3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        least = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
        hint = f"; expected {least} or more" if image_size < least else ""
        reason = " ".join(str(error).split())
        raise UserError(f"model.name={name} cannot take images of {image_size} pixels{hint} ({reason})") from None
    return model


def _weights(name: str, weights: str | bool) -> Weights:
    import torchvision

    known = torchvision.models.get_model_weights(name)
    chosen = "DEFAULT" if weights is True else str(weights)
    if chosen in known.__members__:
        return _download(known[chosen], f"model.weights={chosen}")
    return named_file(weights, f"{name}'s weights: true {' '.join(known.__members__)}")


def _download(weights: Any, key: str) -> Weights:
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{key}: {weights.url} could not be downloaded ({error}); "
            f"put the file into {folder} or type model.weights=FILE"
        ) from None
    for name in list(state):  # torchvision's densenet files use the names of an older module tree
        state[re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name)] = state.pop(name)
    return Weights(state, str(weights))


def _replace_first_conv(model: nn.Module, in_channels: int) -> None:
    """Give the first convolution `in_channels` channels."""
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels != in_channels:
        new = nn.Conv2d(
            in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
        model.set_submodule(name, new)


class _DropoutLinear(nn.Linear):
    """A linear layer with dropout before it; its parameters have their usual names."""

    dropout: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(x))


def _set_dropout(model: nn.Module, p: float) -> None:
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for layer in layers:
        layer.p = dropout_layer(p).p
    (name,) = heads(model)
    head = model.get_submodule(name)
    if not layers and isinstance(head, nn.Linear):
        new = _DropoutLinear(head.in_features, head.out_features, bias=head.bias is not None)
        new.dropout = dropout_layer(p)
        new.weight, new.bias = head.weight, head.bias
        model.set_submodule(name, new)
