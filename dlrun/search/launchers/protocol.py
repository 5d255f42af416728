"""The methods of every launcher, and the end of a trial as it reports it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from dlrun.cores import cores
from dlrun.errors import UserError
from dlrun.search.launchers.job import Job, Place
from dlrun.vocabulary import Exit

__all__ = ["GONE", "Ended", "Launcher", "gpus", "here", "shares", "why", "without_interrupts"]


GONE = 10.0  # seconds to wait for the process of a killed trial to end


class Launcher(Protocol):
    """Runs up to `slots` trials at a time, each process of them with `threads` threads.

    A trial whose process gives no sign of life for `heartbeat` seconds is lost; 0: the launcher itself notices it.
    `waiting` is, once a sweep, a line on what a submitted trial has waited for too long; else "".
    """

    threads: int
    heartbeat: float

    @property
    def slots(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def wait(self, seconds: float) -> list[Ended]: ...
    def waiting(self) -> str: ...
    def kill(self, number: int) -> None: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def here(sweep: Path | None = None) -> Place:
    """Return the place of this process; with the folder of a sweep its trials end with it."""
    return Place(os.getcwd(), tuple(sys.path), sweep)


def why(error: BaseException) -> str:
    """Return why a launcher lost a trial, in one line."""
    text = " ".join(str(error).split())
    if (found := text.rpartition("exit codes of the workers are "))[0]:  # after loky's guesses
        return f"its process died, {found[2]}: out of memory?"
    return f"{type(error).__name__}: {text[:200]}"


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C and the end of a terminal for processes that start here; the parent decides what they mean."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Ended:
    """The end of a trial: its exit code, the reason if its folder has none, and `lost` if its process is gone.

    `late` if the sweep itself killed it.
    """

    number: int
    code: int
    why: str = ""
    lost: bool = False
    late: bool = False

    @property
    def outside(self) -> bool:
        """Whether its surroundings failed, not the trial: a full disk, permissions, a process that was killed.

        Or that was asked to end, such as by a cluster that needs its node; a sweep that asks does not wait for the end.
        """
        return self.code in (Exit.SURROUNDINGS, Exit.INTERRUPTED) or (self.lost and not self.late)


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # a worker is given one of these names, not its place among them: that would be another card
        names = [name.strip() for name in visible.split(",")]
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # CUDA stops at the first that is none
    with suppress(OSError):
        return [str(n) for n in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    with suppress(OSError):  # some containers show the devices alone
        return [str(n) for n in range(sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in os.listdir("/dev")))]
    return []


def shares(workers: int, devices: Collection[str], each: int = 1) -> tuple[int, list[str]]:
    """Return how many trials run at a time, `workers` if not 0, and the GPUs of each; none if all see the same.

    `devices` are the values of trainer.device of the trials. With auto and cuda the GPUs are shared out, `each` to a
    trial. A trial on cuda:1 names its GPU itself: a worker that sees only one GPU would not have it. Without GPUs a
    trial has `each` cores. Raises UserError for more GPUs than there are.
    """
    found = gpus() if {*devices} <= {"auto", "cuda"} else []
    if 0 < len(found) < each:
        raise UserError(
            f"hydra.launcher.gpus_per_trial={each}: expected at most {len(found)}, the GPUs of this machine"
        )
    groups = [",".join(found[at : at + each]) for at in range(0, len(found) - each + 1, each)]
    chosen = {name for name in devices if name != "cpu"} if not found else ()
    on_cards = len(chosen) if any(name.startswith("cuda:") for name in chosen) else 0
    slots = workers or len(groups) or on_cards or max(1, cores() // each)
    return slots, [groups[n % len(groups)] for n in range(slots)] if groups else []
