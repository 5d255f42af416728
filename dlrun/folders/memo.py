"""Results that a later run can reuse: receipts of passed checks, and the logits of a teacher for every image.

Stored under hashes in hidden folders beside the runs, which may be deleted at any time. If a folder cannot be written,
the next run computes them again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.errors import UserError
from dlrun.folders.disk import make_folder, write_atomic
from dlrun.folders.formats import read_arrays, write_arrays
from dlrun.folders.opener import read, real_folder
from dlrun.folders.outputs import OUTPUTS
from dlrun.folders.plain import json_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_receipt", "read_targets", "write_receipt", "write_targets"]

RECEIPTS, TEACHERS = OUTPUTS / ".receipts", OUTPUTS / ".teachers"


def _make(folder: Path) -> None:
    make_folder(OUTPUTS)
    real_folder(OUTPUTS, folder.name)


def read_targets(key: str) -> NDArray[Any] | None:
    """Return the stored outputs of a teacher, or None."""
    return read_arrays(OUTPUTS, f"{TEACHERS.name}/{key}.npz").get("targets")


def write_targets(key: str, targets: NDArray[Any]) -> None:
    """Store the outputs of a teacher."""
    with contextlib.suppress(OSError, UserError):
        _make(TEACHERS)
        write_arrays(TEACHERS / f"{key}.npz", {"targets": targets}, within=OUTPUTS)


def read_receipt(name: str) -> dict[str, Any] | None:
    """Return the content of a receipt, or None."""
    try:
        file = f"{RECEIPTS.name}/{name}.json"
        found = json_of(read(OUTPUTS, file), file)
    except (OSError, UserError):
        return None
    return found if isinstance(found, dict) else None


def write_receipt(name: str, content: Mapping[str, Any]) -> None:
    """Store a receipt."""
    with contextlib.suppress(OSError, UserError):
        _make(RECEIPTS)
        write_atomic(RECEIPTS / f"{name}.json", json.dumps(content).encode(), within=OUTPUTS)
