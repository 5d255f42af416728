"""Threads that wait for each other: they spin on a calm machine and sleep beside other programs (verbs with torch).

The threads of an operation wait for the last of them. OpenMP (libgomp, as in torch's wheels) lets them spin for
milliseconds, which is fast on free cores. If another program runs, threads that spin take the processor from the one
that they wait for. One more busy program on two cores, an epoch of fine-tuning: 43 times as long with spinning threads,
1.3 times with sleeping ones; but without it sleeping threads cost up to a quarter. So what other programs use is looked
at a few times per second. The number of threads stays what it is, since sums are divided by it and round accordingly.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

__all__ = ["watch"]

OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # a person, or a launcher, has decided
LOOK = 0.25  # seconds between two looks
OTHERS = 0.25  # processors that others may use of those that our threads need
CALM = 5.0  # seconds without others after which threads spin again
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

_watched: list[int] = []  # the process that has the thread


def watch() -> None:
    """Let waiting threads sleep from now on whenever other programs need the processors, and spin otherwise.

    Nothing happens without /proc/stat (other systems than Linux), or if an environment variable says how to wait.
    """
    if _watched == [os.getpid()] or any(key in os.environ for key in OWN) or not os.path.exists("/proc/stat"):
        return
    _watched[:] = [os.getpid()]
    threading.Thread(target=_followed, name="dlrun-spinning", daemon=True).start()


def _followed() -> None:
    with contextlib.suppress(OSError):  # too many open files, or no rights: training continues without the look
        _follow()


def _follow() -> None:
    cores = os.sched_getaffinity(0)
    before, until, wake = _used(cores), 0.0, None
    while True:
        time.sleep(LOOK)
        now = _used(cores)
        wall, everything, own = (a - b for a, b in zip(now, before, strict=True))
        before = now
        if (everything - own) / wall > len(cores) - min(_threads(), len(cores)) + OTHERS:
            until = now[0] + CALM
            wake = wake or _sleeping()
        elif wake is not None and now[0] > until:
            wake()
            wake = None


def _used(cores: set[int]) -> tuple[float, float, float]:
    """The time, the seconds that these cores were used by all programs, and those that this one used of any."""
    with open("/proc/stat") as file:
        rows = [line.split() for line in file if line.startswith("cpu")]
    used = sum(int(word) for name, *words in rows if name[3:] and int(name[3:]) in cores for word in words[:3])
    return time.monotonic(), used / TICKS, time.process_time()


def _threads() -> int:
    """The threads of an operation of torch; 1 before it is imported: nobody waits."""
    asked: Callable[[], int] | None = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return asked() if asked else 1


def _sleeping() -> Callable[[], None] | None:
    """Let the waiting threads of libgomp sleep until the returned function is called; None with another library.

    libgomp shortens its spinning to nothing while it has more threads than there are cores. So one more set of threads
    is made, of a Python thread of its own, that does nothing: it calls free(NULL) once. It ends with its thread.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "GOMP_parallel"):
        return None
    over = threading.Event()

    def hold() -> None:
        library.GOMP_parallel(library.free, None, (os.cpu_count() or 1) + 1, 0)
        over.wait()

    threading.Thread(target=hold, name="dlrun-sleeping", daemon=True).start()
    return over.set
