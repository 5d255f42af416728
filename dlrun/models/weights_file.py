"""Files of weights, read as data: `.pt` and `.pth` with weights_only=True, `.safetensors` (`model.weights=FILE`, M3).

Nothing is unpickled. A `.safetensors` file is read here: its header is JSON, and the rest are the bytes of its tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.errors import UserError

__all__ = ["Weights", "digest", "read"]

# where training programs put the weights in their checkpoints
INSIDE = ("model", "state_dict", "model_state_dict", "net", "weights")
# what wrappers put before every name: torch.compile, DataParallel, Lightning
WRAPPERS = ("_orig_mod.", "module.", "model.")
LIMIT = 100_000_000  # bytes of a header, as in the safetensors library
KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass
class Weights:
    """The tensors of a file by name, and its SHA-256; `ordered`: they are in the order of the layers."""

    tensors: dict[str, Tensor]
    source: str
    sha256: str = ""
    ordered: bool = True
    classes: tuple[str, ...] = field(default=())  # of the head's rows, if they are known


def read(path: Path, key: str, part: str = "") -> Weights:
    """Read a file of weights; `part` names the entry of a checkpoint, such as `ema`. Raises UserError that names `key`.

    Prefixes that wrappers put before all names are removed.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = _safetensors(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of what it is about to refuse
                loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = _state(loaded, part)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError):
        raise UserError(
            f"{key} is not a file of weights that torch can load: expected .pt, .pth or .safetensors"
        ) from None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key} has no state dict (a dict of tensors)")
    state = copy(state)  # unlike dict(state), keeps the version of each module that torch stores in it
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            for name in list(state):
                state[name.removeprefix(prefix)] = state.pop(name)
    return Weights(state, str(path), digest(path), path.suffix != ".safetensors")


def _state(loaded: Any, part: str) -> Any:
    if not isinstance(loaded, dict):
        return None
    names = (part,) if part else INSIDE
    return next((loaded[name] for name in names if isinstance(loaded.get(name), dict)), None if part else loaded)


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises ValueError, KeyError or TypeError for a file that is not intact."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(LIMIT, len(data) - 8):
        raise ValueError("header")
    header = json.loads(data[8 : 8 + size])
    body, found = bytearray(data[8 + size :]), {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = KINDS[about["dtype"]], [int(n) for n in about["shape"]]
        start, end = (int(n) for n in about["data_offsets"])
        count = math.prod(shape)
        if min(shape, default=0) < 0 or not 0 <= start <= end <= len(body) or end - start != count * dtype.itemsize:
            raise ValueError(name)
        flat = torch.frombuffer(body, dtype=torch.uint8, count=end - start, offset=start) if count else torch.empty(0)
        found[name] = (flat.clone().view(dtype) if count else torch.empty(0, dtype=dtype)).reshape(shape)
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()
