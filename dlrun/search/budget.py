"""The time of a sweep: `search.hours`, over all its calls; each step of search=default has its share (S7).

No trial starts that would probably end too late. One that still runs at the end is stopped after its epoch, as pruned.
"""

from __future__ import annotations

import time
from statistics import median

from dlrun.search.plan import Plan, Round
from dlrun.search.steps import share

__all__ = ["Budget"]


class Budget:
    """The clock of a sweep; it runs while a process runs the sweep."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._before, self._began = plan, plan.spent, time.monotonic()
        self._started: dict[int, float] = {}
        self._lengths: list[float] = []

    def started(self, number: int) -> None:
        """Note the start of a trial."""
        self._started[number] = time.monotonic()

    def ended(self, number: int) -> None:
        """Note the end of a trial."""
        if (begun := self._started.pop(number, None)) is not None:
            self._lengths.append(time.monotonic() - begun)

    def keep(self) -> bool:
        """Note the time so far in the plan; returns whether it matters. A kill loses what came after."""
        self._plan.spent = round(self._spent(), 1)
        return bool(self._limit())

    def closed(self, now: Round) -> bool:
        """Whether no further trial of a round may start: it would not end within the share of its step."""
        limit = self._limit()
        if not limit:
            return False
        part = share(self._plan, now.stage) if self._plan.search.get("steps") else 1.0
        return self._spent() + (median(self._lengths) if self._lengths else 0.0) > limit * part

    def over(self) -> bool:
        """Whether the time is up."""
        return bool(self._limit()) and self._spent() > self._limit()

    def _limit(self) -> float:
        return 3600 * float(self._plan.search.get("hours") or 0.0)

    def _spent(self) -> float:
        return self._before + time.monotonic() - self._began
