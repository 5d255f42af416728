"""Trials on joblib's workers: `hydra/launcher=joblib`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlrun.cores import cores
from dlrun.search.launchers.job import Job, away
from dlrun.search.launchers.protocol import Ended, here, shares, why, without_interrupts
from dlrun.vocabulary import Exit

__all__ = ["Joblib"]


def _hold_any_size() -> None:
    """Keep loky from replacing this process, whose id `interrupt` needs, because a trial's memory looks like a leak."""
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


class Joblib:
    """Processes of joblib's loky on this machine, one per executor: a death breaks an executor, not the sweep."""

    heartbeat = 0.0

    def __init__(self, workers: int, sweep: Path, devices: Collection[str] = ("auto",), each: int = 1) -> None:
        self._place = here(sweep)
        self.slots, self._cards = shares(workers, devices, each)
        self.threads = max(1, cores() // self.slots)
        self._idle: list[tuple[Any, Any, str | None]] = []
        self._busy: dict[Any, tuple[int, tuple[Any, Any, str | None]]] = {}  # by future: trial and executor

    def submit(self, job: Job) -> None:
        """Start a trial in a process that is free."""
        with without_interrupts():
            one = self._idle.pop() if self._idle else self._start()
            self._busy[one[0].submit(away, job, self._place)] = (job.number, one)

    def _start(self) -> tuple[Any, Any, str | None]:
        """An executor, the future of its process id, its GPU."""
        from joblib.externals.loky import ProcessPoolExecutor

        env = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        card = self._cards.pop() if self._cards else None
        if card is not None:
            env["CUDA_VISIBLE_DEVICES"] = card
        executor = ProcessPoolExecutor(max_workers=1, env=env, initializer=_hold_any_size)
        return executor, executor.submit(os.getpid), card

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
        from concurrent.futures import FIRST_COMPLETED, wait

        if not self._busy:
            time.sleep(seconds)
        found = []
        for future in wait(self._busy, seconds, FIRST_COMPLETED).done:
            number, one = self._busy.pop(future)
            if error := future.exception():
                self._drop(one)
                found.append(Ended(number, Exit.FAILED, why(error), lost=True))
            else:
                self._idle.append(one)
                found.append(Ended(number, *future.result()))
        return found

    def waiting(self) -> str:
        """Return "": a trial that is submitted has a free worker."""
        return ""

    def kill(self, number: int) -> None:
        """Kill the process of a trial; `wait` does not return it."""
        for future in [f for f, (n, _) in self._busy.items() if n == number]:
            self._drop(self._busy.pop(future)[1])

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted; they keep their last checkpoint."""
        for _, (_, process, _) in self._busy.values():
            with suppress(Exception):  # it is gone or has not started
                os.kill(process.result(1), signal.SIGTERM)

    def close(self) -> None:
        """End all processes."""
        for one in [*self._idle, *(one for _, one in self._busy.values())]:
            self._drop(one)
        self._idle, self._busy = [], {}

    def _drop(self, one: tuple[Any, Any, str | None]) -> None:
        executor, _, card = one
        executor.shutdown(wait=True, kill_workers=True)
        if card is not None:
            self._cards.append(card)
