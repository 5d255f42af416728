"""How long a trial may take, and how often its surroundings may fail: `search.timeout`, `search.retries`.

A full disk, a process that somebody killed or a node that is gone or taken away is no failure of a trial.
"""

from __future__ import annotations

import time

from dlrun.folders.lease import STALE
from dlrun.search.launchers.protocol import Ended
from dlrun.search.study import Trial
from dlrun.vocabulary import Exit

__all__ = ["Patience"]

ATTEMPTS = 3  # of a trial whose process is lost, or whose disk is full
PAUSE = 1.0  # seconds before the next attempt on a full disk


class Patience:
    """The clocks of running trials, and by trial in `outside` how often its surroundings failed."""

    def __init__(self) -> None:
        self.outside: dict[int, int] = {}
        # the lock of each running trial, and when it was first seen, by a clock that nobody sets
        self._began: dict[int, tuple[str, float]] = {}
        self._signs: dict[int, tuple[tuple[str, float], float]] = {}
        self._reached: dict[int, int] = {}  # the epoch of a trial when its surroundings failed

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

    def silent(self, number: int, sign: tuple[str, float], before: str, limit: float) -> bool:
        """Whether a trial on another machine has given no sign of life for `limit` seconds (0: that is its launcher's).

        `sign` is that of its lock now (`folders.disk.sign`), whose holder renews it every few seconds.
        """
        if not limit or sign[0] in ("", before):
            return False
        seen, since = self._signs.get(number, (None, 0.0))
        if seen != sign:
            self._signs[number] = (sign, time.monotonic())
            return False
        return time.monotonic() - since > max(limit, STALE)

    def surrounded(self, ended: Ended, trial: Trial, retries: int) -> tuple[int, bool]:
        """Return the failures of a trial whose surroundings failed, which cost no retry, and whether it is left.

        A process that is lost each time without getting further was probably ended by its trial, such as by its memory.
        A full disk is left to `dlrun resume`.
        """
        further = trial.seen > self._reached.get(trial.number, 0)
        self._reached[trial.number] = trial.seen
        number = self.outside[trial.number] = 1 if further else self.outside.get(trial.number, 0) + 1
        if ended.lost or ended.code == Exit.INTERRUPTED:
            return (retries + 1 if number >= ATTEMPTS else trial.failures), False
        time.sleep(PAUSE)
        return trial.failures, number >= ATTEMPTS
