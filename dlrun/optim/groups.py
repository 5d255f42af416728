"""Parameter groups: which tensors decay, and learning rates by layer.

Reached by `optimizer.weight_decay=5e-4` and `optimizer.per_layer={stem: {lr: 0.01}}` (practices R1, O7).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from dlrun.errors import UserError

__all__ = ["parameter_groups"]


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    per_layer: Mapping[str, Mapping[str, Any]] | None = None,
    known: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into as few groups as possible, ready for a torch optimizer.

    Tensors of fewer than two dimensions (biases, norms) never decay (R1), unless overridden. `per_layer` maps a
    regular expression, searched in parameter names, to overrides; if several match, the later one wins, key by
    key. `known` names the keys that the optimizer has; empty means any. There is one group if nothing differs,
    which is all that L-BFGS allows. Every optimizer has the override `epochs`: the tensors train only for that
    many (see Scheduler).

    Raises UserError for a bad pattern, one that matches nothing, an unknown key, and a frozen model.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise UserError("optimizer: the model has no trainable parameters; unfreeze a layer")
    overrides = _overrides(names, per_layer or {}, known)
    groups: dict[str, dict[str, Any]] = {}
    for name in names:
        parameter = model.get_parameter(name)
        options = dict(overrides[name])
        if weight_decay:
            options = {"weight_decay": weight_decay if parameter.ndim >= 2 else 0.0, **options}
        key = repr(sorted(options.items()))
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
    return list(groups.values())


def _overrides(
    names: list[str], per_layer: Mapping[str, Mapping[str, Any]], known: Collection[str]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for pattern, options in per_layer.items():
        try:
            matched = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            message = f"optimizer.per_layer: {pattern!r} is not a regular expression: {error}"
            raise UserError(message) from None
        if not matched:
            raise UserError(
                f"optimizer.per_layer: {pattern!r} matches no trainable parameter; "
                f"similar names: {', '.join(_near(pattern, names))}"
            )
        for option in options:
            if known and option not in (*known, "epochs"):
                # torch would store an unknown key and ignore it
                raise UserError(
                    f"optimizer.per_layer: {pattern!r} sets {option!r}, which the optimizer does not have; "
                    f"expected one of: {', '.join(sorted({*known, 'epochs'}))}"
                )
        epochs = options.get("epochs", 1)
        if isinstance(epochs, bool) or not isinstance(epochs, (int, float)) or not epochs > 0:
            raise UserError(f"optimizer.per_layer: {pattern!r} sets epochs={epochs}: expected a number above 0")
        for name in matched:
            found[name].update(options)
    return found


def _near(pattern: str, names: list[str]) -> list[str]:
    """Parameter names, or their dotted prefixes, that resemble the pattern; else the first few."""
    plain = re.sub(r"[\^$*+?()\[\]|\\]", "", pattern)
    prefixes = {".".join(parts[:n]) for name in names if (parts := name.split(".")) for n in range(1, len(parts) + 1)}
    return get_close_matches(plain, sorted(prefixes), n=3, cutoff=0.5) or names[:3]
