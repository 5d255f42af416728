"""Where new folders go: below outputs/, with outputs/latest as a link to the newest completed run (`dlrun train`)."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.errors import UserError
from dlrun.folders.disk import make_folder, write_atomic
from dlrun.folders.formats import as_csv
from dlrun.folders.opener import read
from dlrun.folders.plain import json_of
from dlrun.vocabulary import Status

__all__ = ["OUTPUTS", "latest_is_gone", "new_folder", "point_latest", "study_folder", "write_sheets"]
__all__ += ["write_study"]


OUTPUTS = Path("outputs")


def write_study(
    verb: str, folder: str | None, label: str, rows: list[dict[str, Any]] | None, picture: bytes
) -> list[Path]:
    """Write the measurements of a verb as CSV (if there are rows) and PNG; return the files.

    Into `folder`, or a new one below outputs/<verb>. Raises UserError when `folder` contains anything else.
    """
    path = study_folder(verb, folder, label, (f"{verb}.csv", f"{verb}.png"), "run.dir=")
    table, drawn = path / f"{verb}.csv", path / f"{verb}.png"
    if rows is not None:
        write_atomic(table, as_csv(rows).encode())
    write_atomic(drawn, picture)
    return [drawn] if rows is None else [table, drawn]


def write_sheets(
    verb: str, folder: str | None, label: str, rows: list[dict[str, Any]], pictures: Mapping[str, bytes]
) -> Path:
    """Write the pictures by their names and data.csv; return the folder, as `study_folder` does."""
    path = study_folder(verb, folder, label, ("data.csv", *pictures), "run.dir=")
    write_atomic(path / "data.csv", as_csv(rows).encode())
    for name, picture in pictures.items():
        write_atomic(path / name, picture)
    return path


def study_folder(verb: str, folder: str | None, label: str, names: Sequence[str], flag: str) -> Path:
    """Make the folder of a verb's results and return it: `folder`, or a new one below outputs/<verb>.

    Raises UserError that names `flag` when `folder` contains other files than those of `names`.
    """
    path = new_folder(OUTPUTS / verb, label) if folder is None else Path(folder).expanduser()
    make_folder(path)
    if foreign := sorted(set(os.listdir(path)) - set(names)):
        raise UserError(f"{path} already contains {foreign[0]}; choose another {flag}")
    return path


def new_folder(root: Path, label: str) -> Path:
    """Make a new folder below `root`, named by time and `label`."""
    while True:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(2)}"
        path = root / name.replace("/", "-")
        try:
            make_folder(path, new=True)
        except FileExistsError:
            continue  # two runs that started in the same second drew the same suffix
        return path


def point_latest(path: Path, *, completed: bool) -> None:
    """Link outputs/latest to a run, if the file system has symbolic links.

    One that has not completed takes the place only of another that has not: `dlrun predict outputs/latest` must not
    lose its model to a run that fails. A sweep ends with a link to its best.
    """
    latest = OUTPUTS / "latest"
    temporary = OUTPUTS / f".latest.{os.getpid()}"
    if (not completed and _completed(latest)) or (latest.exists() and not latest.is_symlink()):
        return  # a file of the user has this name
    try:
        OUTPUTS.mkdir(exist_ok=True)
        temporary.symlink_to(os.path.relpath(path.resolve(), OUTPUTS.resolve()))
        os.replace(temporary, latest)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def latest_is_gone() -> bool:
    """Say whether outputs/latest links to a run that is no longer there, and remove such a link."""
    latest = OUTPUTS / "latest"
    gone = latest.is_symlink() and not latest.exists()
    if gone:
        latest.unlink()
    return gone


def _completed(run: Path) -> bool:
    with contextlib.suppress(OSError, UserError, AttributeError):
        return bool(json_of(read(run, "result.json"), run).get("status") == Status.COMPLETED)
    return False
