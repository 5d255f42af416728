"""Running one trial, in a persistent worker of this machine or wherever a launcher starts it (`dlrun train -m`).

A trial is a run like any other; its output goes to its log.txt. Each process prepares shared data once, and all
processes of a machine share one copy of the pixels.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.vocabulary import Exit, Status

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from dlrun.config.settings import Settings
    from dlrun.folders.run import Run
    from dlrun.training.shared_data import SharedData

__all__ = ["Job", "Place", "Remote", "away", "main", "work"]


@dataclass(frozen=True)
class Job:
    """A trial to run: its number, config, run folder, the record of its config, and whether others run beside it."""

    number: int
    config: dict[str, Any]
    folder: str
    record: dict[str, Any] = field(default_factory=dict)
    beside: bool = False


def work(job: Job, shared: SharedData) -> tuple[int, str]:
    """Run a trial to its end; returns the exit code, and the reason if its folder has none.

    A trial that has a checkpoint continues with its first config; only its last epoch may change. Its data stay in
    `shared` for the next trial.
    """
    import dlrun.checks
    import dlrun.training.loop  # noqa: F401  before the folder is locked, which starts search.timeout
    from dlrun.config.settings import Settings
    from dlrun.errors import Surroundings, UserError
    from dlrun.folders import reading
    from dlrun.folders.run import settle, take
    from dlrun.run.execute import execute

    children = _children()
    try:
        run, known = take(Path(job.folder))
        plain, record = job.config, job.record
        if continued := known and run.last.exists():
            plain = reading.config(run.path) | {"trust": job.config["trust"]}
            plain["trainer"] = {**plain["trainer"], "stop_after": job.config["trainer"]["stop_after"]}
            record = {}  # the record of the first config is stored already
        with _into(run.log):
            cfg = Settings.of(plain)
            if cfg.trainer.devices > 1:
                return _together(cfg, run, record, continued), ""
            return execute(cfg, run, record=record, shared=shared, resuming=continued, quiet=True), ""
    except Surroundings as error:
        return Exit.SURROUNDINGS, str(error)
    except UserError as error:
        return error.code, str(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED, str(Status.INTERRUPTED)
    except SystemExit as error:
        if _of_a_queue(error):  # which takes the job back
            raise
        why = f"its code called sys.exit({'' if error.code is None else repr(error.code)[:80]})"
        with suppress(UserError):
            settle(Path(job.folder), status=Status.FAILED, reason=why)
        return Exit.FAILED, why
    except BaseException as error:  # a user's code may raise anything; the worker must survive
        return Exit.FAILED, f"{type(error).__name__}: {str(error).strip()[:200]}"
    finally:
        _end_children(children)
        _give_back()


def _together(cfg: Settings, run: Run, record: dict[str, Any], continued: bool) -> int:
    """Run a trial in trainer.devices processes, which continue its folder by `dlrun resume`; returns the exit code."""
    from dlrun.run.together import launch

    if not continued:
        run.write_config(cfg.plain)
        run.update_result(status=Status.RUNNING, reason="", **record)
    run.release()  # the first of them takes it
    os.dup2(nowhere := os.open(os.devnull, os.O_WRONLY), 1)  # it writes the log itself
    os.close(nowhere)
    return launch(["resume", str(run.path), f"trust=[{','.join(cfg.trust)}]"], cfg, run.path)


def _children() -> set[int]:
    """The processes that this one has started; none without /proc."""
    found: set[int] = set()
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
    return found


def _end_children(before: set[int]) -> None:
    """Kill what a trial has started and left; helpers of Python and torch serve further trials."""
    for process in _children() - before:
        with suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes()
            if not any(word in words for word in (b"multiprocessing", b"compile_worker", b"loky", b"raylet")):
                os.kill(process, signal.SIGKILL)


def _of_a_queue(error: BaseException) -> bool:
    """Whether the code of a launcher raised an exception."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in ("submitit", "ray")


def _give_back() -> None:
    """Free the GPU memory that torch caches after a trial: another worker may need it."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Place:
    """The working folder and module path of a sweep; also its folder, if no trial may outlive the sweep."""

    cwd: str
    path: tuple[str, ...]
    sweep: Path | None = None


def away(job: Job, place: Place) -> tuple[int, str]:
    """Run a trial, as `work` does, in a process of a launcher, from the working folder of the sweep."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.chdir(place.cwd)
    sys.path += [folder for folder in place.path if folder not in sys.path]
    if place.sweep and "watch" not in [t.name for t in threading.enumerate()]:
        threading.Thread(target=_die_without, args=(place.sweep, os.getppid()), name="watch", daemon=True).start()
    return work(job, _kept(job.beside))


@lru_cache(maxsize=1)
def _kept(share: bool) -> SharedData:
    # launchers call `away` anew for each trial: only an object of the process outlives the call
    from dlrun.training.shared_data import SharedData

    return SharedData(share=share)


class Remote:
    """A trial as a Slurm job; submitit queues it again, by `checkpoint`, when its time limit is reached."""

    def __init__(self, job: Job, place: Place) -> None:
        self.job, self.place = job, place

    def __call__(self) -> tuple[int, str]:
        """Run the trial, or continue it."""
        return away(self.job, self.place)

    def checkpoint(self) -> DelayedSubmission:
        """Return the job to queue: the same, since the progress is in the folder of the trial."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _die_without(sweep: Path, leader: int) -> None:
    """End this process soon after the one that holds the sweep, or the one that started this, is gone."""
    from dlrun.folders.disk import owned

    while owned(sweep) and os.getppid() == leader:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def _into(log: Path) -> Iterator[None]:
    """Redirect the output of a trial, C code included, to its log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    from dlrun.errors import UserError
    from dlrun.folders.opener import appendable

    try:
        handle = appendable(log.parent, log.name)
    except (OSError, UserError):  # the log is nothing that a trial needs
        handle = os.open(os.devnull, os.O_WRONLY)
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
    """Run trials until the parent closes the connection; ends with the parent, even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = os.getppid()
    _guard(lifeline)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: PR_SET_PDEATHSIG
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)
    connection = Connection(conversation)
    gc.set_threshold(50_000, *gc.get_threshold()[1:])  # as dlrun.cli does: the imports make objects that stay
    import dlrun.checks
    import dlrun.training.loop  # noqa: F401  slow imports, while the parent composes
    from dlrun.training.shared_data import SharedData

    shared: SharedData | None = None
    with suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            shared = shared or SharedData(share=job.beside)
            connection.send(work(job, shared))


def _guard(lifeline: int) -> None:
    """Start a process that ends the whole session when the parent is gone: what a trial started would outlive it."""
    if os.getpgrp() != os.getpid() or os.fork():
        return
    for number in os.listdir("/dev/fd"):  # those of the connection would hide the end of this process from the parent
        if int(number) != lifeline:
            with suppress(OSError):
                os.close(int(number))
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _die_with(lifeline: int) -> None:
    """Wait until the pipe closes, whose other end only the parent has open."""
    while os.read(lifeline, 1):
        pass
    os._exit(1)
