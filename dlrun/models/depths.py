"""Where a parameter lies between the images and the logits, for `optimizer.layer_decay=0.75` and `model.freeze` (O7).

Of a timm model the depths are those of its `group_matcher`. Of any other model they follow from the order of its
modules: a block is one depth, and so is a layer of weights outside of a block, with the norm after it. Lists and
sequences are entered, and so is a module that contains a list of two or more blocks of one class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dlrun.models.init import head

__all__ = ["classifiers", "depths"]

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def classifiers(model: nn.Module, classes: int) -> list[str]:
    """Return the names of the layers that return the logits: usually one, empty if none has an output per class.

    They are those that timm names, else the last linear layer, else the last convolution with so many outputs.
    """
    names = {id(module): name for name, module in model.named_modules() if name}
    if callable(named := getattr(model, "get_classifier", None)):
        found = named()
        theirs = [names[id(m)] for m in (found if isinstance(found, (list, tuple)) else [found]) if id(m) in names]
        if theirs and any(True for name in theirs for _ in model.get_submodule(name).parameters()):
            return theirs
    last = head(model, classes)
    if last is None:
        convolutions = (m for m in [*model.modules()][::-1] if isinstance(m, nn.Conv2d) and m.out_channels == classes)
        return [names[id(m)] for m in [*convolutions][:1] if id(m) in names]
    return [names[id(last)]] if id(last) in names else []


def depths(model: nn.Module, classes: int) -> dict[str, int]:
    """Return the depth of every parameter by name: 0 next to the images, the highest for the classifier."""
    found = _matched(model)
    if found is None:
        found, opened = {}, 0
        for names, opens in _units(model, ""):
            opened += opens
            found.update(dict.fromkeys((name for name in names if name not in found), max(opened, 1)))
    names = [name for name, _ in model.named_parameters()]  # of a weight with two names the first
    last = {name for place in classifiers(model, classes) for name in names if name.startswith(f"{place}.")}
    ranks = {depth: rank for rank, depth in enumerate(sorted({found[name] for name in names if name not in last}))}
    return {name: len(ranks) if name in last else ranks[found[name]] for name in names}


def _matched(model: nn.Module) -> dict[str, int] | None:
    """The depths that a model of timm names; None if it names none, or not all."""
    matcher: Any = getattr(model, "group_matcher", None)
    if not callable(matcher):
        return None
    try:
        from timm.models import group_parameters
    except ImportError:
        return None
    found = {str(name): int(depth) for name, depth in group_parameters(model, matcher(), reverse=True).items()}
    return found if found.keys() >= {name for name, _ in model.named_parameters()} else None


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[list[str], bool]]:
    """The parameters of each part in order, and whether the part is one depth deeper than the one before."""
    if own := [prefix + name for name, _ in module.named_parameters(recurse=False)]:
        yield own, False
    for name, child in module.named_children():
        parameters = dict(child.named_parameters(f"{prefix}{name}"))
        if isinstance(child, _LISTS) or _repeats(child):
            yield from _units(child, f"{prefix}{name}.")
        elif parameters:
            leaf = next(child.children(), None) is None
            weighs = any(p.ndim >= 2 for p in parameters.values()) and not isinstance(child, _NORMS)
            yield list(parameters), weighs or not leaf


def _repeats(module: nn.Module) -> bool:
    """Whether a list inside has two or more blocks of one class; a block has several layers of weights."""
    lists = (m for m in module.modules() if isinstance(m, _LISTS))
    return any(max(Counter(map(type, filter(_block, m.children()))).values(), default=0) > 1 for m in lists)


def _block(module: nn.Module) -> bool:
    return (
        not isinstance(module, _LISTS) and sum(p.ndim >= 2 for p in module.parameters()) > 1 and any(module.children())
    )
