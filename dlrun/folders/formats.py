"""Tables and arrays as files: CSV text and .npz archives without pickles (every verb).

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.errors import legible
from dlrun.folders.disk import write_atomic
from dlrun.folders.opener import opened, read_text
from dlrun.folders.plain import rows_of

if TYPE_CHECKING:
    import zipfile

    from numpy.typing import NDArray

__all__ = ["as_csv", "cell", "read_arrays", "read_rows", "write_arrays"]

LARGEST = 4 << 30  # bytes of all compressed arrays of a file: pictures, images by name, histograms
CHUNK = 1 << 20
ARMED = ("=", "+", "-", "@", "\t", "\r")  # begin a formula in spreadsheets


def as_csv(rows: list[Any], header: bool = True) -> str:
    """Return rows of the same keys as the text of a CSV file; texts are written as `cell` does."""
    text, names = io.StringIO(), list(rows[0]) if rows else []
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(map(cell, names))
    writer.writerows([cell(row.get(name, "")) for name in names] for row in rows)
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return a cell of a CSV file: a text that a spreadsheet would compute gets a ' before it, control characters are
    written out; numbers stay as they are.
    """
    if value.__class__ is not str or (value.isprintable() and value[:1] not in ARMED):
        return value
    try:
        float(value)
    except ValueError:
        value = legible(value)
        return f"'{value}" if value and value[0] in ARMED else value
    return value


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text; none if there is no file. Raises Unreadable if it is not readable."""
    try:
        rows = rows_of(read_text(file.parent, file.name), file)
    except FileNotFoundError:
        return []
    for row in rows:
        for name, value in row.items():
            if value[:1] == "'" and value[1:2] in ARMED:
                row[name] = value[1:]
    return rows


def read_arrays(folder: Path, name: str) -> dict[str, Any]:
    """Return the arrays of an .npz; none if it is missing, damaged or contains pickles, or more than LARGEST bytes.

    The size that a compressed array claims is looked at before it is unpacked: a small file may claim terabytes.
    """
    import zipfile

    try:
        with opened(folder, name) as archive, zipfile.ZipFile(archive) as members:
            found = members.infolist()
            stored = sum(m.file_size for m in found if m.compress_type == zipfile.ZIP_STORED)
            if stored > os.fstat(archive.fileno()).st_size or sum(m.file_size for m in found) - stored > LARGEST:
                return {}
            return {m.filename.removesuffix(".npy"): _array(members, m) for m in found}
    except Exception:  # a damaged or foreign archive fails as OSError, BadZipFile, zlib.error, MemoryError …
        return {}


def _array(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of an .npz. Raises ValueError if its header does not fit its size, or if it holds objects."""
    import numpy as np
    from numpy.lib import format as npy

    with members.open(member) as file:
        header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "biufcUS" or size != member.file_size - file.tell():
            raise ValueError(f"{member.filename}: {shape} of {dtype} does not fit {member.file_size} bytes")
        data, there = np.empty(size, np.uint8), 0
        while there < size and (part := file.read(min(CHUNK, size - there))):
            data[there : there + len(part)] = np.frombuffer(part, np.uint8)
            there += len(part)
        if there < size:
            raise ValueError(f"{member.filename} ends early")
    flat: NDArray[Any] = data.view(dtype) if size else np.empty(0, dtype)
    return flat.reshape(shape[::-1]).T if by_column else flat.reshape(shape)


def write_arrays(file: Path, arrays: Mapping[str, Any], *, small: bool = False, within: Path | None = None) -> None:
    """Replace an .npz; `small` compresses it, which takes longer."""
    import numpy as np

    buffer = io.BytesIO()
    (np.savez_compressed if small else np.savez)(buffer, allow_pickle=False, **arrays)
    write_atomic(file, buffer.getvalue(), within=within)
