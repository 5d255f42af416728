"""How long a trial may take, and how often its surroundings may fail: `search.timeout`, `search.retries`.

A full disk or a process that somebody killed is no failure of a trial.
"""

from __future__ import annotations

import time

from dlrun.search.launchers.protocol import Ended
from dlrun.search.study import Trial

__all__ = ["Patience"]

ATTEMPTS = 3  # of a trial whose process is lost, or whose disk is full
PAUSE = 1.0  # seconds before the next attempt on a full disk


class Patience:
    """The clocks of running trials, and by trial in `outside` how often its surroundings failed."""

    def __init__(self) -> None:
        self.outside: dict[int, int] = {}
        # the lock of each running trial, and when it was first seen, by a clock that nobody sets
        self._began: dict[int, tuple[str, float]] = {}

    def late(self, number: int, word: str, before: str, limit: float) -> bool:
        """Whether a trial takes longer than `limit` seconds (0: none) since it locked its folder.

        `word` is that of the lock now (`folders.disk.token`), `before` that before its process started, which does not
        count.
        """
        if not limit or word == before:
            return False
        seen, since = self._began.get(number, ("", 0.0))
        if seen != word:
            self._began[number] = (word, time.monotonic())
            return False
        return time.monotonic() - since > limit

    def surrounded(self, ended: Ended, trial: Trial, retries: int) -> tuple[int, bool]:
        """Return the failures of a trial whose surroundings failed, which cost no retry, and whether it is left.

        A process that is lost each time was probably ended by its trial, such as by its memory. A full disk is left to
        `dlrun resume`.
        """
        number = self.outside[trial.number] = self.outside.get(trial.number, 0) + 1
        if ended.lost:
            return (retries + 1 if number >= ATTEMPTS else trial.failures), False
        time.sleep(PAUSE)
        return trial.failures, number >= ATTEMPTS
