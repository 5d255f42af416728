"""Ensemble folders: the file names inside one are known here alone (`dlrun ensemble`).

predictions.npz and result.json are named as those of a run, so that the same code reads both. Nothing here imports
torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.errors import UserError
from dlrun.folders.disk import has_file, make_folder, write_atomic
from dlrun.folders.formats import as_csv, read_rows, write_arrays
from dlrun.folders.outputs import OUTPUTS, new_folder
from dlrun.folders.plain import mapping
from dlrun.folders.reading import is_run, walk
from dlrun.folders.version import refuse_newer, stamped

__all__ = ["claim", "find", "free", "is_ensemble", "read", "rows", "write"]


def claim(folder: str | None, label: str) -> Path:
    """Make the folder of an ensemble. Raises UserError when `folder` is not empty."""
    if folder is None:
        return new_folder(OUTPUTS / "ensembles", label)
    path = Path(folder).expanduser()
    make_folder(path)
    free(folder)
    return path


def free(folder: str) -> None:
    """Raise UserError when `folder` exists and is not empty: checked before minutes of evaluation."""
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"--out={folder}: expected a new folder, found a file")
    names = sorted(n for n in os.listdir(path) if not n.startswith(".")) if path.is_dir() else []
    if names:
        raise UserError(f"{path} already contains {names[0]}; choose another --out")


def find(paths: Sequence[str]) -> list[Path]:
    """Return the ensembles at or below `paths`, each once; raises as `walk` does."""
    found = walk(paths, _kind, "an ensemble or a folder of them")
    return [path for path, what in found if what == "ensemble"]


def _kind(path: str) -> str:
    return "ensemble" if is_ensemble(path) else "run" if is_run(path) else ""  # nothing is below a run


def write(
    path: Path,
    asked: Mapping[str, Any],
    scores: Mapping[str, Any],
    arrays: Mapping[str, Any],
    tables: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Write result.json, predictions.npz and CSV tables by name; ensemble.yaml, which marks an ensemble, last."""
    import yaml

    for name, rows in tables.items():
        write_atomic(path / f"{name}.csv", as_csv(rows).encode())
    write_arrays(path / "predictions.npz", arrays)
    write_atomic(path / "result.json", (json.dumps(stamped(scores), indent=1) + "\n").encode())
    text = yaml.safe_dump(stamped(asked), sort_keys=False, allow_unicode=True)
    write_atomic(path / "ensemble.yaml", text.encode())


def is_ensemble(path: Path | str) -> bool:
    """Whether `dlrun ensemble` wrote a folder. Raises OSError if its files may not be looked at."""
    return has_file(path, "ensemble.yaml")


def read(path: Path) -> dict[str, Any]:
    """Return ensemble.yaml.

    Raises UserError when it is not plain YAML with a list of members, NewerFormat when a newer dlrun wrote it.
    """
    file = path / "ensemble.yaml"
    try:
        found = mapping(path, "ensemble.yaml")
    except FileNotFoundError:
        raise UserError(f"{file}: not a readable ensemble: there is no such file") from None
    refuse_newer(file, found)
    members = found.get("members")
    whole = isinstance(members, list) and all(isinstance(m, dict) and isinstance(m.get("run"), str) for m in members)
    if not whole or not members:
        raise UserError(f"{file}: expected a list of members, each with its run")
    return found


def rows(path: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of `table` (votes), `members` or `sizes` of an ensemble as text; none if there is no file."""
    return read_rows(path / f"{name}.csv")
