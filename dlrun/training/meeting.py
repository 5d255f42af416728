"""How the processes of one training find each other, wait, and tell why one has ended (`trainer.devices=2`).

Their words are JSON in the store of torch.distributed, which torchrun keeps, or else the first process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from dlrun.config import ranks
from dlrun.config.ranks import Rank
from dlrun.folders import lease
from dlrun.training.arrival import Arrival, answers

__all__ = ["Ended", "Meeting"]

T = TypeVar("T")
START = timedelta(minutes=10)  # until all processes have started
LOOK, REASON = 0.2, 3.0  # seconds between two looks for a word; and until the reason of another process must be there
PARENT_DIED = 1  # PR_SET_PDEATHSIG of sys/prctl.h


class Ended(Exception):
    """The first process ended before training, with this exit code: a check failed, or it was stopped."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class Meeting:
    """This process among others, `rank` of `world`: before training and after it, and if one of them fails.

    All are waited for, START or `within` a time. Until training the first one works alone, and the others wait for its
    word as long as it lives.
    """

    def __init__(self, place: Rank, within: timedelta | None = None) -> None:
        self.rank, self.world = place.rank, place.world
        if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun may be killed
            ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGTERM)
        ranks.published(place)
        arrival = Arrival(place, START if within is None else within)
        store = arrival.store()
        self._address = arrival.address
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store may be the same one
        self._words, self.store = PrefixStore(f"dlrun {start}", store), PrefixStore(f"group {start}", store)
        self._me = lease.record()
        self._say(f"process {self.rank}", self._me)
        self._begun = False
        arrival.complete(self._words)

    def begin(self, config: dict[str, Any]) -> None:
        """Let the waiting processes train a config."""
        self._say("begin", {"config": config})
        self._begun = True

    def end(self, code: int) -> None:
        """Let the waiting processes end with an exit code, or those that train know that this one has failed."""
        if not self._begun:
            self._say("begin", {"ended": int(code)})
            self._begun = True
        elif code:
            with suppress(Exception):  # whoever has the store may have ended
                self.fail(f"process {self.rank} of {self.world} failed", code)

    def awaited(self) -> dict[str, Any]:
        """Return the config that the first process trains, once it begins. Raises Ended if it does not."""
        while not self._words.check(["begin"]):
            time.sleep(LOOK)  # in short pieces: a signal is heard between them
        found: dict[str, Any] = json.loads(self._words.get("begin"))
        if "ended" in found:
            raise Ended(found["ended"])
        self._begun = True
        return found

    def collected(self, name: str, value: T) -> list[T]:
        """Return to the first process what all have, in their order, and to another its own; it waits for no one."""
        self._say(f"{name} {self.rank}", value)
        others = () if self.rank else range(1, self.world)
        return [value, *(json.loads(self._words.get(f"{name} {rank}")) for rank in others)]

    def leave(self) -> None:
        """End: without torchrun the first process has the words, so it waits a little until the others have left."""
        if not self._kept():
            return
        with suppress(Exception):  # the store went with its process
            self._say(f"left {self.rank}", True)
            until = time.monotonic() + REASON
            while not self.rank and "TORCHELASTIC_RUN_ID" not in os.environ and time.monotonic() < until:
                there = [rank for rank in range(1, self.world) if not self._words.check([f"left {rank}"])]
                if not set(there) - set(self._gone()):
                    break
                time.sleep(LOOK / 2)

    def fail(self, reason: str, code: int, trace: str = "") -> None:
        """Leave the reason for the end of this process to the others; the first reason counts."""
        self._words.compare_set("failed", "", json.dumps({"reason": reason, "code": int(code), "trace": trace}))

    def cause(self, error: BaseException | None) -> dict[str, Any] | None:
        """Return reason, exit code and traceback of another process, if an error here followed from its end.

        None stands for an interrupt: torchrun ends the others with one when a process has failed.
        """
        if error is not None and not _is_lost(error):
            return None
        until = time.monotonic() + REASON
        while time.monotonic() < until:
            if error is not None:
                time.sleep(LOOK / 2)  # the connections of a process that ends close one after the other
            if not self._kept():
                break
            try:
                if self._words.check(["failed"]):
                    found: dict[str, Any] = json.loads(self._words.get("failed"))
                    return found
                gone = self._gone()
            except Exception:  # the store went with its process
                break
            if gone:
                return {"reason": f"process {gone[0]} of {self.world} ended without a reason", "code": 1, "trace": ""}
            if error is None:
                return None
        return {"reason": "the connection to another process was lost", "code": 1, "trace": ""} if error else None

    def _kept(self) -> bool:
        """Whether the store is still there; torch prints a trace for each word to one that is not."""
        return not self.rank or answers(self._address)

    def _gone(self) -> list[int]:
        """The other processes of this machine that do not run any more."""
        found = []
        for rank in range(self.world):
            about = json.loads(self._words.get(f"process {rank}"))
            here = all(about[key] == self._me[key] for key in ("host", "place"))
            if here and not lease.recent(about, 0.0):
                found.append(rank)
        return found

    def _say(self, name: str, value: Any) -> None:
        self._words.set(name, json.dumps(value))


def _is_lost(error: BaseException) -> bool:
    """Whether an error is that of a connection to a process that has ended."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "gloo/" in str(error)
