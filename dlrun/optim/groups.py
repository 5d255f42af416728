"""Parameter groups: which tensors decay, and learning rates by layer.

Reached by `optimizer.weight_decay=5e-4`, `optimizer.per_layer={stem: {lr: 0.01}}`, `optimizer.layer_decay=0.75` and
`optimizer.head_lr=10x` (practices R1, O7).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from dlrun.errors import UserError

__all__ = ["layer_rates", "parameter_groups", "similar"]

RATES = ("lr", "sgd_lr")  # Muon has both


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    per_layer: Mapping[str, Mapping[str, Any]] | None = None,
    known: Collection[str] = (),
    rates: Mapping[str, Mapping[str, float]] | None = None,
    starts: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into as few groups as possible, ready for a torch optimizer.

    Tensors of fewer than two dimensions (biases, norms) never decay (R1), unless overridden. `per_layer` maps a
    regular expression, searched in parameter names, to overrides; if several match, the later one wins, key by
    key. `known` names the keys that the optimizer has; empty means any. There is one group if nothing differs,
    which is all that L-BFGS allows. Every optimizer has the override `epochs`: the tensors train only for that
    many (see Scheduler). `rates` has learning rates by parameter, which `per_layer` overrides; `starts` the epochs
    after which a parameter trains.

    Raises UserError for a bad pattern, one that matches nothing, an unknown key, and a frozen model.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise UserError("optimizer: the model has no trainable parameters; unfreeze a layer")
    overrides = _overrides(names, per_layer or {}, known)
    groups: dict[str, dict[str, Any]] = {}
    for name in names:
        parameter = model.get_parameter(name)
        options = {**(rates or {}).get(name, {}), **overrides[name]}
        if start := (starts or {}).get(name):
            options["starts"] = start
        if weight_decay:
            options = {"weight_decay": weight_decay if parameter.ndim >= 2 else 0.0, **options}
        key = repr(sorted(options.items()))
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
    return list(groups.values())


def layer_rates(
    node: Mapping[str, Any], depths: Mapping[str, int], classifier: Collection[str]
) -> dict[str, dict[str, float]]:
    """Return the learning rates of each parameter by the keys `layer_decay` and `head_lr` of an optimizer's config.

    The rate of a layer is that of the next deeper one times layer_decay (Howard & Ruder 2018, ULMFiT, §3.2; Bao et al.
    2021, BEiT); `depths` by parameter, the highest for those of the `classifier`, whose rate is head_lr, or a multiple
    of lr if it is written as 10x. Empty if neither is set. Raises UserError for an optimizer without lr.
    """
    decay, head = float(node.get("layer_decay", 1.0)), node.get("head_lr")
    if decay == 1.0 and head is None:
        return {}
    base = {key: float(node[key]) for key in RATES if isinstance(node.get(key), (int, float))}
    if "lr" not in base:
        raise UserError("optimizer.layer_decay and optimizer.head_lr scale optimizer.lr, which this optimizer lacks")
    top = max(depths.values())
    found = {name: {key: rate * decay ** (top - depth) for key, rate in base.items()} for name, depth in depths.items()}
    for name in classifier if head is not None else ():
        times = isinstance(head, str) and head.endswith("x")
        number = float(str(head).removesuffix("x"))
        found[name] = {key: rate * number if times else number for key, rate in base.items()}
    return found


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
                f"similar names: {', '.join(similar(pattern, names))}"
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


def similar(pattern: str, names: Sequence[str]) -> list[str]:
    """Return parameter names, or their dotted prefixes, that resemble the pattern; else the first few."""
    plain = re.sub(r"[\^$*+?()\[\]|\\]", "", pattern)
    prefixes = {".".join(parts[:n]) for name in names if (parts := name.split(".")) for n in range(1, len(parts) + 1)}
    return get_close_matches(plain, sorted(prefixes), n=3, cutoff=0.5) or list(names[:3])
