"""The only door from a config to code: a `_target_` is built when it is on the allowlist, or in a package of `trust=`.

Configs and run folders of other people are untrusted. A name is looked at before anything is imported, and the object
it leads to is looked at again by its own module and name, so an alias (`torch.nn.modules.os.system`) leads nowhere.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from dlrun.config import UserError

__all__ = ["check_targets", "instantiate"]

# public classes and functions defined in these modules of ours
OURS = ("dlrun.data.datasets", "dlrun.data.files", "dlrun.data.augment", "dlrun.losses", "dlrun.regularizers", "dlrun.objectives")
OURS += ("dlrun.optim.schedulers",)
FAMILIES = ("dlrun.models.",)  # every module below; a new model is a new file

_OPTIMIZERS = "SGD Adagrad Adadelta RMSprop Adam AdamW Adamax NAdam RAdam ASGD Rprop LBFGS Adafactor Muon"
_SCHEDULERS = "ReduceLROnPlateau StepLR MultiStepLR ConstantLR LinearLR ExponentialLR CosineAnnealingLR"
_SCHEDULERS += " PolynomialLR CosineAnnealingWarmRestarts CyclicLR OneCycleLR"
_LOSSES = "CrossEntropyLoss MultiMarginLoss"
THEIRS = {
    **{f"torch.optim.{n}": n for n in _OPTIMIZERS.split()},
    **{f"torch.optim.lr_scheduler.{n}": n for n in _SCHEDULERS.split()},
    **{f"torch.nn.{n}": n for n in _LOSSES.split()},
}


def check_targets(cfg: Any, trust: list[str]) -> None:
    """Refuse a config that names, at any depth, code that is neither ours nor trusted; imports nothing.

    Raises UserError with the key, the name, and what to type for a package of one's own.
    """
    for key, name in _targets(cfg, ""):
        _check_name(key, name, trust)


def instantiate(node: Mapping[str, Any], trust: list[str], key: str, *args: Any, **given: Any) -> Any:
    """Build what `node` describes: `_target_` called with its keys, nested nodes first; `_partial_` binds only.

    `given` are passed where the signature takes them. Raises UserError naming `key` for an unknown target, an
    argument that the target does not take, and a value that it refuses.
    """
    name = str(node["_target_"])
    target = _locate(f"{key}._target_", name, trust)
    own = {k: _build(v, trust, f"{key}.{k}") for k, v in node.items() if not k.startswith("_")}
    own.update({k: v for k, v in given.items() if k not in own and _takes(target, k)})
    _check_arguments(target, name, key, own)
    if node.get("_partial_"):
        return functools.partial(target, *args, **own)
    try:
        return target(*args, **own)
    except UserError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{key}: {name} refused its arguments: {str(error).splitlines()[0]}") from error


def _build(value: Any, trust: list[str], key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return instantiate(value, trust, key)
        return {k: _build(v, trust, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_build(v, trust, f"{key}[{i}]") for i, v in enumerate(value)]
    return value


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        below = f"{key}.{name}" if key else str(name)
        if name == "_target_":
            if value is not None:
                yield below, value
        else:
            yield from _targets(value, below)


def _check_name(key: str, name: Any, trust: list[str]) -> None:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise UserError(f"{key}={name}: expected the dotted name of a class, such as torch.optim.SGD")
    module = name.rpartition(".")[0]
    private = any(part.startswith("_") for part in name.split("."))
    if name in THEIRS or (not private and (module in OURS or module.startswith(FAMILIES))) or _trusted(name, trust):
        return
    package = name.split(".")[0]
    if package in ("dlrun", "torch", "torchvision"):
        near = difflib.get_close_matches(name, list(THEIRS), 1, 0.8)
        hint = f"did you mean {near[0]}?" if near else "it is not on dlrun's list of classes that a config may name"
        raise UserError(f"{key}={name}: refused; {hint}")
    raise UserError(f"{key}={name}: refused: not one of dlrun's; if {package} is your own code, type trust=[{package}]")


def _trusted(name: str, trust: list[str]) -> bool:
    return any(name == t or name.startswith(f"{t}.") for t in trust)


def _locate(key: str, name: str, trust: list[str]) -> Any:
    _check_name(key, name, trust)
    parts = name.split(".")
    found: Any = None
    for i in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                raise UserError(f"{key}={name}: importing it failed: {error}") from error
            continue
        for part in parts[i:]:
            found = getattr(found, part, None)
        break
    if found is None or not callable(found):
        raise UserError(f"{key}={name}: no such class{_near(parts)}")
    home, qualified = getattr(found, "__module__", "") or "", getattr(found, "__qualname__", "")
    if name in THEIRS:
        real = home.startswith("torch.") and qualified == THEIRS[name]
    else:
        real = home in OURS or home.startswith(FAMILIES) or _trusted(home, trust)
    if not real:
        raise UserError(f"{key}={name}: refused: it leads to {home}.{qualified}, which is not dlrun's nor trusted")
    return found


def _near(parts: list[str]) -> str:
    try:
        names = dir(importlib.import_module(".".join(parts[:-1])))
    except ImportError:
        return f"; is the package {parts[0]} installed, or in the folder that dlrun is started from?"
    near = difflib.get_close_matches(parts[-1], names, 1)
    return f"; did you mean {'.'.join([*parts[:-1], near[0]])}?" if near else ""


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _takes(target: Any, name: str) -> bool:
    parameter = _parameters(target).get(name)
    return parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD


def _check_arguments(target: Any, name: str, key: str, own: Mapping[str, Any]) -> None:
    parameters = _parameters(target)
    if not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for argument in own:
        if argument not in parameters:
            near = difflib.get_close_matches(argument, parameters, 1)
            hint = f"did you mean {key}.{near[0]}?" if near else f"it takes {', '.join(parameters)}"
            raise UserError(f"{key}.{argument}: {name} takes no such argument; {hint}")
