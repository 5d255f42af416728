"""Tables and arrays as files: CSV text and .npz archives without pickles (every verb).

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.folders.disk import write_atomic

__all__ = ["as_csv", "read_arrays", "read_rows", "write_arrays"]


def as_csv(rows: list[Any], header: bool = True) -> str:
    """Return rows of the same keys as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text; none if there is no file."""
    try:
        with open(file, newline="") as opened:
            return list(csv.DictReader(opened))
    except FileNotFoundError:
        return []


def read_arrays(file: Path) -> dict[str, Any]:
    """Return the arrays of an .npz; none if it is missing, damaged or contains pickles."""
    import numpy as np

    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as found:
            return dict(found)
    except Exception:  # a damaged or foreign archive fails as OSError, BadZipFile, zlib.error, MemoryError …
        return {}


def write_arrays(file: Path, arrays: Mapping[str, Any], *, small: bool = False) -> None:
    """Replace an .npz; `small` compresses it, which takes longer."""
    import numpy as np

    buffer = io.BytesIO()
    (np.savez_compressed if small else np.savez)(buffer, allow_pickle=False, **arrays)
    write_atomic(file, buffer.getvalue())
