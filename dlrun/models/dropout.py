"""Other dropout rates for some layers: `regularizer.dropout_per_layer={stage3: 0.2, dropout: 0.5}` (O7, R2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from dlrun.errors import UserError
from dlrun.models.layers import dropout_layer

__all__ = ["set_rates"]


def set_rates(model: nn.Module, rates: Mapping[str, float]) -> None:
    """Set the rates of dropout layers, and add dropout behind sequences of layers, whose whole names match a pattern.

    Raises UserError for a pattern that is none, or that matches no such layer.
    """
    for pattern, rate in rates.items():
        key = f"regularizer.dropout_per_layer: {pattern!r}"
        try:
            p = dropout_layer(float(rate)).p
            found = [(name, m) for name, m in model.named_modules() if name and re.fullmatch(pattern, name)]
        except (re.error, TypeError, ValueError) as error:
            raise UserError(f"{key}: expected a regular expression and a rate, found {rate}: {error}") from None
        layers = [m for _, m in found if isinstance(m, _DropoutNd)]
        sequences = [m for _, m in found if isinstance(m, nn.Sequential)]
        for layer in layers:
            layer.p = p
        for sequence in sequences:
            sequence.add_module("dropout", nn.Dropout(p))
        if not layers and not sequences:
            kinds = (_DropoutNd, nn.Sequential)
            names = [name for name, m in model.named_modules() if name and isinstance(m, kinds)]
            raise UserError(f"{key} matches no dropout and no sequence of layers, such as {', '.join(names[:8])}")
