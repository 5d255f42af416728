"""Every tensor of a checkpoint, wherever it is."""

from __future__ import annotations

from typing import Any

import torch


def tensors(node: Any) -> list[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return [node]
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]
