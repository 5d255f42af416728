"""Sweep folders: the file names inside one, beside those of its runs, are known here alone (`dlrun train -m`).

One process at a time may hold a sweep, like a run. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrun.errors import UserError
from dlrun.folders.disk import OWNER, has_file, lock, make_folder, remove_leftovers, unlock, write_atomic
from dlrun.folders.formats import as_csv, read_rows
from dlrun.folders.opener import Unreadable, appendable, open_beneath, read, remove
from dlrun.folders.outputs import OUTPUTS, new_folder
from dlrun.folders.plain import mapping
from dlrun.folders.reading import config
from dlrun.folders.record import expect_plan
from dlrun.folders.version import refuse_newer, stamped

__all__ = [
    "is_sweep",
    "jobs",
    "journal",
    "log",
    "old_folds",
    "open_sweep",
    "plan",
    "run_folder",
    "table",
    "write_plan",
    "write_table",
]


@contextlib.contextmanager
def open_sweep(folder: str | None, label: str = "") -> Iterator[Path]:
    """Lock the folder of a sweep: a new one named by time and `label`, or one that already contains a sweep.

    Raises UserError when a living process has locked it, or when it contains anything else.
    """
    marked = False
    if folder is None:
        path = new_folder(OUTPUTS / "sweeps", label or "sweep")
    else:
        path = Path(str(folder)).expanduser()
        make_folder(path)
        _refuse_others(path)  # before the lock, which leaves a file there
        marked = os.path.lexists(path / OWNER)
    handle = lock(path, "choose another sweep.dir= or wait for it")
    try:
        _refuse_others(path)
        _refuse_links(path)
        _mend(path, marked)
        yield path
    finally:
        unlock(handle)


def _refuse_others(path: Path) -> None:
    """Raise UserError if a folder contains anything but a sweep."""
    try:
        names = [] if is_sweep(path) else sorted(n for n in os.listdir(path) if not n.startswith("."))
    except OSError as error:
        raise UserError(f"{path}: cannot read this folder: {error.strerror}") from error
    if names:
        raise UserError(f"{path} already contains {names[0]}, which is not part of a sweep; choose another sweep.dir=")


def _refuse_links(path: Path) -> None:
    """Raise Unreadable if a trial or a folder of a sweep is a link: nothing of it may be trained on or overwritten."""
    for name in sorted(os.listdir(path)):
        if (name.isdigit() or name in ("jobs", "plots", "log.txt")) and os.path.islink(path / name):
            raise Unreadable(path / name, "expected a file or folder of this sweep, found a link")


def _mend(path: Path, marked: bool) -> None:
    """Remove a half-written last line and what else a process that is gone left: the sweep is ours.

    Temporary files are dlrun's if its lock's file has `marked` the folder before.
    Raises Unreadable if the journal, which Optuna opens by its name, is a link or has a second name elsewhere.
    """
    with contextlib.suppress(OSError):
        if marked:
            remove_leftovers(path, "plots", "jobs")
    with contextlib.suppress(OSError):
        remove(path, "study.journal.lock")
    try:
        if os.path.lexists(journal(path)):
            os.close(appendable(path, "study.journal"))  # a copy of its own
        handle = open_beneath(path, "study.journal", os.O_RDWR)
    except OSError:
        return
    with os.fdopen(handle, "r+b") as opened:
        content = read(path, "study.journal")
        opened.truncate(content.rfind(b"\n") + 1)


def is_sweep(path: Path | str) -> bool:
    """Whether a folder is that of a sweep. Raises OSError if its files may not be looked at."""
    return has_file(path, "sweep.yaml")


def journal(path: Path) -> Path:
    """Return the file of the Optuna study, which optuna-dashboard opens."""
    return path / "study.journal"


def log(path: Path) -> Path:
    """Return the log of the sweep: everything that was printed."""
    return path / "log.txt"


def jobs(path: Path) -> Path:
    """Return the folder for the job files of a launcher."""
    return path / "jobs"


def run_folder(path: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return path / f"{number:04d}"


def plan(path: Path) -> dict[str, Any]:
    """Return the plan of a sweep, sweep.yaml.

    Raises UserError when sweep.yaml cannot be read, NewerFormat when a newer dlrun wrote it.
    """
    file = path / "sweep.yaml"
    try:
        found = mapping(path, "sweep.yaml")
    except FileNotFoundError:
        raise UserError(f"{file}: not a readable sweep: there is no such file") from None
    refuse_newer(file, found)
    expect_plan(file, found)
    return found


def old_folds(path: Path) -> list[str]:
    """Return the words by which further trials get the folds of the first, if that is older than `dataset.split`."""
    for file in sorted(f for f in path.glob("[0-9]*/config.yaml") if not f.parent.is_symlink())[:1]:
        with contextlib.suppress(UserError):
            node = config(file.parent).get("dataset")
            if isinstance(node, dict) and "split" not in node:
                return ["dataset.split=position", "dataset.test_seed=${dataset.split_seed}"]
    return []


def write_plan(path: Path, content: dict[str, Any]) -> None:
    """Write the plan of a sweep and its rounds so far as plain YAML."""
    import yaml

    write_atomic(path / "sweep.yaml", yaml.safe_dump(stamped(content), sort_keys=False, allow_unicode=True).encode())


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of table.csv as text, one per trial; empty if there is none."""
    return read_rows(path / "table.csv")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write table.csv, one row per trial, and return the file."""
    write_atomic(path / "table.csv", as_csv(rows).encode())
    return path / "table.csv"
