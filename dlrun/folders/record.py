"""What the keys of result.json must be: a run of somebody else may hold anything (every verb that reads a run).

Keys that dlrun does not know are left alone. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.folders.opener import Unreadable

__all__ = ["expect"]

NUMBER = (int, float, type(None))
WORDS = ("a text", (str, type(None)))
NUMBERED = ("a number", NUMBER)
MAPPED = ("keys and values", (dict, type(None)))
LISTED = ("a list", (list, type(None)))
KINDS = {
    **dict.fromkeys(("status", "reason", "name", "note", "monitor", "host", "started", "ended", "checks"), WORDS),
    **dict.fromkeys(("epochs", "best_epoch", "tested_epoch", "seconds", "seed", "parameters", "pid"), NUMBERED),
    **dict.fromkeys(("test_samples", "test_seconds", "sparsity"), NUMBERED),
    **dict.fromkeys(("config", "versions", "data", "changed", "bootstrap", "code"), MAPPED),
    **dict.fromkeys(("typed", "tags", "verdicts", "extended"), LISTED),
}
SCORE = re.compile(r"(raw_|ema_|plain_)?(train|val|test)_(loss|acc|[a-z0-9_]+)")
# of `data`: the splits by their number of images
SPLITS = ("train", "val", "test")


def expect(file: Path | str, found: Mapping[str, Any]) -> None:
    """Raise Unreadable, which names the key, if a value is of a kind that dlrun never writes there."""
    for key, value in found.items():
        known = KINDS.get(key)
        if known is not None and not isinstance(value, known[1]):
            raise Unreadable(file, f"{key}: expected {known[0]}, found {_shown(value)}")
        if known is None and not isinstance(value, NUMBER) and key[-5:] in ("_loss", "l_acc", "t_acc", "n_acc"):
            raise Unreadable(file, f"{key}: expected a number, found {_shown(value)}")
    for one in found.get("verdicts") or ():
        if not isinstance(one, dict) or not all(isinstance(text, (str, *NUMBER)) for text in one.values()):
            raise Unreadable(file, f"verdicts: expected names and sentences, found {_shown(one)}")
    data = found.get("data") or {}
    for key in SPLITS:
        if not isinstance(data.get(key), NUMBER):
            raise Unreadable(file, f"data.{key}: expected a number, found {_shown(data[key])}")
    for key, kind in (("classes", str), ("shape", int)):
        values = data.get(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(one, kind) for one in values)):
            raise Unreadable(file, f"data.{key}: expected a list, found {_shown(values)}")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else type(value).__name__
