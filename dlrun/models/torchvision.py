"""Any torchvision classifier, for fine-tuning too (M3): `dlrun train model=torchvision model.name=resnet18`.

`model.weights` is null, a name that torchvision knows (`DEFAULT`, downloaded once), or a file: a state dict
or a checkpoint of dlrun. All pretrained weights are used, except a classifier for another number of classes.
If the number of channels is not 3, the first convolution is replaced: pretrained filters are summed over the
colours and divided among the channels, so that a gray image gives the same output as in colour.
"""

from __future__ import annotations

import pickle
import re
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.layers import dropout_layer, one_of

__all__ = ["build"]

# outputs that exist during training only, and would be returned beside the logits
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 224,
    *,
    weights: str | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """The torchvision model `name`: (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    Auxiliary classifiers are omitted. `dropout` sets the rate of the model's own dropout layers, or adds one
    before the classifier if it has none; None keeps the rates of the model. Raises UserError on an unknown
    name or weights, weights that cannot be downloaded, read or fitted, and an unsupported image size.
    """
    import torchvision

    one_of("model.name", name, torchvision.models.list_models(module=torchvision.models))
    state = None if weights is None else _state(name, weights)
    model = _construct(name, image_size, num_classes)
    for module in model.modules():
        if hasattr(module, "inplace"):  # hooks and the gradient check read the inputs of activations
            module.inplace = False  # type: ignore[assignment]
    first = _replace_first_conv(model, in_channels)
    if state is not None:
        _load(model, state, first, f"model.weights={weights}")
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
        _try_shapes(model, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        least = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
        hint = f"; expected {least} or more" if image_size < least else ""
        reason = " ".join(str(error).split())
        raise UserError(f"model.name={name} cannot take images of {image_size} pixels{hint} ({reason})") from None
    return model


def _try_shapes(model: nn.Module, image_size: int) -> None:
    """Pass two images through on the meta device: computes only shapes, draws no random number."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    images = torch.empty(2, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        torch.func.functional_call(model.eval(), meta, (images,))
    model.train()


def _state(name: str, weights: str) -> dict[str, Tensor]:
    import torchvision

    known = torchvision.models.get_model_weights(name)
    if weights in known.__members__:
        return _download(known[weights], f"model.weights={weights}")
    path = Path(weights).expanduser()
    if not path.is_file():
        names = " ".join(known.__members__)
        raise UserError(f"model.weights={weights} is neither a file nor one of {name}'s weights: {names}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise UserError(f"model.weights={weights} is not a file of weights that torch can load") from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights={weights} has no state dict (a dict of tensors)")
    return copy(state)  # unlike dict(state), keeps the version of each module that torch stores in it


def _download(weights: Any, key: str) -> dict[str, Tensor]:
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
    return state


def _replace_first_conv(model: nn.Module, in_channels: int) -> str:
    """Give the first convolution `in_channels` channels and return its name."""
    name: str
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
    return name


def _head(model: nn.Module) -> str:
    names: list[str] = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return names[-1]


def _load(model: nn.Module, state: dict[str, Tensor], first: str, key: str) -> None:
    """Load all of `state` except a head of another size and auxiliary classifiers."""
    own = model.state_dict()
    head = [f"{_head(model)}.{kind}" for kind in ("weight", "bias")]
    filters, channels = state.get(f"{first}.weight"), own[f"{first}.weight"].shape[1]
    if filters is not None and filters.ndim == 4 and filters.shape[1] == 3 != channels:
        state[f"{first}.weight"] = filters.sum(1, keepdim=True).div(channels).repeat(1, channels, 1, 1)
    for name in list(state):
        other_classes = name in head and len(state[name]) != len(own[name])
        if other_classes or name.startswith(_AUXILIARY):
            del state[name]
        elif name in own and state[name].shape != own[name].shape:
            found, expected = list(state[name].shape), list(own[name].shape)
            raise UserError(f"{key}: {name} has shape {found}, the model expects {expected}")
    try:
        keys = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{key} does not fit the model: {' '.join(str(error).split())}") from None
    # files older than batch norm's counter lack it
    missing = [k for k in keys.missing_keys if k not in head and not k.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{key} lacks {missing[0]}, which the model needs")
    if keys.unexpected_keys:
        raise UserError(f"{key} has {keys.unexpected_keys[0]}, which the model does not have")


class _DropoutLinear(nn.Linear):
    """A linear layer with dropout before it; its parameters have their usual names."""

    dropout: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(x))


def _set_dropout(model: nn.Module, p: float) -> None:
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for layer in layers:
        layer.p = dropout_layer(p).p
    head = model.get_submodule(_head(model))
    if not layers and isinstance(head, nn.Linear):
        new = _DropoutLinear(head.in_features, head.out_features, bias=head.bias is not None)
        new.dropout = dropout_layer(p)
        new.weight, new.bias = head.weight, head.bias
        model.set_submodule(_head(model), new)
