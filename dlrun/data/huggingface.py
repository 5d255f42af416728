"""Data sets of the library `datasets`: `dlrun train dataset=huggingface dataset.path=photos` (D4).

A folder of Parquet files or of images, or a name on the hub, which the library fetches and keeps; `pip install
'dlrun[huggingface]'`. What it finds there is in dlrun/data/hub.py. Images lie in its Arrow files and are read row by
row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrun.data import hub
from dlrun.data.bad import Bad, BadData
from dlrun.data.form import Form
from dlrun.data.groups import by_pattern
from dlrun.data.labels import Labels, class_names, numbered
from dlrun.data.members import File, Member, Stat
from dlrun.data.splits import Raw, Split
from dlrun.errors import UserError

__all__ = ["huggingface"]

LABELS = ("label", "labels", "class", "category", "target", "fine_label", "y")


@dataclass(frozen=True, slots=True, eq=False)
class RowMember(Member):
    """The image in a row of an Arrow file, which is mapped into memory."""

    column: Any  # pyarrow.ChunkedArray of bytes
    row: int
    size: int
    holder: Path
    place: str

    def __fspath__(self) -> str:
        return self.place

    def read_bytes(self) -> bytes:
        """Return the content."""
        found: bytes = self.column[self.row].as_py()
        return found

    def stat(self) -> Stat:
        """Return size of the image, and times and number of the file. Raises OSError."""
        found = os.stat(self.holder)
        return Stat(self.size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def huggingface(
    path: str,
    name: str | None = None,
    revision: str | None = None,
    *,
    train_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: str = "auto",
    num_classes: int = 0,
    group_pattern: str | None = None,
    on_bad: str = "error",
    **form: Any,
) -> Raw:
    """The images of a folder or of a data set on the hub. Nothing is decoded here.

    `name` is the configuration of a data set that has several. The columns and splits that are not named are found by
    their types and usual names. `labels` and `num_classes` are those of dlrun/data/arrays.py, `form` has the keys of
    `Form.of`. Raises UserError in one line, and BadData for rows that cannot be used.
    """
    path, made = str(path), Form.of(**form)  # a name may be a number
    tables, top, files = hub.tables(path, name, revision)
    typed = {"train": train_split, "val": val_split, "test": test_split}
    chosen = {role: place for role, asked in typed.items() if (place := hub.chosen(role, asked, tables, path))}
    columns = tables[chosen["train"]].features
    images, label = _images(columns, image_column, path), _label(columns, label_column, path)
    hub.require_same_classes(path, label, columns.get(label), files, chosen.values())
    found = {role: _Part.of(role, tables[place], images, label, top) for role, place in chosen.items()}
    notes = [f"{path}: images by column {images}, labels by {label}"]
    if found.get("test") and not found["test"].files and all(one.reason == UNLABELLED for one in found["test"].bad):
        del found["test"]
        notes.append("the test split has no labels and is left out")
    bad = [one for part in found.values() for one in part.bad]
    if bad and on_bad == "error":
        raise BadData(bad, sum(len(part.files) + len(part.bad) for part in found.values()))
    if not found["train"].files:
        raise UserError(f"dataset.path={path}: no row can be used for training; the first {bad[0].reason}")
    classes, note = found["train"].names, ""
    if not classes:
        classes, note = class_names(
            found["train"].labels, f"dataset.label_column={label}", num_classes, each=labels == "names"
        )
    stream = made.stream(found["train"].files, top)

    def split(role: str) -> Split:
        part = found[role]
        numbers = (
            part.labels.values
            if part.names
            else numbered(part.labels, classes, f"dataset.label_column={label}: {role}")
        )
        return Split(
            stream(part.files), torch.from_numpy(numbers), part.ids, groups=by_pattern(group_pattern, part.ids)
        )

    test = (lambda: split("test")) if "test" in found else None
    val = split("val") if "val" in found else None
    return Raw(split("train"), test, classes, val, (*notes, *([note] if note else [])), tuple(bad))


UNLABELLED = "has no label"


@dataclass
class _Part:
    """The usable rows of a split: files, labels, ids, and the names of the classes if the column has them."""

    files: list[File]
    labels: Labels
    ids: list[str]
    bad: list[Bad]
    names: list[str]

    @classmethod
    def of(cls, role: str, table: Any, images: str, label: str, top: Path) -> _Part:
        """Read the columns of a table; of the images only where they lie."""
        for column in (images, label):
            if column not in table.features:
                raise UserError(f"the {role} split has no column {column}; found {', '.join(table.features)}")
        files, why = _files(role, table, images, top)
        names = list(getattr(table.features[label], "names", None) or [])
        values = table.data.column(label).to_pylist()
        bad, kept = [], []
        for row, (file, reason) in enumerate(zip(files, why, strict=True)):
            given = values[row]
            absent = given is None or given == "" or (names and given == -1)  # as the hub marks secret labels
            reason = reason or (UNLABELLED if absent else "")
            if reason or file is None:
                bad.append(Bad(f"{role}/{row}", role, reason))
            else:
                kept.append(row)
        key, chosen = f"dataset.label_column={label}", [values[row] for row in kept]
        if not all(isinstance(one, (int, str)) for one in chosen) or len({type(one) for one in chosen}) > 1:
            wrong = next(one for one in chosen if not isinstance(one, (int, str)) or isinstance(one, bool))
            raise UserError(f"{key}: expected class numbers or names, found {str(wrong)[:40]}")
        if beyond := [one for one in chosen if isinstance(one, int) and abs(one) >= 2**63]:
            raise UserError(f"{key}: expected numbers of 64 bits, found {beyond[0]}")
        array = np.array(chosen, dtype=np.int64) if chosen and isinstance(chosen[0], int) else np.array(chosen, str)
        ids = [_id(files[row], role, row, top) for row in kept]
        return cls([f for row in kept if (f := files[row]) is not None], Labels(array), ids, bad, names)


def _id(file: File | None, role: str, row: int, top: Path) -> str:
    if isinstance(file, Path):
        return os.path.relpath(file, top) if top in file.parents else f"{role}/{row}/{file.name}"
    return f"{role}/{row}"


def _files(role: str, table: Any, column: str, top: Path) -> tuple[list[File | None], list[str]]:
    """The file of each row of a column, and why it has none."""
    import pyarrow
    import pyarrow.compute as compute

    held, paths = table.data.column(column), [None] * table.num_rows
    holder = Path(table.cache_files[0]["filename"])
    if pyarrow.types.is_struct(held.type):
        paths = compute.struct_field(held, "path").to_pylist() if "path" in [f.name for f in held.type] else paths
        held = compute.struct_field(held, "bytes")
    if pyarrow.types.is_null(held.type):  # as of a table of paths alone
        held = held.cast(pyarrow.binary())
    if not (pyarrow.types.is_binary(held.type) or pyarrow.types.is_large_binary(held.type)):
        raise UserError(f"dataset.image_column={column}: expected the bytes of images, found {held.type}")
    sizes = compute.binary_length(held).to_pylist()
    files, why = list[File | None](), list[str]()
    for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        if size is not None:
            files.append(RowMember(held, row, size, holder, f"{holder.parent}/{role}/{row}"))
            why.append("" if size else "has an image of 0 bytes")
        elif path and table.builder_name == "imagefolder" and _beneath(path, (top, *_caches())):
            files.append(Path(path))
            why.append("")
        else:  # a row may name any file of this machine
            files.append(None)
            why.append(f"names the file {str(path)[-60:]} instead of holding the image" if path else "has no image")
    return files, why


def _caches() -> list[Path]:
    """Where the library and the hub keep what they fetched."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(place) for place in (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)]


def _beneath(path: str, folders: Sequence[Path]) -> bool:
    """Whether a path lies in one of some folders; links in them are followed, as by dataset=image_folder."""
    there = Path(os.path.abspath(path))
    return any(Path(os.path.abspath(folder)) in there.parents for folder in folders)


def _images(columns: Any, asked: str | None, path: str) -> str:
    """The column of the images. Raises UserError if there is none, or several."""
    there = ", ".join(columns)
    found = [name for name, kind in columns.items() if _holds_images(kind)]
    if asked:
        if asked not in found:
            raise UserError(hub.no_such("dataset.image_column", asked, found or [*columns], "column of images", path))
        return asked
    if not found:
        raise UserError(f"dataset.path={path}: no column holds images; it has {there}")
    if len(found) > 1:
        several = " and ".join(found)
        raise UserError(
            f"dataset.path={path}: several columns hold images, {several}; type dataset.image_column={found[0]}"
        )
    return str(found[0])


def _holds_images(kind: Any) -> bool:
    from datasets import Image

    if isinstance(kind, dict):
        return "bytes" in kind
    return isinstance(kind, Image) or getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label(columns: Any, asked: str | None, path: str) -> str:
    """The column of the labels. Raises UserError if none is named and none has a usual name or the library's type."""
    there = ", ".join(columns)
    if asked:
        if asked not in columns:
            others = [name for name, kind in columns.items() if not _holds_images(kind)]
            raise UserError(hub.no_such("dataset.label_column", asked, others or [*columns], "column", path))
        return asked
    typed = [name for name, kind in columns.items() if getattr(kind, "names", None)]
    if len(typed) == 1:
        return str(typed[0])
    named = [name for name in LABELS if name in columns]
    if named:
        return named[0]
    hint = "put the images of each class into a folder" if len(columns) == 1 else "type dataset.label_column=COLUMN"
    raise UserError(f"dataset.path={path}: no column of labels; it has {there}; {hint}")
