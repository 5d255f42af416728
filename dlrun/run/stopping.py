"""SIGTERM and SIGUSR1, which clusters send before they kill a process, and SIGHUP end a run like Ctrl-C.

`dlrun train`, `dlrun train -m`, `dlrun resume`: the last checkpoint stays, result.json and the table say `interrupted`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["politely"]


@contextmanager
def politely() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first of these signals; later ones are ignored: the end is being recorded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]  # as under nohup
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # of Slurm; submitit has a handler of its own
        heard.append(signal.SIGUSR1)

    def interrupt(*_: object) -> None:
        for one in heard:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in heard}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
