"""Overrides that a message suggests: only keys that the config has, with another value (`dlrun check`)."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from dlrun.config.schema import lookup
from dlrun.training.experiment import Experiment

STANDARD = Path(sysconfig.get_paths()["stdlib"]).resolve()

__all__ = ["advice", "limited", "line_now", "raised_at"]


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
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if file := _others_code(frame.filename):
            return f" at {file.name}:{frame.lineno}"
    return ""


def line_now() -> str:
    """Return " at FILE:LINE", the innermost frame that runs now outside of libraries and dlrun, or ""."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if place := _others_code(frame.f_code.co_filename):
            return f" at {place.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _others_code(filename: str) -> Path | None:
    """The file of a frame, unless it is part of a library or of dlrun."""
    file, ours = Path(filename), Path(__file__).resolve().parents[1]
    foreign = "site-packages" not in file.parts and ours not in file.resolve().parents and file.is_file()
    foreign = foreign and STANDARD not in file.resolve().parents
    return file if foreign else None
