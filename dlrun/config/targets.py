"""The only way from a config to code: a `_target_` is built if it is on the allowlist or in `trust=[package]`.

Configs and run folders of other people are untrusted. A name is checked before anything is imported. The object that
it resolves to is checked again, by the module that defines it, so that an alias (`torch.nn.modules.os.system`) is
refused.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun.config.beside import allow
from dlrun.config.trust import stale
from dlrun.errors import UserError, first_line

__all__ = ["check_targets", "instantiate", "targets_of"]

# modules of dlrun whose own public classes and functions are allowed
OURS: tuple[str, ...] = (
    "dlrun.data.arrays",
    "dlrun.data.datasets",
    "dlrun.data.files",
    "dlrun.data.huggingface",
    "dlrun.data.shards",
    "dlrun.data.table",
    "dlrun.data.augment",
    "dlrun.losses",
    "dlrun.regularizers",
)
OURS += ("dlrun.objectives", "dlrun.optim.further", "dlrun.optim.muon", "dlrun.optim.schedulers")
MOVED = {"dlrun.data.files.arrays": "dlrun.data.arrays.arrays"}  # names in stored configs
FAMILIES = ("dlrun.models", "dlrun.objectives")  # packages of which every module is allowed: a new model is a new file

_OPTIMIZERS = "SGD Adagrad Adadelta RMSprop Adam AdamW Adamax NAdam RAdam ASGD Rprop LBFGS Adafactor Muon"
_SCHEDULERS = "ReduceLROnPlateau StepLR MultiStepLR ConstantLR LinearLR ExponentialLR CosineAnnealingLR"
_SCHEDULERS += " PolynomialLR CosineAnnealingWarmRestarts CyclicLR OneCycleLR"
_LOSSES = "CrossEntropyLoss MultiMarginLoss NLLLoss"
THEIRS = {
    **{f"torch.optim.{n}": n for n in _OPTIMIZERS.split()},
    **{f"torch.optim.lr_scheduler.{n}": n for n in _SCHEDULERS.split()},
    **{f"torch.nn.{n}": n for n in _LOSSES.split()},
}

# arguments that dlrun passes and a config may not replace: `packages` are those that a teacher's config may name
GIVEN = ("data", "packages", "device")


def check_targets(cfg: Any, trust: list[str]) -> None:
    """Refuse a config with a target, at any depth, that is neither on the allowlist nor trusted; imports nothing.

    Raises UserError with the key, the name, and what to type for a package of your own.
    """
    for key, node in _nodes(cfg, ""):
        _check_name(_joined(key, "_target_"), node["_target_"], trust)
        _refuse_given(node, str(node["_target_"]), trust, key, {})


def instantiate(node: Mapping[str, Any], trust: list[str], key: str, *args: Any, **given: Any) -> Any:
    """Call the `_target_` of `node` with the other keys, nested ones built first; bind only, with `_partial_`.

    Each of `given` is passed if the signature accepts it. Raises UserError naming `key` for an unknown target, an
    argument that the target does not accept, and a value that it rejects.
    """
    if "_target_" not in node:
        raise UserError(f"{key}._target_ is missing; expected the dotted name of a class, such as torch.optim.SGD")
    name = str(node["_target_"])
    target = _locate(f"{key}._target_", name, trust)
    _refuse_given(node, name, trust, key, given)
    own = {k: _build(v, trust, f"{key}.{k}") for k, v in node.items() if not k.startswith("_")}
    own.update({k: v for k, v in given.items() if k not in own and _accepts(target, k)})
    _check_arguments(target, name, key, own)
    if node.get("_partial_"):
        return functools.partial(target, *args, **own)
    try:
        return target(*args, **own)
    except UserError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        why = first_line(error)
        if "unexpected keyword argument" in why and "." not in key:
            # typing another _target_ keeps the keys of the chosen option
            why += f"; create an option for it, conf/{key}/NAME.yaml with _target_: {name} and the keys that it accepts"
        raise UserError(f"{key}: {name} rejected its arguments: {why}") from error


def _refuse_given(node: Mapping[str, Any], name: str, trust: list[str], key: str, given: Mapping[str, Any]) -> None:
    """Raise UserError if a config sets an argument that only dlrun may pass, such as the packages of a teacher."""
    for argument in GIVEN:
        if argument in node and (argument in given or not _trusted(name, trust)):
            raise UserError(f"{key}.{argument}: dlrun passes this argument to {name} itself; remove it")


def _build(value: Any, trust: list[str], key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return instantiate(value, trust, key)
        return {k: _build(v, trust, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_build(v, trust, f"{key}[{i}]") for i, v in enumerate(value)]
    return value


def targets_of(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yield key and name of every target of a config, at any depth."""
    return ((_joined(key, "_target_"), node["_target_"]) for key, node in _nodes(cfg, ""))


def _nodes(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield key and node of everything with a target."""
    if isinstance(node, Mapping) and node.get("_target_") is not None:
        yield key, node
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        if name != "_target_":
            yield from _nodes(value, _joined(key, name))


def _joined(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _check_name(key: str, name: Any, trust: list[str]) -> None:
    name = MOVED.get(name, name) if isinstance(name, str) else name
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(
            f"{key}={name}: expected module and class, such as torch.optim.SGD, or mynet.MyNet for MyNet in mynet.py"
        )
    module, last = ".".join(parts[:-1]), parts[-1]
    if name in THEIRS or last in _defined(module) or _trusted(name, trust):
        return
    package = parts[0]
    if package not in ("dlrun", "torch", "torchvision"):
        known = package in sys.stdlib_module_names
        hint = (
            "the standard library is not allowed"
            if known
            else f"if it is your own code, type trust=[{package}]{stale(Path.cwd())}"
        )
        raise UserError(f"{key}={name}: refused: not a class of dlrun; {hint}")
    near = difflib.get_close_matches(name, [*THEIRS, *(f"{module}.{n}" for n in _defined(module))], 1, 0.8)
    hint = f"did you mean {near[0]}?" if near else "not on the list of classes that a config may use"
    raise UserError(f"{key}={name}: refused; {hint}")


@functools.cache
def _defined(module: str) -> tuple[str, ...]:
    """Public names that a module of dlrun defines, read from its source, since importing it would import torch."""
    if module not in OURS and module.rpartition(".")[0] not in FAMILIES:
        return ()
    place = Path(__file__).resolve().parents[1].joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return ()
    made = [n for n in ast.parse(file.read_bytes()).body if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    return tuple(n.name for n in made if not n.name.startswith("_"))


def _trusted(name: str, trust: list[str]) -> bool:
    return any(name == t or name.startswith(f"{t}.") for t in trust)


def _locate(key: str, name: str, trust: list[str]) -> Any:
    _check_name(key, name, trust)
    name = MOVED.get(name, name)
    if _trusted(name, trust):
        allow(trust)
    parts = name.split(".")
    found: Any = None
    for i in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError as error:
            if error.name and not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"{key}={name}: importing it failed: {error}") from error
            continue
        except Exception as error:
            raise UserError(f"{key}={name}: importing it failed: {type(error).__name__}: {error}") from error
        for part in parts[i:]:
            found = getattr(found, part, None)
        break
    if found is None or not callable(found):
        raise UserError(f"{key}={name}: no such class{_near(parts)}")
    # for an alias the module that defines the object counts
    home, qualified = getattr(found, "__module__", "") or "", getattr(found, "__qualname__", "")
    if name in THEIRS:
        real = home.startswith("torch.") and qualified == THEIRS[name]
    else:
        real = qualified in _defined(home) or _trusted(home, trust)
    if not real:
        raise UserError(f"{key}={name}: refused: it resolves to {home}.{qualified}, neither allowed nor trusted")
    return found


def _near(parts: list[str]) -> str:
    try:
        names = dir(sys.modules[".".join(parts[:-1])])
    except KeyError:
        return f"; expected the package {parts[0]} to be installed, or in the folder where you start dlrun"
    near = difflib.get_close_matches(parts[-1], names, 1)
    return f"; did you mean {'.'.join([*parts[:-1], near[0]])}?" if near else ""


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _accepts(target: Any, name: str) -> bool:
    parameter = _parameters(target).get(name)
    return parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD


def _check_arguments(target: Any, name: str, key: str, own: Mapping[str, Any]) -> None:
    parameters = _parameters(target)
    if not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for argument in own:
        if argument not in parameters:
            near = difflib.get_close_matches(argument, parameters, 1)
            hint = f"did you mean {key}.{near[0]}?" if near else f"it accepts {', '.join(parameters)}"
            raise UserError(f"{key}.{argument}: {name} has no such argument; {hint}")
