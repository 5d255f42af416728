"""Data that the runs of one process share: a sweep's worker reads them once."""

from __future__ import annotations

import inspect
import json
from typing import Any

from dlrun.config.targets import instantiate
from dlrun.data import Data, prepare

__all__ = ["keep_data", "prepared", "read_data"]


_prepared: dict[str, Data] | None = None


_share = False


def keep_data(*, share: bool) -> None:
    """Let the runs of this process share the data that the last of them prepared, if they ask for the same.

    With `share` other processes that do so hold its pixels together with this one (dlrun/data/cache.py).
    """
    global _prepared, _share
    _prepared, _share = {}, share


def prepared() -> bool:
    """Say whether runs of this process share data."""
    return _prepared is not None


def read_data(node: dict[str, Any], trust: list[str]) -> Data:
    if _prepared is None:
        return _read(node, trust)
    asked = json.dumps([node, trust], sort_keys=True, default=str)
    if asked not in _prepared:
        _prepared.clear()
        _prepared[asked] = _read(node, trust)
    return _prepared[asked]


def _read(node: dict[str, Any], trust: list[str]) -> Data:
    own = set(inspect.signature(prepare).parameters) - {"raw", "share"}
    options = {k: node[k] for k in own if k in node}
    source = {k: v for k, v in node.items() if k not in own}
    takes = {k: v for k, v in options.items() if k in ("limit", "split_seed", "memory_gb", "test_fraction", "on_bad")}
    return prepare(instantiate(source, trust, "dataset", **takes), **options, share=_share)
