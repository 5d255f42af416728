"""Checkpoints: the whole state of a training, so that a resumed run gives the same bits (`dlrun resume`, O8).

A thread writes a copy after every epoch, while the next one trains; a kill never damages the checkpoint before it.
Files are loaded with weights_only=True, so that no file can run code. Their `version` is that of dlrun/vocabulary.py.
"""

from __future__ import annotations

import copy
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from dlrun.errors import UserError, first_line
from dlrun.folders import opener
from dlrun.folders.disk import write_atomic
from dlrun.folders.run import Run
from dlrun.folders.version import NewerFormat, refuse_newer
from dlrun.training import expected, one_pass, sealing, sharded
from dlrun.training.experiment import Experiment
from dlrun.training.objective import state_of
from dlrun.training.random_state import rng_state, set_rng_state
from dlrun.vocabulary import FORMAT

__all__ = ["State", "Writer", "continued", "load", "load_weights", "restore", "snapshot", "write"]

# bytes of a checkpoint whose tensors are the file itself: who loads it copies what it needs, and the digest has read it
MAPPED = 1 << 22
SMALL = 1 << 14  # values of a tensor that is stored together with others
KEYS = ("model", "optimizer", "scheduler", "ema", "rng", "epoch", "step", "best")


@dataclass
class State:
    """The progress of a run: epochs and optimizer steps done, the best epoch so far, seconds of training.

    With trainer.hours also the seconds before training, the epochs left, and the place in the schedule (see pace.py);
    with trainer.swa the number of epochs that were averaged.
    """

    epoch: int = 0
    step: int = 0
    best: dict[str, Any] | None = None  # epoch, value of the monitored column, val_loss (None without validation)
    seconds: float = 0.0
    before: float = 0.0
    left: int = 0
    position: float = 0.0
    averaged: int = 0
    files: list[dict[str, Any]] | None = None  # with trainer.keep=top3: name, value and val_loss, best first


def snapshot(exp: Experiment, state: State) -> dict[str, Any]:
    """Return the content of a checkpoint, with copies of all tensors on the processor, since training changes its own.

    Two names of one weight become two tensors.
    """
    small = _Small()
    content = {
        "version": FORMAT,
        "model": _copied(exp.kept.model.state_dict(), small),
        "optimizer": _copied(sharded.of(exp).optimizer_state, small),
        "scheduler": _copied(exp.scheduler.state_dict()),
        "ema": _copied(exp.kept.average.state_dict(), small) if exp.kept.average is not None else None,
        "rng": rng_state(),
        "epoch": state.epoch,
        "step": state.step,
        "best": state.best,
        "seconds": state.seconds,
        "averaged": state.averaged,
        "files": copy.deepcopy(state.files),
        "scale": exp.scale.state_dict() if exp.scale is not None else None,
        "objective": _copied(state_of(exp.objective)),
        "pace": {"before": state.before, "left": state.left, "position": state.position},
    }
    small.fill()
    return content


class _Small:
    """Copies of small tensors that lie in one piece of memory for each type.

    A file has one record for all of them instead of hundreds, and a card sends them at once.
    """

    def __init__(self) -> None:
        self._pairs: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = {}

    def takes(self, tensor: Tensor) -> bool:
        """Whether a tensor is small and fills its memory without gaps, in whatever order."""
        if tensor.numel() > SMALL or type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return False
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return last or tensor.is_contiguous()

    def copy(self, tensor: Tensor) -> Tensor:
        """Return an empty tensor that becomes a copy with `fill`."""
        twin = torch.empty(0, dtype=tensor.dtype)
        self._pairs.setdefault((tensor.dtype, tensor.device), []).append((tensor.detach(), twin))
        return twin

    def fill(self) -> None:
        """Copy all tensors."""
        for pairs in self._pairs.values():
            flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor, _ in pairs]
            whole, start = torch.cat(flat).to("cpu"), 0
            for tensor, twin in pairs:
                twin.set_(whole.untyped_storage(), start, tensor.shape, tensor.stride())
                start += tensor.numel()


def _copied(node: Any, small: _Small | None = None) -> Any:
    # copy.deepcopy of everything takes six times as long
    if isinstance(node, Tensor):
        return small.copy(node) if small is not None and small.takes(node) else node.detach().to("cpu", copy=True)
    if isinstance(node, dict):
        twin = copy.copy(node)  # a state_dict is an OrderedDict with the versions of its modules
        for key, value in node.items():
            twin[key] = _copied(value, small)
        return twin
    if type(node) in (list, tuple):
        return type(node)(_copied(value, small) for value in node)
    return copy.deepcopy(node)


def write(run: Run, content: dict[str, Any], *, is_best: bool, name: str = "", drop: Collection[str] = ()) -> None:
    """Write the epoch's own file, then best.pt if this epoch is the best, then last.pt (O8).

    The epoch's own file is called `name`; without one there is none. The files of other epochs in `drop` are removed
    last. After a kill in between, last.pt repeats the epoch and ends with the same files; after a kill before the
    removal, one file too many is left until the next epoch.
    """
    buffer = sealing.save({**content, "finite": expected.all_finite(content)})
    own = [run.checkpoints / name] if name else []
    with buffer.getbuffer() as data:
        write_atomic(run.last, data, also=[*own, *([run.best] if is_best else [])], within=run.path)
    for path in run.epoch_checkpoints():  # last, since a full disk must not cost the files that exist
        if path.name in drop:
            path.unlink()


class Writer:
    """A thread that does one piece of work at a time while training continues; it ends with its `with` block.

    An exception in the work is raised by the next `wait` or `begin`, or at the end of the block.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "dlrun-write")  # a process ends only after its threads
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
            except KeyboardInterrupt as again:  # a second Ctrl-C: until all is written the run is not settled
                asked = again
        self.wait()
        if asked is not None:
            raise asked

    def begin(self, work: Callable[[], None]) -> None:
        """Start a piece of work, after the one before is finished."""
        self.wait()
        self._pool.submit(self._do, work)
        self._begun += 1

    def wait(self) -> None:
        """Return when all work is finished. Raises the exception of the last piece."""
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
        # not Future.result or Thread.join: an interrupt at the wrong moment leaves a future locked, and makes
        # Python before 3.13 regard a running thread as ended
        while self._done < self._begun:
            time.sleep(0.001)


def restore(run: Run, exp: Experiment) -> State:
    """Load the last checkpoint into model, optimizer, schedule and random state; returns State() if there is none.

    Raises UserError, which names the file, if it is damaged or belongs to another setup; then the weights of
    the model are of no use.
    """
    if not run.last.exists():
        return State()
    models = {"model": exp.kept.model} | ({} if exp.kept.average is None else {"ema": exp.kept.average})
    try:
        found, whole = _read(run.last, models)
        expected.hold(found, exp, finite=whole and found.get("finite") is True)
    except NewerFormat:
        raise
    except UserError as error:
        raise UserError(f"{error}{_instead(run)}", error.code) from error
    except expected.Misfit as error:
        raise UserError(f"{run.last}: {error}{_instead(run)}") from error
    load_weights(run.last, found, exp.kept.model, held=True)
    try:
        if not whole:  # an optimizer keeps what it gets, which must not be the file
            found["optimizer"] = _copied(found["optimizer"])
        return continued(found, exp)
    except Exception as error:  # a user's own optimizer may raise anything
        raise UserError(f"{run.last}: does not fit this optimizer or schedule: {first_line(error)[:160]}") from error


def continued(found: Mapping[str, Any], exp: Experiment) -> State:
    """Load what a checkpoint has beside the weights of the model, and return the state."""
    with sharded.beside(exp):
        exp.optimizer.load_state_dict(found["optimizer"])
    exp.scheduler.load_state_dict(found["scheduler"])
    if exp.kept.average is not None:
        exp.kept.average.load_state_dict(found["ema"])
    set_rng_state(found["rng"])
    done = (int(found["epoch"]), int(found["step"]), found["best"], float(found.get("seconds", 0.0)))
    if exp.scale is not None and found.get("scale"):
        exp.scale.load_state_dict(found["scale"])
    if state_of(exp.objective) is not None:
        exp.objective.load_state_dict(_copied(found["objective"]))  # type: ignore[attr-defined]
    return State(*done, **found.get("pace", {}), averaged=int(found.get("averaged", 0)), files=_files(found))


def _files(found: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The checkpoints of single epochs that a checkpoint remembers; none, so that none is deleted, if malformed."""
    files = found.get("files")
    score = (int, float, type(None))
    kinds: dict[str, tuple[type, ...]] = {"name": (str,), "value": score, "val_loss": score}
    whole = isinstance(files, list) and all(
        isinstance(file, dict) and all(isinstance(file.get(key), kind) for key, kind in kinds.items()) for file in files
    )
    return files if whole or files is None else []


def _instead(run: Run) -> str:
    """What to type if the last checkpoint is not usable: the newest other file, unless it is the same data."""
    for path in (run.best, *run.epoch_checkpoints()[::-1]):
        if path.is_file() and not path.samefile(run.last):
            words = shlex.join(["cp", str(path), str(run.last)])
            return f"; `{words}` continues from an earlier epoch"
    return ""


def load_weights(
    path: Path, found: dict[str, Any], model: nn.Module, *, averaged: bool = False, held: bool = False
) -> None:
    """Load the weights of a checkpoint, or their running average, into a model; `held`: they were compared before.

    Raises UserError, which names the first weight that does not fit.
    """
    try:
        weights = found["ema" if averaged else "model"]
        if not held:
            expected.hold_weights(weights, model)
        model.load_state_dict(weights)
    except Exception as error:  # a user's own model may raise anything
        lines = str(error).strip().split("\n")
        raise UserError(f"{path}: does not fit this model: {lines[-1].strip()}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the processor; those of a large one are the file until they are copied.

    Raises UserError, which names the file, if it is no checkpoint of dlrun, if a newer dlrun wrote it, or if a bit has
    changed since.
    """
    with _opened(path) as file:
        return _known(path, _loaded(file), file)


def _loaded(file: BinaryIO) -> Any:
    handle = file.fileno()
    if sealing.sealed(handle) and sealing.broken(handle):
        raise one_pass.Damaged
    sealing.records(file)
    name = f"/dev/fd/{handle}"
    source: Any = name if os.path.exists(name) else file
    mapped = source is name and os.fstat(handle).st_size > MAPPED
    return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def _read(path: Path, into: Mapping[str, nn.Module]) -> tuple[dict[str, Any], bool]:
    """Read as `load` does, weights of a large file with a digest into models by their keys; and whether it was one."""
    with _opened(path) as file:
        handle, size = file.fileno(), os.fstat(file.fileno()).st_size
        if size > MAPPED and sealing.stored(handle, size) is not None:
            try:
                found = one_pass.read(file, size, into)
            except Exception:  # damaged, or with what torch alone can read, such as a sparse tensor
                file.seek(0)
            else:
                return _known(path, found, file), True
        return _known(path, _loaded(file), file), False


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a checkpoint; what fails in the `with` block is one line that names it."""
    try:
        folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
        with opener.opened(folder, path.relative_to(folder).as_posix()) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except one_pass.Damaged:
        said = "damaged since it was written: its content does not have the digest at its end"
        raise UserError(f"{path}: {said}") from None
    except UserError:
        raise
    except Exception as error:
        # torch raises a dozen types for a damaged file: zip, pickle, end of file, refused class
        raise UserError(
            f"{path}: not a readable dlrun checkpoint: incomplete, damaged or of another program"
        ) from error


def _known(path: Path, found: Any, file: BinaryIO) -> dict[str, Any]:
    """What was read, if it is a checkpoint of this version or an older one."""
    expected.hold_size(found, os.fstat(file.fileno()).st_size)
    if isinstance(found, dict):
        refuse_newer(path, found)
    missing = [k for k in KEYS if not isinstance(found, dict) or k not in found]
    if missing:
        raise UserError(f"{path}: not a dlrun checkpoint: {', '.join(missing)} missing")
    return dict(found)
