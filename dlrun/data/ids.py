"""The image files that a table of ids names, without labels: `dlrun predict RUN test.csv --images FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dlrun.data.columns import choose_id
from dlrun.data.places import Places
from dlrun.data.sheet import read
from dlrun.errors import UserError

__all__ = ["Located", "located"]


class Located(NamedTuple):
    """The file of each id, in the order of the table, and why the others have none."""

    files: dict[str, Path]
    missing: dict[str, str]


def located(table: Path, folder: Path, hint: str = "type --images FOLDER") -> Located:
    """Return the files of all ids of a table. Raises UserError, with the hint, if no image of the folder is named."""
    sheet, places = read(table), Places(folder)
    column = choose_id(sheet, None, lambda name: bool(places.find(name)))
    if places.find(column):
        raise UserError(f"{table}: its first line names an image, {column}; write the name of the column above it")
    files, missing = dict[str, Path](), dict[str, str]()
    for line, name in zip(sheet.lines, sheet.column(column), strict=True):
        found = places.find(name)
        if len(found) == 1:
            files[name] = found[0]
        else:
            missing[name or f"line {line}"] = f"{len(found)} images of this name in {folder}"
    if not files:
        first = next(iter(missing), "")
        raise UserError(f"{table}: none of its {len(sheet.rows):,} images, such as {first!r}, is in {folder}; {hint}")
    return Located(files, missing)
