"""Who holds a folder, and whether he lives: a lease beside the lock, for file systems whose locks cannot be relied on.

Some network file systems have no locks, and some grant each one (NFS with local_lock, some FUSE). So the lock's file
names host, process and time of its start, and its time is renewed every few seconds. Behind `dlrun train` and `dlrun
resume`. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["STALE", "alive", "beat", "born", "lockless", "parsed", "recent", "record"]

BEAT = 4.0  # seconds between two renewals
STALE = 3 * BEAT  # seconds without one after which a holder on another machine is gone
LONG_AGO = 3600.0  # seconds: nobody waits for such a holder, however the clocks of two machines differ


def lockless(error: OSError) -> bool:
    """Whether an error of flock says that there are no locks, rather than that somebody holds this one."""
    return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EINTR)


def record() -> dict[str, Any]:
    """Return the lease of this process; its token is another one each time."""
    pid = os.getpid()
    about = {"host": socket.gethostname(), "pid": pid, "place": _place(), "born": born(pid)}
    return {**about, "token": os.urandom(8).hex()}


def parsed(content: bytes) -> dict[str, Any]:
    """Return a lease, `released` if its holder has ended; {} if there is none, or if an older dlrun wrote it."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content[:4096])
        if isinstance(found, dict) and isinstance(found.get("token"), str) and type(found.get("pid")) is int:
            return found
    return {}


def alive(lease: Mapping[str, Any], look: Callable[[], tuple[str, float]]) -> bool:
    """Whether the holder of a lease lives, although this process has the lock.

    On this machine its process is looked at. Of another, a renewal is waited for; `look` returns token and time of the
    file, no token if it was released.
    """
    if not lease or lease.get("released"):
        return False
    if lease.get("place") == _place() and lease.get("host") == socket.gethostname():
        return _runs(lease["pid"], lease.get("born"))
    token, before = look()
    if time.time() - before > LONG_AGO:
        return False
    who = f"process {lease['pid']} on {str(lease.get('host'))[:60]}"
    print(f"dlrun: waiting up to {STALE:.0f} s for a sign of {who}, which did not release this folder", file=sys.stderr)
    until = time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(min(0.5, BEAT / 4))
        if (now := look()) != (token, before):
            return bool(now[0])
    return False


def recent(lease: Mapping[str, Any], changed: float) -> bool:
    """Whether the holder of a lease lives as far as one look shows; `changed` is the time of the file."""
    if not lease or lease.get("released"):
        return False
    if lease.get("place") == _place() and lease.get("host") == socket.gethostname():
        return _runs(lease["pid"], lease.get("born"))
    return abs(time.time() - changed) < STALE


def _place() -> str:
    """The running system and the space of its process numbers: only there can a process be looked at."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return sys.platform


def born(pid: int) -> str:
    """When a process began, in ticks of its system; "" if that cannot be said, or it has ended."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _runs(pid: int, start: Any) -> bool:
    if os.path.isdir("/proc/self"):
        return bool(found := born(pid)) and found == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


_renewing: list[int] = []  # the process whose thread renews


def beat(handles: Mapping[int, Any]) -> None:
    """Renew the leases of these open files, whatever they will be, until the process ends."""
    if _renewing == [os.getpid()]:
        return
    _renewing[:] = [os.getpid()]

    def renew() -> None:
        while True:
            time.sleep(BEAT)
            for handle in list(handles):
                with contextlib.suppress(OSError):
                    os.utime(handle)

    threading.Thread(target=renew, name="dlrun-lease", daemon=True).start()
