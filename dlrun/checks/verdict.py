"""The verdict of a check: pass, warn, fail or skip, and the numbers it rests on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What was measured, what was expected, and one sentence with what to try."""

    status: str  # pass | warn | fail | skip
    value: str
    expected: str
    message: str
