"""The processes of one training wait until all are there, and say for whom (`dlrun train trainer.devices=2`, srun).

A port that nobody answers at is looked at from here, since torch prints a trace for each that it cannot reach.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dlrun.config.ranks import Rank
from dlrun.errors import UserError, first_line
from dlrun.vocabulary import Exit

__all__ = ["Arrival", "answers"]

LOOK = 0.1  # seconds between two looks
SILENT, REPEATED = 10.0, 60.0  # seconds of waiting without a message, and between two messages
REACHED = 2.0  # seconds for an answer from another machine
REPLIES = timedelta(minutes=10)  # of a store whose process may be stopped


class Arrival:
    """The wait of a process for the others, `within` a time in all; `address` is where they meet.

    What it raises is one line: who is missing, where they were waited for, what to look at.
    """

    def __init__(self, place: Rank, within: timedelta) -> None:
        self._rank, self._world = place.rank, place.world
        self.address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._began, self._seconds = time.monotonic(), within.total_seconds()
        self._next = SILENT

    def store(self) -> TCPStore:
        """Return the store that all share: torchrun's, or else that of the first process."""
        keeps = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        while not keeps and not answers(self.address):
            self._wait(lambda: [0])
        host, port = self.address
        try:
            store = TCPStore(host, port, self._world, keeps, REPLIES, wait_for_workers=False, multi_tenant=True)
        except (dist.DistStoreError, dist.DistNetworkError, ValueError) as error:
            what = f"process {self._rank} of {self._world} cannot meet the others at {host}:{port}"
            hint = "MASTER_ADDR must be the machine of process 0, and MASTER_PORT a free port there"
            raise UserError(f"{what}: {first_line(error)}; {hint}", Exit.FAILED) from None
        self.address = host, store.port
        return store

    def complete(self, words: Any) -> None:
        """Return once all processes have come here with a store of the same `words`."""
        try:
            words.set(f"arrived {self._rank}", "")
            words.add("arrived", 1)
            while words.add("arrived", 0) < self._world:
                self._wait(lambda: [rank for rank in range(self._world) if not words.check([f"arrived {rank}"])])
        except (dist.DistStoreError, dist.DistNetworkError):
            host, port = self.address
            what = (
                f"process {self._rank} of {self._world}: process 0 at {host}:{port} ended before all others were there"
            )
            raise UserError(what, Exit.FAILED) from None

    def _wait(self, absent: Callable[[], list[int]]) -> None:
        """Wait a moment for some processes, and say so from time to time. Raises UserError if it took too long."""
        waited = time.monotonic() - self._began
        late = waited > self._seconds
        if late or waited > self._next:
            self._next += REPEATED
            missing = absent()
            if late:
                raise UserError(self._line(missing, waited), Exit.FAILED)
            if missing and {*range(self._rank)} <= {*missing}:  # the first of those that are there says it
                print(f"dlrun: {self._line(missing, waited)}", file=sys.stderr, flush=True)
        time.sleep(LOOK)

    def _line(self, missing: list[int], waited: float) -> str:
        shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        host, port = self.address
        hint = "start each with the same MASTER_ADDR and MASTER_PORT, and let every machine reach this address"
        if "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_STEP_ID" in os.environ:
            hint = "start this command in every task, as srun does, or `env -u SLURM_STEP_ID dlrun …` to train alone"
        who = f"process {self._rank} of {self._world} has been waiting for {waited:.0f} s at {host}:{port}"
        return f"{who} for {'process' if len(missing) == 1 else 'processes'} {shown}; {hint}"


def answers(address: tuple[str, int]) -> bool:
    """Whether anybody takes connections there."""
    with suppress(OSError), socket.create_connection(address, timeout=REACHED):
        return True
    return False
