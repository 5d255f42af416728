"""A verdict on a run: what was found, a number, and the override to try (B1–B4, D6).

Kept in result.json, shown by `dlrun train`, `dlrun compare` and `dlrun report`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Severity", "summary"]

Severity = Literal["stop", "warn"]  # stop: training on is a waste; warn: the run can be better


@dataclass(frozen=True)
class Finding:
    """One verdict: `sentence` contains `number`; `try_` holds the overrides to type, empty if none would help.

    `dlrun train --from RUN` with these words repeats the run with the advice followed.
    """

    name: str
    severity: Severity
    sentence: str
    number: float
    try_: str

    @property
    def text(self) -> str:
        """The sentence and the override, on one line."""
        return f"{self.sentence}: try {self.try_}" if self.try_ else self.sentence

    def record(self) -> dict[str, Any]:
        """The finding as JSON types, for result.json: `name severity sentence number try`."""
        found = asdict(self)
        found["number"] = self.number if math.isfinite(self.number) else None
        found["try"] = found.pop("try_")
        return found


def summary(findings: Iterable[Finding | Mapping[str, Any]]) -> str:
    """Return the names of findings, or of their records, for a table; `none` for a healthy run."""
    return " ".join(f.name if isinstance(f, Finding) else str(f["name"]) for f in findings) or "none"
