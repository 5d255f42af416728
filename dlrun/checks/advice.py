"""Overrides that a message suggests: only keys that the config has, with another value (`dlrun check`)."""

from __future__ import annotations

import traceback
from pathlib import Path

from dlrun.config.schema import lookup
from dlrun.training.experiment import Experiment

__all__ = ["advice", "limited", "raised_at"]


def advice(exp: Experiment, *words: str) -> str:
    """Return "; try …" with the overrides that would change something, the first one per key; "" if none would.

    For example, a custom model has no model.activation, and model.init=default changes nothing if it is set already.
    """
    plain = exp.cfg.plain
    chosen: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        now = plain.get("choices", {}).get(key) if "." not in key else lookup(plain, key)
        if now is not None and not _same(now, value):
            chosen.setdefault(key, word)
    return f"; try {' '.join(chosen.values())}" if chosen else ""


def limited(exp: Experiment) -> str:
    """Return " or raise dataset.limit=N" if a limit leaves samples out, else ""."""
    limit = exp.cfg.dataset.get("limit")
    return f" or raise dataset.limit={limit}" if limit else ""


def _same(now: float | str | bool, value: str) -> bool:
    try:
        return float(now) == float(value)
    except (TypeError, ValueError):
        return str(now).lower() == value


def raised_at(error: BaseException) -> str:
    """Return " at FILE:LINE", the innermost frame of a traceback outside of libraries and dlrun, or ""."""
    ours = Path(__file__).resolve().parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if "site-packages" not in file.parts and ours not in file.resolve().parents and file.is_file():
            return f" at {file.name}:{frame.lineno}"
    return ""
