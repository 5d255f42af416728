"""Sweep folders: the only place that knows a file name in one, beside the run folders in it (`dlrun train -m`).

A sweep has one owner at a time, like a run. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrun.errors import UserError
from dlrun.folders.disk import lock, make_folder, unlock, write_atomic
from dlrun.folders.formats import as_csv
from dlrun.folders.outputs import OUTPUTS, new_folder
from dlrun.folders.version import refuse_newer, stamped

__all__ = [
    "is_sweep",
    "jobs",
    "journal",
    "log",
    "open_sweep",
    "plan",
    "run_folder",
    "table",
    "write_plan",
    "write_table",
]


@contextlib.contextmanager
def open_sweep(folder: str | None) -> Iterator[Path]:
    """Hold the folder of a sweep: a new one, or one that holds a sweep already.

    Raises UserError when a living process has it, or when it holds anything else.
    """
    if folder is None:
        path = new_folder(OUTPUTS / "sweeps", "sweep")
    else:
        path = Path(str(folder)).expanduser()
        make_folder(path)
    handle = lock(path, "choose another sweep.dir= or wait for it")
    if not is_sweep(path) and (names := sorted(n for n in os.listdir(path) if not n.startswith("."))):
        unlock(handle)
        raise UserError(f"{path} already holds {names[0]}, which is no sweep; choose another sweep.dir=")
    _mend(journal(path))
    try:
        yield path
    finally:
        unlock(handle)


def _mend(file: Path) -> None:
    """Cut a line off that a kill left half written, and the lock of a process that is gone: the sweep is ours."""
    with contextlib.suppress(OSError):
        Path(f"{file}.lock").unlink()
    with contextlib.suppress(OSError), open(file, "r+b") as opened:
        content = opened.read()
        opened.truncate(content.rfind(b"\n") + 1)


def is_sweep(path: Path) -> bool:
    """Say whether a folder holds a sweep."""
    return (path / "sweep.yaml").is_file()


def journal(path: Path) -> Path:
    """Return Optuna's file, which optuna-dashboard opens."""
    return path / "study.journal"


def log(path: Path) -> Path:
    """Return what the sweep printed."""
    return path / "log.txt"


def jobs(path: Path) -> Path:
    """Return the folder for what a launcher writes that queues jobs."""
    return path / "jobs"


def run_folder(path: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return path / f"{number:04d}"


def plan(path: Path) -> dict[str, Any]:
    """Return what was asked of a sweep.

    Raises UserError when sweep.yaml cannot be read, NewerFormat when a newer dlrun wrote it.
    """
    import yaml

    file = path / "sweep.yaml"
    try:
        found = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable sweep: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected keys and values")
    refuse_newer(file, found)
    return found


def write_plan(path: Path, content: dict[str, Any]) -> None:
    """Write what was asked, and the rounds so far, as plain YAML."""
    import yaml

    write_atomic(path / "sweep.yaml", yaml.safe_dump(stamped(content), sort_keys=False, allow_unicode=True).encode())


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of table.csv as text, a trial each; empty where there is none."""
    try:
        with open(path / "table.csv", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the table, a row a trial, and return the file."""
    write_atomic(path / "table.csv", as_csv(rows).encode())
    return path / "table.csv"
