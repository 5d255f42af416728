"""When table.csv of a sweep is written: soon after each trial, but never for more than a twentieth of the time (S10).

The table is replaced whole, so that a reader never sees a part of it; with thousands of trials that takes a while. A
kill in between loses rows of the table alone: what a trial was and did is in its folder and in the study.
"""

from __future__ import annotations

import time
from pathlib import Path

from dlrun.folders import sweep as sweep_folder
from dlrun.search import summary
from dlrun.search.plan import Plan
from dlrun.search.results import Results

__all__ = ["Table"]

SHARE = 0.05  # of the time may be spent on tables


class Table:
    """The table of a sweep that runs; `plan` is stored beside it if it keeps the time of the sweep."""

    def __init__(self, folder: Path, results: Results, plan: Plan) -> None:
        self._folder, self._results, self._plan = folder, results, plan
        self._stale, self._next = False, 0.0

    def changed(self) -> None:
        """Note that a trial has ended, and write the table if it is time."""
        self._stale = True
        self.look()

    def look(self) -> None:
        """Write the table if it lacks a trial and it is time."""
        if self._stale and time.monotonic() > self._next:
            self.write()

    def write(self) -> Path | None:
        """Write the table now; returns the file, None without a trial."""
        began = time.monotonic()
        rows = summary.rows(self._results, self._plan)
        written = sweep_folder.write_table(self._folder, rows) if rows else None
        now = time.monotonic()
        self._stale, self._next = False, now + (now - began) / SHARE
        return written
