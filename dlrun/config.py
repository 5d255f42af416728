"""Configs: one line for every mistake, before anything heavy is imported (`dlrun train …`).

The default in the YAML is the schema: the type of a key is the type of its default; null takes anything.
Ranges and choices that a type cannot tell stand in RULES.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["MONITORS", "UserError", "check_rules", "flatten", "lookup", "near_keys", "validate"]


class UserError(Exception):
    """A mistake of the user's: printed as one line, no traceback; `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


# columns of metrics.csv that may decide which epoch is best
MONITORS = ("val_loss", "val_acc", "train_loss", "train_acc")
ACTIVATIONS = ("relu", "leaky_relu", "prelu", "elu", "gelu", "silu", "tanh", "sigmoid", "softsign", "maxout")
INITS = ("default", "he_normal", "normal", "uniform", "glorot_uniform", "glorot_sigmoid", "orthogonal")


def _one_of(*options: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: v in options), f"one of {', '.join(options)}"


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: low <= v < math.inf), f"{low} or more"


POSITIVE = (lambda v: 0 < v < math.inf), "more than 0"
SHARE = (lambda v: 0 <= v < 1), "0 or more and less than 1"
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trainer.epochs": _at_least(1),
    "trainer.batch_size": _at_least(1),
    "trainer.eval_batch_size": _at_least(1),
    "trainer.accumulate": _at_least(1),
    "trainer.threads": _at_least(0),
    "trainer.clip_norm": _at_least(0),
    "trainer.clip_value": _at_least(0),
    "trainer.device": _one_of("auto", "cpu", "cuda", "mps"),
    "trainer.precision": _one_of("auto", "fp32", "bf16"),
    "trainer.monitor": _one_of(*MONITORS),
    "dataset.val_fraction": ((lambda v: 0 < v < 1), "more than 0 and less than 1"),
    "dataset.test_fraction": ((lambda v: 0 < v < 1), "more than 0 and less than 1"),
    "dataset.limit": _at_least(0),
    "dataset.image_size": _at_least(0),
    "dataset.memory_gb": _at_least(0),
    "dataset.channels": ((lambda v: v in (1, 3)), "1 or 3"),
    "model.activation": _one_of(*ACTIVATIONS),
    "model.norm": _one_of("batch", "layer", "group", "none"),
    "model.pool": _one_of("max", "avg", "stride", "none"),
    "model.stem": _one_of("small", "imagenet"),
    "model.init": _one_of(*INITS),
    "model.output_bias": _one_of("default", "frequency"),
    "model.dropout": SHARE,
    "model.depth": _at_least(1),
    "regularizer.l1": _at_least(0),
    "regularizer.l2": _at_least(0),
    "regularizer.max_norm": _at_least(0),
    "regularizer.dropout": SHARE,
    "regularizer.label_smoothing": SHARE,
    "optimizer.lr": _at_least(0),
    "optimizer.momentum": SHARE,
    "optimizer.weight_decay": _at_least(0),
    "scheduler.warmup": _at_least(0),
    "seed": ((lambda v: 0 <= v < 2**63), "0 or more"),
}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", list: "a list", dict: "keys"}


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every leaf; an empty mapping is a leaf."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name


def near_keys(key: str, names: list[str]) -> list[str]:
    """Return up to three of `names` that `key` may have meant: by spelling, or by its last part."""
    last = key.rpartition(".")[2]
    same = [n for n in names if n.rpartition(".")[2] == last]
    return (same or difflib.get_close_matches(key, names, 3, 0.7))[:3]


def validate(cfg: Mapping[str, Any], schema: Mapping[str, Any], *, added: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Hold a resolved config against the defaults it came from, and against RULES.

    `added` are keys that the user appended on purpose (`+key=value`). Raises UserError for the first key
    that is unknown, missing, of a wrong type or out of range, and for a folder or file that is not there.
    """
    _compare(cfg, schema, "", added)
    check_rules(cfg)


def check_rules(cfg: Mapping[str, Any]) -> None:
    """Hold a config against RULES, and its folders and files against the disk. Raises UserError."""
    for key, (holds, expected) in RULES.items():
        value = lookup(cfg, key)
        try:
            fits = value is None or holds(value)
        except TypeError:
            fits = False
        if not fits:
            raise UserError(f"{key}={value}: expected {expected}")
    _paths(cfg)
    _reaches(cfg)


def lookup(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _compare(cfg: Mapping[str, Any], schema: Mapping[str, Any], prefix: str, added: set[str]) -> None:
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        if value == "???":
            raise UserError(f"{name} is missing; type {name}=VALUE")
        if key not in schema:
            if any(name == a or name.startswith(f"{a}.") for a in added):
                continue
            near = near_keys(name, [f"{prefix}{n}" for n in flatten(schema)])
            hint = f"did you mean {' or '.join(near)}?" if near else "it stands in a config file of yours"
            raise UserError(f"{name}: no such key; {hint}")
        _type(name, value, schema[key], added)


def _type(name: str, value: Any, default: Any, added: set[str]) -> None:
    if isinstance(default, str) and default.startswith("${"):
        return  # it follows another key, which is checked where it stands; its own value is checked by RULES
    if default is None or default == "???" or value is None:
        if value is None and default not in (None, "???"):
            raise UserError(f"{name}=null: expected {_NAMES[type(default)]} such as {default}")
        return
    if isinstance(default, dict):
        if not isinstance(value, Mapping):
            raise UserError(f"{name}={value}: expected keys below it ({', '.join(default) or 'name: value'})")
        if default:
            _compare(value, default, f"{name}.", added)
        return
    kind = type(default)
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        raise UserError(f"{name}={value}: expected {_NAMES[kind]} such as {default}, found {_found(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: expected a finite number such as {default}")
    if isinstance(default, list) and default:
        for i, item in enumerate(value):
            _type(f"{name}[{i}]", item, default[0], added)


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f"the word {value!r}"
    return f"{_NAMES.get(type(value), type(value).__name__)}"


def _paths(cfg: Mapping[str, Any]) -> None:
    """A folder that nothing can download must be there, and so must a file."""
    dataset = cfg.get("dataset") or {}
    root, path = dataset.get("root"), dataset.get("path")
    if root is not None and "download" not in dataset and not Path(root).expanduser().is_dir():
        raise UserError(f"dataset.root={root}: no such folder; expected one that holds train/<class>/<image>")
    if path is not None and not Path(path).expanduser().is_file():
        raise UserError(f"dataset.path={path}: no such file; expected an .npz with x and y")


def _reaches(cfg: Mapping[str, Any]) -> None:
    """A regularizer that the chosen model or loss cannot use is an error, not a silence."""
    for key, part in (("dropout", "model"), ("label_smoothing", "loss")):
        if lookup(cfg, f"regularizer.{key}") and key not in (cfg.get(part) or {}):
            raise UserError(f"regularizer.{key} has no effect: this {part} has no {key}; choose another {part}=")
