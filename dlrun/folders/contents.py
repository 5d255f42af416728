"""Runs, sweeps and ensembles below a folder: finding, measuring and deleting them (`dlrun list`, `dlrun rm`).

Nothing else is ever deleted, and no link is followed. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dlrun.errors import UserError
from dlrun.folders import ensemble, reading, sweep
from dlrun.folders.disk import OWNER, lock, owned, unlock
from dlrun.folders.opener import Unreadable
from dlrun.folders.version import NewerFormat
from dlrun.vocabulary import Exit

__all__ = ["MARKERS", "Found", "delete", "find", "foreign", "in_use", "kind", "of_dlrun", "size", "trials"]

MARKERS = {"run": "config.yaml", "sweep": "sweep.yaml", "ensemble": "ensemble.yaml"}
# the names that dlrun writes; anything else in a folder is the user's
OF_ALL = r"result\.json|report\.html|predictions\.npz|(errors|confusions|per_class)\.csv|plots|log\.txt"
OF_ALL += r"|\.owner|\..*\.tmp|\.nfs.*|\.DS_Store"
OF_ONE = {
    "run": r"config\.yaml|(checks|metrics|layers|dropped|audit|weights)\.csv|(histograms|identity|showcase|probe)\.npz"
    r"|checkpoints|earlier|code|tensorboard|mlruns|mlflow.*|stop",
    "sweep": r"sweep\.yaml|study\.journal(\.lock)?|table\.csv|jobs|\d{4,}",
    "ensemble": r"ensemble\.yaml|(table|members|sizes|oof)\.csv",
}


class Found(NamedTuple):
    """A folder and what it holds: `run`, `sweep` or `ensemble`."""

    path: Path
    kind: str


def kind(path: Path | str) -> str:
    """Return `run`, `sweep` or `ensemble`, or "" if a folder holds none of them."""
    if ensemble.is_ensemble(path):
        return "ensemble"
    return "sweep" if sweep.is_sweep(path) else "run" if reading.is_run(path) else ""


def find(paths: Sequence[str]) -> list[Found]:
    """Return the runs, sweeps and ensembles at or below `paths`, each once; not the trials of a sweep.

    Raises UserError for a path that is not there.
    """
    expected = "a run, a sweep, an ensemble or a folder of them"
    return [Found(path, what) for path, what in reading.walk(paths, kind, expected)]


def trials(path: Path) -> list[Path]:
    """Return the run folders of a sweep, in order."""
    return sorted(file.parent for file in path.glob("[0-9]*/config.yaml") if not file.parent.is_symlink())


def size(paths: Iterable[Path]) -> int:
    """Return the bytes on the disk at and below `paths`, a file with several names once."""
    seen: dict[tuple[int, int], int] = {}
    for path in paths:
        for top, folders, names in os.walk(path):
            for name in (*folders, *names):
                with contextlib.suppress(OSError):  # a running run replaces its files
                    stat = os.lstat(os.path.join(top, name))
                    seen[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values())


def in_use(found: Found) -> Path | None:
    """Return the folder that a living process has locked: this one or a trial of it; None if there is none."""
    inside = trials(found.path) if found.kind == "sweep" else []
    return next((path for path in (found.path, *inside) if owned(path)), None)


def foreign(found: Found) -> str:
    """Say why a folder is not all dlrun's own: what is in it that dlrun does not write; "" if it is."""
    path, what = found
    if what == "run" and not of_dlrun(path):
        return f"{path / 'config.yaml'} is not a config of dlrun"
    known = re.compile(f"{OF_ALL}|{OF_ONE[what]}")
    for entry in sorted(os.scandir(path), key=lambda e: e.name):
        if not known.fullmatch(entry.name):
            return f"{entry.path} was not written by dlrun"
        if what == "sweep" and entry.name.isdigit() and (why := _trial(Path(entry.path))):
            return why
    return ""


def _trial(path: Path) -> str:
    if path.is_symlink() or not path.is_dir():
        return f"{path} was not written by dlrun"
    if reading.is_run(path):
        return foreign(Found(path, "run"))
    known = re.compile(f"{OF_ALL}|checkpoints")  # a trial that ended before it had a config
    names = sorted(name for name in os.listdir(path) if not known.fullmatch(name))
    return f"{path / names[0]} was not written by dlrun" if names else ""


def of_dlrun(path: Path) -> bool:
    """Return whether dlrun wrote the config.yaml of a folder: other programs name their files so as well."""
    with contextlib.suppress(UserError):
        return {"dataset", "model", "optimizer", "trainer"} <= set(reading.config(path))
    try:
        return "status" in reading.stored(path) and (path / "result.json").is_file()
    except NewerFormat:
        return True
    except Unreadable:
        return False


def delete(found: Found) -> None:
    """Delete a run, a sweep or an ensemble, which a living process must not have locked.

    A kill in between leaves a folder that can be deleted again. Raises UserError.
    """
    path, what = found
    if path.is_symlink():
        raise UserError(f"{path} is a link; type the folder itself: {path.resolve()}")
    inside = trials(path) if what == "sweep" else []
    handles = []
    try:
        for one in (path, *inside):
            handles.append(lock(one, "it cannot be deleted while it runs"))
        marker = (MARKERS[what], OWNER)
        names = sorted(os.listdir(path), key=lambda name: (name in marker, name != "result.json", name))
        for name in names:
            _remove(path / name)
        path.rmdir()
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot delete: {error.strerror}", Exit.FAILED) from error
    finally:
        for handle in handles:
            unlock(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # deletes links in it, never what they lead to
    else:
        path.unlink()
