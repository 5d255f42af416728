"""The data of a run, and the object by which the trials of a worker read it once (`dlrun train -m`, S6)."""

from __future__ import annotations

import inspect
import json
from typing import Any

from dlrun.config.targets import instantiate
from dlrun.data import Data, prepare
from dlrun.data.changes import Rows
from dlrun.data.jpegs import unasked
from dlrun.data.normalise import normalised

__all__ = ["SharedData", "read_data"]


def read_data(
    node: dict[str, Any],
    trust: list[str],
    *,
    fit_all: bool = False,
    share: bool = False,
    recorded: Rows | None = None,
) -> Data:
    """Read and prepare the data that the group `dataset` describes. Raises UserError.

    `fit_all`, `share` and `recorded` are those of `prepare`. A config from before `dataset.split` keeps its folds.
    """
    own = set(inspect.signature(prepare).parameters) - {"raw", "share", "recorded", "fit_all"}
    node = {"split": "position", "test_seed": node.get("split_seed", 0), **node}
    node = unasked(node)
    normalize = node.pop("normalize", "data")
    options = {k: node[k] for k in own if k in node}
    source = {k: v for k, v in node.items() if k not in own}
    passed = ("limit", "split_seed", "memory_gb", "test_fraction", "on_bad", "cache", "cache_gb")
    takes = {k: v for k, v in options.items() if k in passed}
    raw = instantiate(source, trust, "dataset", **takes)
    data = prepare(raw, **options, share=share, recorded=recorded, fit_all=fit_all)
    return normalised(data, normalize)


class SharedData:
    """Keeps the data of the latest run for the next ones of its owner, if they ask for the same.

    With `share` the pixels lie in the cache (dlrun/data/cache.py), so that processes of a machine hold one copy.
    """

    def __init__(self, *, share: bool) -> None:
        self._share = share
        self._asked = ""
        self._data: Data | None = None
        self._others: dict[str, Data] = {}  # the same data by dataset.normalize

    def read(self, node: dict[str, Any], trust: list[str], *, fit_all: bool = False) -> Data:
        """Return the data that is kept, or read other data in its place, as `read_data` does. Raises UserError."""
        node = unasked(node)
        source, normalize = {**node, "normalize": "data"}, node.get("normalize", "data")
        asked = json.dumps([source, trust, fit_all], sort_keys=True, default=str)
        if self._data is None or asked != self._asked:
            self._data = None  # before the other data is read, so that only one is in memory
            self._others.clear()
            self._data, self._asked = read_data(source, trust, fit_all=fit_all, share=self._share), asked
        if not isinstance(normalize, list):
            return self._data
        key = json.dumps(normalize)
        if key not in self._others:
            self._others[key] = normalised(self._data, normalize)
        return self._others[key]
