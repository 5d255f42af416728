"""Run folders: the only place that knows a file name in one (`dlrun train`, `dlrun resume`, `dlrun compare`).

A folder has one owner at a time: the process that holds its lock. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.errors import UserError
from dlrun.folders.disk import OWNER, append, lock, make_folder, unlock, write_atomic
from dlrun.folders.formats import as_csv, read_arrays, write_arrays
from dlrun.folders.outputs import OUTPUTS, new_folder, point_latest
from dlrun.folders.reading import epoch_checkpoints, metrics, stored, tested
from dlrun.folders.version import NewerFormat, stamped
from dlrun.vocabulary import Status

__all__ = ["Run", "ask_to_stop", "claim", "reopen", "settle", "take", "taken"]


class Run:
    """One run folder, held by this process until `release`; made by `claim` or `reopen`.

    Raises NewerFormat if a newer dlrun wrote it.
    """

    def __init__(self, path: Path, otherwise: str) -> None:
        self.path = path
        self._lock: int | None = lock(path, otherwise)
        self._told = 0.0  # when `progress` wrote result.json
        try:
            self._result = stored(path)
        except NewerFormat:
            self.release()
            raise

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that `dlrun resume` goes on from."""
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the best monitored value."""
        return self.checkpoints / "best.pt"

    @property
    def tested(self) -> Path:
        """The checkpoint whose weights count: the best, or with trainer.keep=last, which keeps no best, the last."""
        return tested(self.path)

    def epoch_checkpoint(self, row: Mapping[str, Any], monitor: str) -> str:
        """Return the name of the checkpoint of an epoch, with its score in it (O8)."""
        score = "none" if row[monitor] is None else f"{row[monitor]:.4f}"
        return f"epoch_{int(row['epoch']):04d}_{monitor}_{score}.pt"

    def epoch_checkpoints(self) -> list[Path]:
        """Return the checkpoints of single epochs that are there, in their order."""
        return epoch_checkpoints(self.path)

    def fresh_events(self) -> Path:
        """Return the folder of TensorBoard's events, without those of an earlier process."""
        folder = self.path / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        return folder

    @property
    def log(self) -> Path:
        """What was printed."""
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
        """Write what pictures show of pixels and weights: the worst errors, the first layer's filters."""
        write_arrays(self.path / "showcase.npz", arrays, small=True)

    def write_checks(self, rows: list[dict[str, Any]]) -> None:
        """Write the results of the checks, one row a check."""
        write_atomic(self.path / "checks.csv", as_csv(rows).encode())

    def write_dropped(self, rows: list[dict[str, Any]]) -> Path:
        """Write which samples were left out, one row each, and return the file."""
        write_atomic(self.path / "dropped.csv", as_csv(rows).encode())
        return self.path / "dropped.csv"

    def write_audit(self, rows: list[dict[str, Any]]) -> Path:
        """Write what the audit of the data found, one row a finding, and return the file."""
        write_atomic(self.path / "audit.csv", as_csv(rows).encode())
        return self.path / "audit.csv"

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch, readable at once by others."""
        path = self.path / "metrics.csv"
        text = as_csv([row], header=not path.exists())
        append(path, text.encode())

    def append_layers(self, rows: list[dict[str, Any]]) -> None:
        """Append the rows of an epoch, a layer each."""
        path = self.path / "layers.csv"
        if rows:
            append(path, as_csv(rows, header=not path.exists()).encode())

    def add_histograms(self, epoch: int, arrays: Mapping[str, Any] | None) -> None:
        """Add the histograms of an epoch to histograms.npz, in place of those it may hold already."""
        if arrays is not None:
            merged = read_arrays(self.path / "histograms.npz") | {f"{epoch:04d}/{k}": v for k, v in arrays.items()}
            write_arrays(self.path / "histograms.npz", merged, small=True)

    def trim_metrics(self, epoch: int) -> None:
        """Drop rows after `epoch`, and a row that a kill cut short: the run is about to write them again."""
        for name in ("metrics.csv", "layers.csv"):
            self._trim(self.path / name, epoch)

    def _trim(self, path: Path, epoch: int) -> None:
        if not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        whole = [(line.split(",")[0], line) for line in lines[1:] if line.endswith("\n")]
        kept = [line for number, line in whole if number.isdigit() and int(number) <= epoch]
        if epoch == 0 or not lines or not lines[0].endswith("\n"):
            path.unlink()
        elif kept != lines[1:]:
            write_atomic(path, "".join([lines[0], *kept]).encode())

    def update_result(self, **more: Any) -> None:
        """Add to result.json, which other programs read while the run goes on."""
        self._result.update(more)
        write_atomic(self.path / "result.json", (json.dumps(stamped(self._result), indent=1) + "\n").encode())

    def progress(self, **more: Any) -> None:
        """Add how far the run is to result.json, at most twice a second: an epoch may take less than flushing a file.

        Nothing hangs on it, the checkpoint knows; what is written later, and the end, hold all of it.
        """
        self._result.update(more)
        if time.monotonic() - self._told > 0.5:
            self.update_result()
            self._told = time.monotonic()

    def asked_to_stop(self) -> str | None:
        """Return why the run should end after this epoch, or None."""
        try:
            return (self.path / "stop").read_text()
        except OSError:
            return None

    def release(self) -> None:
        """Give the folder up."""
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None


def claim(folder: str | None, label: str, root: Path = OUTPUTS / "runs") -> Run:
    """Take a folder that nobody else has: `folder`, or a new one below `root` named by time and `label`.

    Raises UserError when `folder` is owned by a living process, which it names, or already holds a run.
    """
    if folder is None:
        path = new_folder(root, label)
    else:
        path = Path(str(folder)).expanduser()
        make_folder(path)
    run = Run(path, "choose another run.dir= or wait for it")
    if found := _foreign(path):
        run.release()
        raise UserError(f"{path} already holds {found}choose another run.dir=")
    make_folder(run.checkpoints)
    point_latest(path)
    return run


def _foreign(path: Path) -> str:
    """Say what stands in the way of a new run; what one left that died before it had a config does not."""
    if (path / "config.yaml").exists():
        status = stored(path).get("status", Status.RUNNING)
        status = Status.INTERRUPTED if status == Status.RUNNING else status  # its owner is gone: the lock is ours
        return f"a run ({status}); `dlrun resume {shlex.quote(str(path))}` goes on with it, or "
    names = sorted({n for n in os.listdir(path) if not n.startswith(".")} - {"checkpoints", "log.txt"})
    return f"{names[0]}, which is no run of dlrun; " if names else ""


def reopen(folder: str) -> Run:
    """Take over the folder of a run whose owner is gone.

    Raises UserError when it is no run, or when its owner is alive.
    """
    path = Path(folder).expanduser()
    if not (path / "config.yaml").is_file():
        near = ", ".join(_beside(path))
        raise UserError(f"{folder}: no run here (config.yaml is missing); runs nearby: {near or 'none'}")
    run = Run(path, "it cannot be resumed as long as it runs")
    make_folder(run.checkpoints)
    for leftover in [*path.glob(".*.tmp"), *path.glob("*/.*.tmp")]:
        leftover.unlink()
    return run


def take(folder: Path) -> tuple[Run, bool]:
    """Take the folder of a trial: claimed where it is new, else reopened; the flag says that a config is there."""
    if not (folder / "config.yaml").is_file():
        return claim(str(folder), ""), False
    run = reopen(str(folder))
    with contextlib.suppress(OSError):
        (folder / "stop").unlink()
    return run, True


def ask_to_stop(folder: Path, reason: str) -> None:
    """Ask a run, wherever it runs, to end as pruned after its present epoch."""
    write_atomic(folder / "stop", reason.encode())


def taken(folder: Path) -> float:
    """Return when a run folder was last taken, in seconds since 1970; 0 if it never was."""
    try:
        return (folder / OWNER).stat().st_mtime
    except OSError:
        return 0.0


def settle(folder: Path, **ending: Any) -> None:
    """Write down how a run ended that cannot say so itself: killed, or not chosen to go on."""
    if (folder / "config.yaml").is_file():
        run = Run(folder, "it still runs")
        told = [row.get("epoch") or "" for row in metrics(folder)]
        if epochs := [int(epoch) for epoch in told if epoch.isdigit()]:
            ending = {"epochs": epochs[-1], **ending}  # its `progress` may not have come that far
        run.update_result(**ending)
        run.release()


def _beside(path: Path) -> list[str]:
    """Up to three runs in the same folder, newest name first; none where it cannot be read."""
    try:
        return [str(p.parent) for p in sorted(path.parent.glob("*/config.yaml"), reverse=True)[:3]]
    except OSError:
        return []
