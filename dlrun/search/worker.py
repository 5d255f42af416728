"""What runs a trial, in a warm process of this machine or wherever a launcher put it (`dlrun train -m`).

A trial is a run like any other; what it prints goes to its log.txt. Data that the trials share is prepared once a
process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["Job", "main", "work"]


@dataclass(frozen=True)
class Job:
    """A trial to be run: its number, its config, the folder of its run."""

    number: int
    config: dict[str, Any]
    folder: str


def work(job: Job) -> tuple[int, str]:
    """Run a trial to its end; returns the exit code, and what went wrong where no folder says so.

    A trial that has a checkpoint goes on with the config that it began with; only its last epoch may be new.
    """
    from omegaconf import OmegaConf

    from dlrun import rundir
    from dlrun.config import UserError
    from dlrun.experiment import keep_data, prepared
    from dlrun.running import execute

    if not prepared():
        keep_data()
    try:
        run, known = rundir.take(Path(job.folder))
        plain = job.config
        if known and run.last.exists():
            plain = rundir.config(run.path) | {"trust": job.config["trust"]}
            plain["trainer"] = {**plain["trainer"], "stop_after": job.config["trainer"]["stop_after"]}
        with _into(run.log):
            return execute(OmegaConf.create(plain), run, quiet=True), ""
    except UserError as error:
        return error.code, str(error)
    except KeyboardInterrupt:
        return 130, "interrupted"
    except BaseException as error:  # a user's code may raise anything; the worker lives on
        return 1, f"{type(error).__name__}: {str(error).strip()[:200]}"


@contextmanager
def _into(log: Path) -> Iterator[None]:
    """Send what a trial prints, C code included, to its log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)


def main(conversation: int, lifeline: int) -> None:
    """Serve trials until the parent hangs up; dies with the parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: PR_SET_PDEATHSIG
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)
    connection = Connection(conversation)
    import dlrun.checks
    import dlrun.engine  # noqa: F401  torch and the loop, while the parent composes

    with suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            connection.send(work(job))


def _die_with(lifeline: int) -> None:
    """Wait for the end of a pipe whose other end only the parent holds."""
    while os.read(lifeline, 1):
        pass
    os._exit(1)
