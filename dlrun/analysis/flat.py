"""Configs of ten thousand runs by dotted key, fast (`dlrun compare`, S10)."""

from __future__ import annotations

import contextlib
import gc
import json
import marshal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dlrun.errors import legible

__all__ = ["Known", "flat", "uncollected"]

PLAIN = {None: "null", True: "true", False: "false"}
Known = dict[tuple[str, bytes], dict[str, str]]  # the leaves of a group by its name and content


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Do not search for cycles: ten thousand configs have none, and looking takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def flat(config: Mapping[str, Any], known: Known) -> dict[str, str]:
    """Return the leaves by dotted key, as JSON writes them.

    `known` holds those of the groups so far: most groups of ten thousand configs are equal. Two are only if their bytes
    are, since 1 == 1.0 == True; marshal writes them faster than JSON does.
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if type(value) is not dict:
            found[f"{key}"] = _text(value)
            continue
        try:
            content = key, marshal.dumps(value, 2)
        except ValueError:  # a date in a config of YAML
            found.update(_leaves(value, f"{key}."))
            continue
        leaves = known.get(content)
        if leaves is None:
            leaves = known[content] = dict(_leaves(value, f"{key}."))
        found.update(leaves)
    return found


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if type(value) is dict:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield sys.intern(f"{prefix}{key}"), _text(value)


def _text(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return str(value) if value.isprintable() else legible(value)
    if kind is float or kind is int:
        return repr(value)
    return PLAIN[value] if kind is bool or value is None else json.dumps(value, default=str)
