"""Checkpoints: everything a run needs to go on bit for bit, written so that a kill never costs the previous one.

Reached by `dlrun train` after every epoch and by `dlrun resume`. What is written is a copy, by a thread, while the next
epoch trains. Files are loaded with weights_only=True: a stranger's checkpoint is data, never code.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.errors import UserError, first_line
from dlrun.folders.disk import write_atomic
from dlrun.folders.run import Run
from dlrun.training.experiment import Experiment
from dlrun.training.random_state import rng_state, set_rng_state

__all__ = ["State", "Writer", "load", "load_weights", "restore", "snapshot", "write"]

KEYS = ("model", "optimizer", "scheduler", "ema", "rng", "epoch", "step", "best")


@dataclass
class State:
    """How far a run is: epochs and optimizer steps done, the best epoch so far, seconds spent."""

    epoch: int = 0
    step: int = 0
    best: dict[str, float] | None = None  # epoch, value of the monitored column, val_loss
    seconds: float = 0.0


def snapshot(exp: Experiment, state: State) -> dict[str, Any]:
    """Return the content of a checkpoint, with copies of all tensors, on the processor: training changes its own.

    Two names of one weight become two tensors.
    """
    return {
        "model": _copied(exp.model.state_dict()),
        "optimizer": _copied(exp.optimizer.state_dict()),
        "scheduler": _copied(exp.scheduler.state_dict()),
        "ema": _copied(exp.average.state_dict()) if exp.average is not None else None,
        "rng": rng_state(),
        "epoch": state.epoch,
        "step": state.step,
        "best": state.best,
        "seconds": state.seconds,
    }


def _copied(node: Any) -> Any:
    # copy.deepcopy of all would do, in six times the time
    if isinstance(node, Tensor):
        return node.detach().to("cpu", copy=True)
    if isinstance(node, dict):
        twin = copy.copy(node)  # an OrderedDict with its versions of modules
        for key, value in node.items():
            twin[key] = _copied(value)
        return twin
    if type(node) in (list, tuple):
        return type(node)(map(_copied, node))
    return copy.deepcopy(node)


def write(
    run: Run, content: dict[str, Any], *, is_best: bool, name: str | None = None, keep: Collection[str] = ()
) -> None:
    """Write last.pt, before it best.pt when this epoch is the best, and before both the epoch's own file (O8).

    That one is written under `name` if it is among those to `keep`; others of its kind are removed. In this
    order a kill in between leaves a last.pt that does the epoch again and comes to the same files; one before the
    removal, a file too many until the next epoch.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    own = [run.checkpoints / str(name)] if name in keep else []
    write_atomic(run.last, data, also=[*own, *([run.best] if is_best else [])])
    for path in run.epoch_checkpoints():  # after it: a full disk must not cost those that are there
        if path.name not in keep:
            path.unlink()


class Writer:
    """A thread that writes while training goes on, one piece of work at a time; it ends with the block it is used in.

    What a piece of work raises is raised by the next `wait`, `begin` or end of the block.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "dlrun-write")  # Python ends only after its threads have
        self._begun = self._done = 0
        self._error: BaseException | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        asked = None
        while True:
            try:
                self._rest()
                self._pool.shutdown()
                break
            except KeyboardInterrupt as again:  # an impatient one: nobody may take the run for settled before
                asked = again
        self.wait()
        if asked is not None:
            raise asked

    def begin(self, work: Callable[[], None]) -> None:
        """Have it done, after what was begun before."""
        self.wait()
        self._pool.submit(self._do, work)
        self._begun += 1

    def wait(self) -> None:
        """Return when everything begun is done."""
        self._rest()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        finally:
            self._done += 1

    def _rest(self) -> None:
        # an interrupt at the wrong moment leaves futures locked, and a thread of Python before 3.13 taken for ended
        while self._done < self._begun:
            time.sleep(0.001)


def restore(run: Run, exp: Experiment) -> State:
    """Bring model, optimizer, schedule and random state back to the last checkpoint; a fresh State without one.

    Raises UserError naming the file when it is damaged or belongs to another setup.
    """
    if not run.last.exists():
        return State()
    found = load(run.last)
    load_weights(run.last, found, exp.model)
    try:
        exp.optimizer.load_state_dict(found["optimizer"])
        exp.scheduler.load_state_dict(found["scheduler"])
        if exp.average is not None:
            exp.average.load_state_dict(found["ema"])
        set_rng_state(found["rng"])
        return State(int(found["epoch"]), int(found["step"]), found["best"], float(found.get("seconds", 0.0)))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{run.last}: belongs to another optimizer or schedule: {first_line(error)[:160]}") from error


def load_weights(path: Path, found: dict[str, Any], model: nn.Module, *, averaged: bool = False) -> None:
    """Put the weights of a loaded checkpoint, or their average, into a model.

    Raises UserError naming the first that does not fit.
    """
    try:
        model.load_state_dict(found["ema" if averaged else "model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).strip().split("\n")
        raise UserError(f"{path}: does not fit this model: {lines[-1].strip()}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the processor. Raises UserError naming the file when it is not one of ours."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:
        # torch raises a dozen types for a damaged file: zip, pickle, end of file, refused class
        raise UserError(f"{path}: not a readable dlrun checkpoint: cut short, damaged or foreign") from error
    missing = [k for k in KEYS if not isinstance(found, dict) or k not in found]
    if missing:
        raise UserError(f"{path}: not a dlrun checkpoint: {', '.join(missing)} missing")
    return dict(found)
