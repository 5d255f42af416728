"""Any classifier of timm, for fine-tuning too (M3): `dlrun train model=timm model.name=efficientnet_lite0`.

Needs the extra: pip install 'dlrun[timm]'. `model.weights` is null, true (timm's own, downloaded once; `model.name` may
end in one of its tags, such as resnet18.a1_in1k) or a file: .pt, .pth or .safetensors. All pretrained weights are used,
except a classifier for another number of classes. Filters for another number of channels are those of the colours,
summed and divided among the channels.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from dlrun.errors import UserError, first_line
from dlrun.models.layers import one_of
from dlrun.models.loading import Loaded, heads, loaded, put, record
from dlrun.models.pretrained import named_file, try_shapes

__all__ = ["build"]

MISSING = "model=timm needs the package timm: pip install 'dlrun[timm]'"
PATIENCE = 5.0  # seconds for the first connection; the hub's own client retries for most of a minute


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 224,
    *,
    image_shape: tuple[int, int] | None = None,
    weights: str | bool | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """The timm model `name`: (B, in_channels, H, W) -> logits (B, num_classes).

    `dropout` before the classifier. Raises UserError without timm, for an unknown name, weights that cannot be
    downloaded, read or fitted, and images that the model does not take.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError(MISSING)
    import timm

    name = _known(name)
    shape = image_shape or (image_size, image_size)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, "drop_rate": dropout}
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        options["img_size"] = shape
    found = named_file(weights, "true (timm's own weights) and false") if weights not in (None, False, True) else None
    if weights is True:
        _require_download(timm.get_pretrained_cfg(name), name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=weights is True, **options)
        try_shapes(model, (in_channels, *shape))
    except Exception as error:  # of timm, of its hub's client, or of the first layer that does not fit
        key = f"model.weights=true: the weights of {name} cannot be had" if weights is True else f"model.name={name}"
        hint = "; download them elsewhere and type model.weights=FILE" if weights is True else ""
        size = f"images of {shape[0]}×{shape[1]} pixels and {in_channels} channels"
        raise UserError(f"{key}: cannot be built for {size} ({first_line(error)[:200]}){hint}") from None
    for module in model.modules():
        if hasattr(module, "inplace"):  # hooks and the gradient check read the inputs of activations
            module.inplace = False  # type: ignore[assignment]
    if found is not None:
        put(model, found, f"model.weights={weights}", heads(model), ())
    elif weights is True:
        _record(model, name)
    if (made := loaded(model)) is not None and made.head == "new":
        # some of timm's own starts are for training from scratch: EfficientNet's gives logits of 4 and a loss of 7
        for layer in (model.get_submodule(part) for part in heads(model)):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.reset_parameters()
    return model


def _known(name: str) -> str:
    """The name of a model, with its tag if it has one. Raises UserError with similar names."""
    import timm

    architecture, _, tag = str(name).partition(".")
    names = timm.list_models()
    if architecture not in names:
        one_of("model.name", architecture, names)
    if tag:
        tags = {full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)}
        one_of("model.name", name, [f"{architecture}.{one}" for one in tags])
    return str(name)


def _record(model: nn.Module, name: str) -> None:
    """Keep what timm loaded itself: everything but a classifier of another size."""
    cfg: Any = model.pretrained_cfg
    head, same = heads(model), cfg.get("num_classes") == getattr(model, "num_classes", 0)
    made = Loaded(f"timm {cfg.get('architecture', name)}.{cfg.get('tag', '')}".rstrip("."), "")
    for key, value in model.state_dict().items():
        new = not same and key.rpartition(".")[0] in head
        made.rows.append(
            {"name": key, "shape": list(value.shape), "state": "new" if new else "loaded", "found": key, "rows": ""}
        )
    made.head = "loaded" if same else "new"
    record(model, made)


def _require_download(cfg: Any, name: str) -> None:
    """Raise UserError if the weights of a model exist nowhere, or if the host that has them does not answer."""
    if cfg is None or not cfg.has_weights:
        raise UserError(f"model.weights=true: timm has no weights for {name}; omit it, or type model.weights=FILE")
    if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY", "HF_HUB_OFFLINE")) or _cached(cfg):
        return
    try:
        from huggingface_hub.constants import ENDPOINT

        host = urlsplit(ENDPOINT).hostname or ""
        socket.create_connection((host, 443), PATIENCE).close()
    except (OSError, ImportError) as error:
        raise UserError(
            f"model.weights=true: the weights of {name} could not be downloaded ({error}); "
            "download them elsewhere and type model.weights=FILE"
        ) from None


def _cached(cfg: Any) -> bool:
    """Whether the hub's client has the weights already."""
    try:
        from huggingface_hub import try_to_load_from_cache

        names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
        return any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, one), str) for one in names)
    except Exception:  # of another version of the client: ask the host
        return False
