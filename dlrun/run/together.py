"""Several processes that train one run: started, joined, ended (`dlrun train trainer.devices=2`, `dlrun resume`; O10).

`dlrun train trainer.devices=4` starts torchrun for itself; `torchrun -m dlrun train …` and `srun dlrun train …` start
the processes themselves. The first one is a run like any other. The others get its config when it begins to train,
print nothing, and end with it: with its exit code, or with a reason of their own, which the first one records.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config import ranks
from dlrun.config.settings import Settings
from dlrun.errors import UserError, first_line
from dlrun.run.replaced import counted
from dlrun.run.stopping import politely
from dlrun.vocabulary import Exit, Status

if TYPE_CHECKING:
    from dlrun.training.group import Group

__all__ = ["about", "began", "first", "launch", "leading", "other", "starts"]

LEAST = 8  # processes that any machine may start
ENDING = timedelta(minutes=1)  # for others that are still starting, to be told that this process has ended
SHELL = 128  # a shell adds it to the number of a signal
ENDED = {Status.CHECK_FAILED: Exit.CHECK_FAILED, Status.DIVERGED: Exit.DIVERGED, Status.COMPLETED: Exit.FINE}


_joined: list[Group] = []  # that of this process
_tried: list[bool] = []  # whether it went to meet the others


def starts(cfg: Settings, *, typed: bool = True) -> bool:
    """Whether this process starts those that train. Raises UserError if others are there than were `typed`."""
    place, devices = ranks.own(), cfg.trainer.devices
    if place is not None and typed and devices not in (1, place.world):
        raise UserError(f"trainer.devices={devices}: {place.world} processes were started; omit it")
    return devices > 1 and place is None


def leading(work: Callable[[], int]) -> int:
    """Do the work of a command in the first of several processes; the others end with it, however it ends."""
    code = int(Exit.FAILED)
    try:
        code = work()
    except UserError as error:
        code = error.code
        raise
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
        raise
    finally:
        if _joined or not _tried:  # those that did not meet are not waited for again
            with contextlib.suppress(UserError):  # what ended this process is said, not that nobody was told
                _group(ENDING).end(code)
                _group().leave()
    return code


def _group(within: timedelta | None = None) -> Group:
    """The processes of this training, met once; `within` a time, or the usual one."""
    from dlrun.training.group import Group

    place = ranks.own()
    assert place is not None
    if not _joined:
        _tried.append(True)
        _joined.append(Group(place, within))
    return _joined[0]


def launch(words: Sequence[str], cfg: Settings, folder: Path) -> int:
    """Run a command in trainer.devices processes on this machine, which train in `folder`; returns the exit code."""
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = cfg.trainer.devices
    _must_be_there(cfg)
    logging.disable()  # the first process says what happened
    os.environ[ranks.FOLDER] = str(folder)
    usual = signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # as Slurm may send it
    with tempfile.TemporaryDirectory(prefix="dlrun-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "dlrun", *words)
            return Exit.FINE
        except SignalException:
            return Exit.INTERRUPTED
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return _ended(rank, failure.exitcode, count, folder)
        finally:
            signal.signal(signal.SIGUSR1, usual)
            logging.disable(logging.NOTSET)
            del os.environ[ranks.FOLDER]


def _must_be_there(cfg: Settings) -> None:
    import torch

    name, count = cfg.trainer.device, cfg.trainer.devices
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda:") or name == "mps":
        raise UserError(
            f"trainer.device={name}: one device; type trainer.device=cuda or cpu for trainer.devices={count}"
        )
    if count > (most := max(LEAST, os.cpu_count() or 1)):  # a stored config may be that of somebody else
        raise UserError(f"trainer.devices={count}: found {os.cpu_count()} cores; type {most} or less")
    if (name == "cuda" or (name == "auto" and gpus)) and count > gpus:
        raise UserError(f"trainer.devices={count}: found {gpus} GPUs; type trainer.devices={max(1, gpus)}")


def _ended(rank: int, code: int, count: int, folder: Path) -> int:
    """The exit code of processes of which this one failed first; a kill of the first one, which could not say it."""
    if code > 0:
        return code
    if -code in (signal.SIGINT, signal.SIGTERM):
        return Exit.INTERRUPTED
    if rank == 0:
        name = signal.Signals(-code).name
        resume = shlex.join(["dlrun", "resume", str(folder)])
        print(f"dlrun: process 0 of {count} was ended by {name}; `{resume}` continues", file=sys.stderr)
    return Exit.FAILED


def about() -> dict[str, Any]:
    """Return what result.json has about the processes of a run."""
    place = ranks.own()
    return {} if place is None else {"processes": place.world, "launch": ranks.launch()}


def began(typed: Sequence[str]) -> Path | None:
    """Return the run of this command that torchrun or Slurm started before, if they start it again; None if none began.

    `typed` are its words.
    """
    from dlrun.folders import outputs, reading

    if not ranks.again() or not (launch := ranks.launch()):
        return None
    asked = next((Path(word.partition("=")[2]) for word in typed if word.startswith("run.dir=")), None)
    folder = outputs.OUTPUTS / "runs"
    found = [asked] if asked else reversed(reading.find([str(folder)]) if folder.is_dir() else [])
    for path in found:
        result = reading.result(path) if (path / "config.yaml").is_file() else {}
        if result.get("launch") == launch and list(result.get("typed") or ()) == [*typed]:
            return path
    return None


def first(work: Callable[[Group | None], int]) -> int:
    """Do the work of a run that trains alone, or of the first of several processes; returns its exit code."""
    return work(None if ranks.own() is None else _group())


def other(argv: Sequence[str]) -> int:
    """Train beside the first process; returns the exit code. `argv` are the words of the command, for trust= alone."""
    from dlrun.config.trust import packages
    from dlrun.training.meeting import Ended

    trust = packages(argv)
    try:
        with politely(), contextlib.redirect_stdout(None):
            return _beside(_group(), trust)
    except Ended as ended:
        return ended.code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:
        if not _joined:
            raise
        return _failed(_joined[0], error)
    finally:
        if _joined:
            _joined[0].leave()


def _beside(group: Group, trust: list[str]) -> int:
    from dlrun.console import Screen
    from dlrun.training import loop
    from dlrun.training.experiment import build

    cfg = Settings.of({**group.awaited()["config"], "trust": trust})
    measures = cfg.trainer.diagnostics and cfg.trainer.sharding != "none"  # parts of the weights
    exp = build(cfg.changed(trainer={"diagnostics": measures}), begun=True)
    exp, state = group.join(exp, None)
    try:
        with counted(exp, group):
            loop.fit(exp, None, state, Screen(quiet=True))
    except loop.Diverged:
        return Exit.DIVERGED
    except loop.Stopped:
        return Exit.FINE
    return Exit.FINE


def _failed(group: Group, error: Exception) -> int:
    """Leave the reason to the first process, unless the error only followed from the end of another."""
    if group.cause(error) is not None:
        return Exit.FAILED
    known = isinstance(error, UserError)
    what = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
    code = error.code if isinstance(error, UserError) else Exit.FAILED
    group.fail(f"process {group.rank} of {group.world}: {what}", code, "" if known else traceback.format_exc())
    return code
