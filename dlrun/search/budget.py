"""The time of a sweep: `search.hours`, over all its calls; steps of search=default and stages have shares (S4, S7).

No trial starts that would probably end too late. One that still runs at the end is stopped after its epoch, as pruned.
"""

from __future__ import annotations

import time
from math import prod
from statistics import median

from dlrun.search.plan import Plan, Round
from dlrun.search.steps import share

__all__ = ["Budget"]


class Budget:
    """The clock of a sweep; it runs while a process runs the sweep."""

    def __init__(self, plan: Plan, epochs: int) -> None:
        self._plan, self._before, self._began = plan, plan.spent, time.monotonic()
        self._epochs = epochs  # of a whole trial
        self._started: dict[int, tuple[float, int]] = {}
        self._lengths: list[float] = []  # seconds per epoch

    def started(self, number: int, now: Round) -> None:
        """Note the start of a trial in a round."""
        self._started[number] = time.monotonic(), self._length(now.stage)

    def ended(self, number: int) -> None:
        """Note the end of a trial."""
        if (begun := self._started.pop(number, None)) is not None:
            self._lengths.append((time.monotonic() - begun[0]) / begun[1])

    def keep(self) -> bool:
        """Note the time so far in the plan; returns whether it matters. A kill loses what came after."""
        self._plan.spent = round(self._spent(), 1)
        return bool(self._limit())

    def closed(self, now: Round, first: bool) -> bool:
        """Whether no further trial of a round may start: it would not end within the share of its step or stage.

        The `first` trial of a stage may take what is left of the time.
        """
        limit, part = self._limit(), 1.0
        if not limit:
            return False
        if self._plan.search.get("steps"):
            part = share(self._plan, now.stage)
        elif self._plan.search.get("stages") and not first:
            costs = [self._cost(stage + 1) for stage in range(len(self._plan.search["stages"]))]
            part = sum(costs[: now.stage]) / sum(costs)
        seconds = self._length(now.stage) * median(self._lengths) if self._lengths else 0.0
        return self._spent() + seconds > limit * part

    def over(self) -> bool:
        """Whether the time is up."""
        return bool(self._limit()) and self._spent() > self._limit()

    def _length(self, stage: int) -> int:
        """The epochs of a trial in a stage, beyond those of the stages before; of a plain search all of them."""
        ends = [one["epochs"] or self._epochs for one in self._plan.search.get("stages") or ()][:stage]
        before = min(max(ends[:-1], default=0), self._epochs)
        return max(1, min(ends[-1] if ends else self._epochs, self._epochs) - before)

    def _cost(self, stage: int) -> float:
        """The epochs of all trials of a stage, of each that the first stage has."""
        kept = prod(float(one.get("keep", 0.3)) for one in self._plan.search["stages"][1:stage])
        return kept * self._length(stage)

    def _limit(self) -> float:
        return 3600 * float(self._plan.search.get("hours") or 0.0)

    def _spent(self) -> float:
        return self._before + time.monotonic() - self._began
