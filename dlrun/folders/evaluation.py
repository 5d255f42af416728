"""Evaluation folders: the file names inside one are known here (`dlrun evaluate`).

result.json, predictions.npz and per_class.csv are named as those of a run, so that the same code draws both. Nothing
here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.folders.disk import has_file, write_atomic
from dlrun.folders.ensemble import claim as claim_ensemble
from dlrun.folders.formats import as_csv, read_rows, write_arrays
from dlrun.folders.outputs import OUTPUTS, new_folder
from dlrun.folders.reading import is_run
from dlrun.folders.version import stamped

__all__ = ["claim", "is_evaluation", "rows", "write"]


def claim(folder: str | None, label: str) -> Path:
    """Make the folder of an evaluation. Raises UserError when `folder` is not empty."""
    return claim_ensemble(folder, label) if folder is not None else new_folder(OUTPUTS / "evaluations", label)


def write(
    path: Path,
    result: Mapping[str, Any],
    arrays: Mapping[str, Any],
    showcase: Mapping[str, Any],
    tables: Mapping[str, list[dict[str, Any]]],
    fooled: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions.npz, the worst errors as showcase.npz, CSV tables by name, and result.json last.

    `fooled` are images under attack, for adversarial.npz.
    """
    for name, lines in tables.items():
        write_atomic(path / f"{name}.csv", as_csv(lines).encode("utf-8", "surrogateescape"))
    write_arrays(path / "predictions.npz", arrays)
    write_arrays(path / "showcase.npz", showcase, small=True)
    if fooled is not None:
        write_arrays(path / "adversarial.npz", fooled, small=True)
    write_atomic(path / "result.json", (json.dumps(stamped(result), indent=1) + "\n").encode())


def is_evaluation(path: Path) -> bool:
    """Whether `dlrun evaluate` wrote a folder."""
    return has_file(path, "calibration.csv") and not is_run(path)


def rows(path: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of `per_class`, `confusion`, `calibration`, `errors` or `adversarial`; none without the file."""
    return read_rows(path / f"{name}.csv")
