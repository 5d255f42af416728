"""Writing a run folder: one process at a time, the one that holds its lock (`dlrun train`, `dlrun resume`).

The file names inside one are known here and in reading.py alone. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.errors import UserError
from dlrun.folders.disk import LEFTOVER, OWNER, append, holds, lock, make_folder, remove_leftovers, unlock, write_atomic
from dlrun.folders.formats import as_csv, read_arrays, write_arrays
from dlrun.folders.opener import Unreadable, names, read_text, real_folder, remove
from dlrun.folders.outputs import OUTPUTS, latest_is_gone, new_folder, point_latest
from dlrun.folders.reading import epoch_checkpoints, metrics, stored, tested
from dlrun.folders.version import NewerFormat, stamped
from dlrun.vocabulary import Exit, Status

__all__ = ["Run", "ask_to_stop", "claim", "reopen", "settle", "take"]

PLACES = ("checkpoints", "plots", "code")  # folders of a run in which dlrun replaces files


class Run:
    """One run folder, locked by this process until `release`; made by `claim` or `reopen`.

    Raises NewerFormat if a newer dlrun wrote it.
    """

    def __init__(self, path: Path, otherwise: str) -> None:
        self.path = path
        self._lock: int | None = lock(path, otherwise)
        self._written = 0.0  # when `progress` wrote result.json
        try:
            self._result = stored(path)
        except NewerFormat:
            self.release()
            raise
        except Unreadable:  # it is written anew: what training needs is in the checkpoint
            self._result = {"status": Status.RUNNING}

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that `dlrun resume` continues from."""
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the best monitored value."""
        return self.checkpoints / "best.pt"

    @property
    def tested(self) -> Path:
        """The checkpoint that is tested: the best, or the last with trainer.keep=last, which keeps no best."""
        return tested(self.path)

    def epoch_checkpoint(self, row: Mapping[str, Any], monitor: str) -> str:
        """Return the name of the checkpoint of an epoch, with its score in it (O8)."""
        score = "none" if row[monitor] is None else f"{row[monitor]:.4f}"
        return f"epoch_{int(row['epoch']):04d}_{monitor}_{score}.pt"

    def epoch_checkpoints(self) -> list[Path]:
        """Return the checkpoints of single epochs, oldest first."""
        return epoch_checkpoints(self.path)

    def fresh_events(self) -> Path:
        """Return the folder for TensorBoard's events, emptied of those of an earlier process."""
        folder = self.path / "tensorboard"
        for old in names(self.path, "tensorboard"):
            if old.startswith("events.out.tfevents."):
                remove(self.path, f"tensorboard/{old}")
        return folder

    @property
    def log(self) -> Path:
        """The log: everything that was printed."""
        return self.path / "log.txt"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config as plain YAML."""
        import yaml

        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomic(self.path / "config.yaml", text.encode())

    def write_predictions(self, arrays: Mapping[str, Any]) -> None:
        """Write logits, labels and sample ids of val and test."""
        write_arrays(self.path / "predictions.npz", arrays)

    def write_showcase(self, arrays: Mapping[str, Any]) -> None:
        """Write the pixels and weights that pictures show: the worst errors, the filters of the first layer."""
        write_arrays(self.path / "showcase.npz", arrays, small=True)

    def write_probe(self, arrays: Mapping[str, Any]) -> None:
        """Write a few images and their logits, by which later commands verify the model."""
        write_arrays(self.path / "probe.npz", arrays, small=True)

    def write_identity(self, arrays: Mapping[str, Any]) -> None:
        """Write name, content, label and split of every image."""
        write_arrays(self.path / "identity.npz", arrays, small=True)

    def write_per_class(self, rows: list[dict[str, Any]]) -> None:
        """Write the scores of each class, one row per class."""
        write_atomic(self.path / "per_class.csv", as_csv(rows).encode())

    def write_checks(self, rows: list[dict[str, Any]]) -> None:
        """Write the results of the checks, one row per check."""
        write_atomic(self.path / "checks.csv", as_csv(rows).encode())

    def write_weights(self, rows: list[dict[str, Any]]) -> None:
        """Write what training started from, one row per weight: loaded, new, or left in its file."""
        write_atomic(self.path / "weights.csv", as_csv(rows).encode())

    def write_dropped(self, rows: list[dict[str, Any]]) -> Path:
        """Write the samples that were omitted, one row each, and return the file."""
        write_atomic(self.path / "dropped.csv", as_csv(rows).encode())
        return self.path / "dropped.csv"

    def write_audit(self, rows: list[dict[str, Any]]) -> Path:
        """Write the findings of the data audit, one row each, and return the file."""
        write_atomic(self.path / "audit.csv", as_csv(rows).encode())
        return self.path / "audit.csv"

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch; other programs can read it at once. Raises Surroundings if it may not."""
        if self._lock is not None:
            holds(self._lock, self.path)
        path = self.path / "metrics.csv"
        text = as_csv([row], header=not os.path.lexists(path))
        append(path, text.encode())

    def append_layers(self, rows: list[dict[str, Any]]) -> None:
        """Append the rows of an epoch, one per layer."""
        path = self.path / "layers.csv"
        if rows:
            append(path, as_csv(rows, header=not os.path.lexists(path)).encode())

    def add_histograms(self, epoch: int, arrays: Mapping[str, Any] | None) -> None:
        """Add the histograms of an epoch to histograms.npz; they replace older ones of the same epoch."""
        if arrays is not None:
            merged = read_arrays(self.path, "histograms.npz") | {f"{epoch:04d}/{k}": v for k, v in arrays.items()}
            write_arrays(self.path / "histograms.npz", merged, small=True)

    def trim_metrics(self, epoch: int) -> None:
        """Drop the rows after `epoch` and a row that a kill cut short: the run will write them again."""
        for name in ("metrics.csv", "layers.csv"):
            self._trim(self.path / name, epoch)

    def _trim(self, path: Path, epoch: int) -> None:
        try:
            lines = read_text(path.parent, path.name).splitlines(keepends=True)
        except FileNotFoundError:
            return
        whole = [(line.split(",")[0], line) for line in lines[1:] if line.endswith("\n")]
        kept = [line for number, line in whole if number.isdigit() and int(number) <= epoch]
        if epoch == 0 or not lines or not lines[0].endswith("\n"):
            remove(path.parent, path.name)
        elif kept != lines[1:]:
            write_atomic(path, "".join([lines[0], *kept]).encode())

    def update_result(self, **more: Any) -> None:
        """Add to result.json, which other programs may read during the run."""
        self._result.update(more)
        write_atomic(self.path / "result.json", (json.dumps(stamped(self._result), indent=1) + "\n").encode())
        if more.get("status") == Status.COMPLETED:
            point_latest(self.path, completed=True)

    def result(self) -> dict[str, Any]:
        """Return result.json as this process has written it so far."""
        return dict(self._result)

    def put_back(self, result: Mapping[str, Any]) -> None:
        """Replace result.json by an earlier one: nothing has happened since."""
        self._result = dict(result)
        self.update_result()

    def progress(self, **more: Any) -> None:
        """Add the progress of the run to result.json, at most twice a second: flushing may take longer than an epoch.

        A skipped write loses nothing: `dlrun resume` reads the checkpoint, and the next write contains everything.
        """
        self._result.update(more)
        if time.monotonic() - self._written > 0.5:
            self.update_result()
            self._written = time.monotonic()

    def asked_to_stop(self) -> str | None:
        """Return why the run should end after this epoch, or None."""
        try:
            return read_text(self.path, "stop")
        except (OSError, Unreadable):
            return None

    def discard(self) -> None:
        """Remove the folder of a run that was refused before anything was measured; other files in it stay."""
        measured = ("metrics.csv", "layers.csv", "checks.csv", "audit.csv", "dropped.csv", "checkpoints/last.pt")
        if any((self.path / name).exists() for name in measured):
            return
        shutil.rmtree(self.path / "code", ignore_errors=True)  # refuses a link
        with contextlib.suppress(OSError):  # not empty, or nothing may be deleted, which is not why it was refused
            for name in ("config.yaml", "result.json", "identity.npz", "weights.csv", "log.txt", OWNER):
                (self.path / name).unlink(missing_ok=True)
            self.checkpoints.rmdir()
            self.path.rmdir()
        latest_is_gone()

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None


def claim(folder: str | None, label: str, root: Path = OUTPUTS / "runs") -> Run:
    """Lock `folder`, or a new one below `root` named by time and `label`, for a new run.

    Raises UserError when a living process, which it names, has locked `folder`, or when it already contains a run.
    """
    if folder is None:
        path = new_folder(root, label)
    else:
        path = Path(str(folder)).expanduser()
        make_folder(path)
    marked = os.path.lexists(path / OWNER)
    run = Run(path, "choose another run.dir= or wait for it")
    try:
        if found := _foreign(path, marked):
            raise UserError(f"{path} already contains {found}choose another run.dir=")
        real_folder(path, "checkpoints")
        if marked:
            remove_leftovers(path, *PLACES)
    except OSError as error:
        run.release()
        raise UserError(f"{run.checkpoints}: cannot make this folder: {error.strerror}", Exit.FAILED) from error
    except UserError:
        if not marked:
            (path / OWNER).unlink(missing_ok=True)
        run.release()
        raise
    point_latest(path, completed=False)
    return run


def _foreign(path: Path, marked: bool) -> str:
    """What prevents a new run in a folder, if anything; the files of a run that died before its config do not.

    Such a run left its lock, by which the folder is `marked`, perhaps a log, and no checkpoint.
    """
    if (path / "config.yaml").exists():
        status = stored(path).get("status", Status.RUNNING)
        status = Status.INTERRUPTED if status == Status.RUNNING else status  # its process is gone: the lock is ours
        return f"a run ({status}); `dlrun resume {shlex.quote(str(path))}` continues it, or "
    own = {"checkpoints", *(("log.txt", "result.json") if marked else ())}  # the disk was full, or the trial was killed
    inside = {name for name in os.listdir(path) if not name.startswith(".")} - own
    inside |= {f"checkpoints/{name}" for name in names(path, "checkpoints") if not LEFTOVER.fullmatch(name)}
    return f"{min(inside)}, which is not part of a run; " if inside else ""


def reopen(folder: str) -> Run:
    """Lock the folder of a run whose process is gone.

    Raises UserError when it is not a run, or when its process is alive.
    """
    path = Path(folder).expanduser()
    if not (path / "config.yaml").is_file():
        near = ", ".join(_beside(path))
        raise UserError(f"{folder}: no run here (config.yaml is missing); runs nearby: {near or 'none'}")
    run = Run(path, "wait for it to end before resuming it")
    try:
        real_folder(path, "checkpoints")
        remove_leftovers(path, *PLACES)
    except OSError as error:
        run.release()
        raise UserError(f"{error.filename or path}: cannot write: {error.strerror}", Exit.FAILED) from error
    except UserError:
        run.release()
        raise
    return run


def take(folder: Path) -> tuple[Run, bool]:
    """Lock the folder of a trial: claimed if it is new, else reopened; the flag is set if it has a config."""
    if folder.is_symlink():  # somebody else's run, or the user's own elsewhere
        raise Unreadable(folder, "expected the folder of a trial, found a link")
    if not (folder / "config.yaml").is_file():
        return claim(str(folder), ""), False
    run = reopen(str(folder))
    with contextlib.suppress(OSError):
        (folder / "stop").unlink()
    return run, True


def ask_to_stop(folder: Path, reason: str) -> None:
    """Ask a run, on any machine, to end as pruned after the current epoch."""
    write_atomic(folder / "stop", reason.encode())


def settle(folder: Path, **ending: Any) -> None:
    """Write the result of a run that cannot do so itself: it was killed, or not selected for the next stage."""
    if (folder / "config.yaml").is_file():
        run = Run(folder, "it still runs")
        written = [row.get("epoch") or "" for row in metrics(folder)]
        if epochs := [int(epoch) for epoch in written if epoch.isdigit()]:
            ending = {"epochs": epochs[-1], **ending}  # its last `progress` may have been skipped
        run.update_result(**ending)
        run.release()


def _beside(path: Path) -> list[str]:
    """Up to three runs in the same folder, newest name first; none if it cannot be read."""
    try:
        return [str(p.parent) for p in sorted(path.parent.glob("*/config.yaml"), reverse=True)[:3]]
    except OSError:
        return []
