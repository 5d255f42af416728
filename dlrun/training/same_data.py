"""A run keeps the images that it began with: recorded at its start, compared when it continues (`dlrun resume`, D4).

Images added since would move into folds, and removed ones out of them: scores of earlier epochs would no longer belong
to the same images. `dataset.changed=accept` continues with the recorded images if all of them are still there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrun.data import Data
from dlrun.data.changes import Rows, changes
from dlrun.errors import DataChanged
from dlrun.folders import reading
from dlrun.folders.run import Run

__all__ = ["continued", "record"]

# in the record of a run of any version; None of the last: files were not decoded
HASHES = {"classes": "classes", "val_sha256": "images of the validation split", "content_sha256": "images or labels"}


def record(run: Run, data: Data, *, final: bool = False) -> None:
    """Write what the images of the run are: name, content, label, split; not for built-in datasets in memory."""
    rows = data.rows(final=final)
    if rows is not None:
        run.write_identity(rows.arrays())


def continued(path: Path, data: Data, again: Callable[..., Data] | None) -> tuple[Data, str]:
    """Return the data for a run that continues or is evaluated again, and a line for the screen, or "".

    `again` reads the data with recorded folds, if it is accepted that they changed. Raises DataChanged that says what
    was added, removed, changed or renamed.
    """
    before = reading.stored(path).get("data")
    if not isinstance(before, dict):
        return data, ""  # it stopped before its data were recorded
    rows = Rows.read(reading.arrays(path, "identity"))
    tested = rows is not None and data.held is None and bool(rows.of("test").ids)
    now = data.rows(final=tested)
    if rows is None or now is None:
        _compare_hashes(path, before, data.record())
        return data, ""
    found = changes(rows, now, list(before.get("classes") or ()), data.classes)
    if not found:
        return _weighted_alike(path, before, data), ""
    if again is not None and found.recoverable:
        kept = _weighted_alike(path, before, again(recorded=rows))
        return kept, f"the data changed: {found}: only the {len(rows.ids):,} recorded images are used"
    if found.recoverable:
        remedy = "undo it, or add dataset.changed=accept to continue with the recorded images alone"
    else:
        remedy = "restore what is missing, or start a new run"
    raise DataChanged(f"{path}: the data are not those that the run began with: {found}; {remedy}")


def _weighted_alike(path: Path, before: dict[str, Any], data: Data) -> Data:
    """The data, whose images are those of the run. Raises DataChanged if their weights in the loss are not."""
    if (before.get("weights") or data.train.weights is not None) and before.get("identity") != data.identity(
        "train", "val"
    ):
        raise DataChanged(f"{path}: the weights of its images have changed; restore the table, or start a new run")
    return data


def _compare_hashes(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, what in HASHES.items():
        if None not in (before.get(key), now[key]) and before[key] != now[key]:
            why = "restore the data, or start a new run"
            raise DataChanged(f"{path}: the data are not those that the run began with: other {what}; {why}")
