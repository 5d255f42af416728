"""What the keys of result.json and sweep.yaml must be: somebody else's may hold anything (every verb that reads one).

Keys that dlrun does not know are left alone. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dlrun.folders.opener import Unreadable

__all__ = ["expect", "expect_plan"]

NUMBER = (int, float, type(None))
WORDS = ("a text", (str, type(None)))
NUMBERED = ("a number", NUMBER)
MAPPED = ("keys and values", (dict, type(None)))
LISTED = ("a list", (list, type(None)))
KINDS = {
    **dict.fromkeys(("status", "reason", "name", "note", "monitor", "host", "started", "ended", "checks"), WORDS),
    **dict.fromkeys(("epochs", "best_epoch", "tested_epoch", "seconds", "seed", "parameters", "pid"), NUMBERED),
    **dict.fromkeys(("test_samples", "test_seconds"), NUMBERED),
    "sparsity": ("a number", (*NUMBER, dict)),  # older runs have it by layer, with `all`
    **dict.fromkeys(("config", "versions", "data", "changed", "bootstrap", "code", "sparsity_by_layer"), MAPPED),
    **dict.fromkeys(("typed", "tags", "verdicts", "extended"), LISTED),
}
SCORES = ("_loss", "l_acc", "t_acc", "n_acc")
# of `data`: the splits by their number of images
SPLITS = {"train", "val", "test"}
PLAIN = {str, int, float, bool, type(None)}


def expect(file: Path | str, found: Mapping[str, Any]) -> None:
    """Raise Unreadable, which names the key, if a value is of a kind that dlrun never writes there."""
    for key, (words, kind) in _kinds(tuple(found)):
        if not isinstance(found[key], kind):
            raise Unreadable(file, f"{key}: expected {words}, found {_shown(found[key])}")
    for one in found.get("verdicts") or ():
        if not isinstance(one, dict) or not {*map(type, one.values())} <= PLAIN:
            raise Unreadable(file, f"verdicts: expected names and sentences, found {_shown(one)}")
    data = found.get("data") or {}
    for key in data.keys() & SPLITS:
        if not isinstance(data[key], NUMBER):
            raise Unreadable(file, f"data.{key}: expected a number, found {_shown(data[key])}")
    for key, kind in (("classes", str), ("shape", int)):
        values = data.get(key)
        if values is not None and not (isinstance(values, list) and {*map(type, values)} <= {kind}):
            raise Unreadable(file, f"data.{key}: expected a list, found {_shown(values)}")


@lru_cache(64)  # the runs of a table have the same keys
def _kinds(keys: tuple[str, ...]) -> list[tuple[str, tuple[str, Any]]]:
    """What is expected of those keys that dlrun knows, and of scores."""
    scores = (key for key in keys if key not in KINDS and key.endswith(SCORES))
    return [*((key, KINDS[key]) for key in keys if key in KINDS), *((key, NUMBERED) for key in scores)]


MOST = 1_000_000  # trials
TYPED, AXES = 2_000, 1_000  # that a person types; Hydra takes minutes to compose 100,000
AXIS: dict[str, Any] = {
    "key": str,
    "words": list,
    "low": NUMBER,
    "high": NUMBER,
    "log": bool,
    "whole": bool,
    "group": bool,
}
ROUND: dict[str, Any] = {"stage": int, "epochs": int, "first": int, "new": int, "grown": int}
ROUND |= {"axes": list, "kept": list, "said": (list, type(None))}
SEARCH: dict[str, Any] = {
    "sampler": str,
    "trials": int,
    "seed": int,
    "metric": str,
    "direction": str,
    "prune": str,
    "retries": int,
}
SEARCH |= {"timeout": NUMBER, "extend": bool, "max_extend": int, "average": NUMBER, "fresh": NUMBER}
SEARCH |= {"stages": (list, type(None))}
SEARCH |= {"hours": NUMBER, "steps": list, "storage": (str, type(None))}
PLAN: dict[str, Any] = {"fixed": list, "axes": list, "rounds": list, "search": dict, "flags": (dict, type(None))}
PLAN |= {"spent": NUMBER, "purpose": dict, "study": str}


def expect_plan(file: Path | str, found: Mapping[str, Any]) -> None:
    """Raise Unreadable, which names the key, if a sweep.yaml holds what dlrun never writes there."""
    _held(file, "", found, PLAN)
    _held(file, "search.", found.get("search") or {}, SEARCH)
    _words(file, "fixed", found.get("fixed"))
    _few(file, "fixed", found.get("fixed"), TYPED)
    axes = list(found.get("axes") or ())
    _few(file, "axes", axes, AXES)
    for one in found.get("rounds") or ():
        _held(file, "rounds.", one, ROUND)
        for key in ("stage", "epochs", "first", "new"):
            if not 0 <= one.get(key, 0) <= MOST:
                raise Unreadable(file, f"rounds.{key}: expected 0 to {MOST:,}, found {one[key]}")
        if not all(type(trial) is int for trial in one.get("kept") or ()):
            raise Unreadable(file, "rounds.kept: expected numbers of trials")
        _few(file, "rounds.axes", one.get("axes"), AXES)
        axes += one.get("axes") or ()
    for axis in axes:
        _held(file, "axes.", axis, AXIS)
        _words(file, "axes.words", axis.get("words"))
        if not all(math.isfinite(axis.get(end) or 0) for end in ("low", "high")):
            raise Unreadable(file, f"axes.{axis.get('key')}: expected a finite range")


def _held(file: Path | str, of: str, found: Any, kinds: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise Unreadable(file, f"{of.rstrip('.')}: expected keys and values, found {_shown(found)}")
    for key, kind in kinds.items():
        value = found.get(key)
        if key in found and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise Unreadable(file, f"{of}{key}: {_shown(value)} is not what dlrun writes there")


def _few(file: Path | str, key: str, found: Any, most: int) -> None:
    if found and len(found) > most:
        raise Unreadable(file, f"{key}: expected at most {most:,} entries, found {len(found):,}")


def _words(file: Path | str, key: str, found: Any) -> None:
    if not all(isinstance(word, str) for word in found or ()):
        raise Unreadable(file, f"{key}: expected words, found {_shown(found)}")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else type(value).__name__
