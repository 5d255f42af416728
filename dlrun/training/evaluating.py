"""Logits that do not depend on the batch in which an image is evaluated (`dlrun train`, `dlrun predict`, E6).

Evaluation and prediction call `logits`, with the same normalisation and precision, so that predict gives exactly the
logits that evaluation gave. A matrix product rounds in another way for another number of rows: one thread with fewer
than 16, several threads with any number, since they divide the sums; and MKL takes other steps for a row that does not
begin at a multiple of 16 bytes. Here every product of a linear layer has ROWS rows of whole cache lines, for which the
place of a row makes no difference; convolutions have the same bits for two images or more.

Measured with torch 2.14 (MKL, oneDNN), mlp, cnn, resnet18 and resnet20, one and two threads; it holds for the same
machine, versions and number of threads. On accelerators the kernels depend on the batch, and so do the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["logits", "spread"]

ROWS, LEAST = 32, 4
LINE = 16  # values of 4 bytes in a cache line
PART = 256  # their accuracy is known within three points


class _FixedRows(TorchFunctionMode):
    """Linear layers in parts of ROWS rows, the last one filled up, each row with zeros to whole cache lines."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, more = x.reshape(-1, x.shape[-1]), -x.shape[-1] % LINE
    filled = F.pad(rows, (0, more, 0, -len(rows) % ROWS))  # a copy, so that it begins with a cache line
    if more or weight.data_ptr() % (4 * LINE):
        weight = F.pad(weight, (0, more))
    found = torch.cat([F.linear(part, weight, bias) for part in torch.split(filled, ROWS)])
    return found[: len(rows)].reshape(*x.shape[:-1], -1)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (B, K), float32, of images (B, C, H, W); a tiny batch is filled up with its last image."""
    if x.device.type != "cpu" or not len(x):
        found: Tensor = model(x)
        return found.float()
    count = len(x)
    if count < LEAST:
        x = torch.cat([x, x[-1:].expand(LEAST - count, -1, -1, -1)]).contiguous(memory_format=torch.channels_last)
    with _FixedRows():
        found = model(x)
    return found[:count].float()


def spread(count: int) -> Tensor:
    """Return the indices of the training images that are evaluated after every epoch: a tenth of them, 256 at most."""
    return torch.linspace(0, count - 1, max(1, min(PART, count // 10))).long()
