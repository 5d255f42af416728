"""The checks before training: `dlrun check`, and the gate of `dlrun train` (C1-C10)."""

from __future__ import annotations

from dlrun.checks.result import Result, lines, noteworthy, summary, table
from dlrun.checks.runner import run

__all__ = ["Result", "lines", "noteworthy", "run", "summary", "table"]
