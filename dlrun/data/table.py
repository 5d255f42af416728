"""Images whose labels are in a table: `dlrun train dataset=table dataset.csv=train.csv dataset.images=images/` (D4).

`sheet` reads the table, `columns` chooses its columns, `places` finds the files. Rows that cannot be used (no file, no
label, two labels) are bad samples: they are named, and omitted with dataset.on_bad=drop (D1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlrun.data.bad import Bad, BadData
from dlrun.data.columns import MISSING, NONE, TOGETHER, Columns, choose, choose_id, labels
from dlrun.data.decoding import VERSION, Decoding
from dlrun.data.form import Form
from dlrun.data.groups import by_pattern, named
from dlrun.data.layout import ROLES
from dlrun.data.listing import Account
from dlrun.data.places import Places
from dlrun.data.sheet import Sheet, read, shown
from dlrun.data.splits import Raw, Split
from dlrun.data.tasks import BETWEEN, EMPTY, Tasks
from dlrun.errors import UserError

__all__ = ["table"]

UNLABELLED = "has no label"


@dataclass(frozen=True)
class _Row:
    """One image: its row and line in the table, its file, and what the columns say of it."""

    number: int  # of the row
    line: int
    name: str
    file: Path
    label: str
    split: str
    group: str
    weight: float


@dataclass
class _Rows:
    good: list[_Row] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    unlabelled: int = 0  # in test


def table(
    csv: str,
    images: str | None = None,
    image_size: int | Sequence[int] = 0,
    channels: int = 3,
    *,
    id_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    group_pattern: str | None = None,
    targets: Sequence[str] = (),
    multilabel: bool = False,
    resize: str = "crop",
    interpolation: str = "auto",
    crop_pct: str | float = "auto",
    background: str = "white",
    decode: str = "auto",
    max_pixels: int = Decoding.max_pixels,
    decoder: int = VERSION,
    on_bad: str = "error",
) -> Raw:
    """The image files in the folder `images` that the rows of the table `csv` name. Nothing is decoded here.

    Without `images` they are in the table's folder. Columns that are not named are found, see `columns`. Classes are
    the sorted labels; labels that are numbers sort as numbers. `targets` are columns of labels that are learned at
    once, with `multilabel` the label is a set of classes (M11). The keys from `resize` to `decoder` are those of
    `Decoding`, image_size and channels those of `Form`. Raises UserError for a table that cannot be read, and BadData.
    """
    # those of pretrained weights are in the config by now, see dlrun/training/statistics.py
    chosen = "bilinear" if interpolation == "auto" else interpolation
    share = 1.0 if isinstance(crop_pct, str) else float(crop_pct)
    how = Decoding(resize, chosen, background, decode, max_pixels, decoder=decoder, crop=share)
    form = Form(image_size, channels, how)
    found = read(Path(csv).expanduser())
    places = _places(found.path, images)
    name = choose_id(found, id_column, lambda value: bool(places.find(value)))
    if places.find(name):
        raise UserError(f"{found.path}: its first line names an image, {name}; write the names of the columns above it")
    if group_pattern and group_column:
        raise UserError("dataset.group_column and dataset.group_pattern both make groups; omit one of them")
    group = NONE if group_pattern else group_column
    keys = {"split": split_column, "group": group, "weight": weight_column}
    columns = choose(found, name, label=label_column, targets=targets, sets=multilabel, **keys)
    columns = replace(columns, split=_split_column(found, columns.split, bool(split_column)))
    rows = _read(found, columns, places)
    if rows.bad and on_bad == "error":
        raise BadData(rows.bad, len(found.rows))
    return _raw(found, columns, rows, places, form, group_pattern)


def _places(csv: Path, images: str | None) -> Places:
    folder = csv.parent if images is None else Path(images).expanduser()
    if not folder.is_dir():
        raise UserError(f"dataset.images={images}: no such folder; expected the folder of the images")
    places = Places(folder)
    if not places.files:
        given = "" if images else ", which is used without dataset.images=FOLDER"
        raise UserError(f"{folder}: there is no image in this folder{given}")
    return places


def _split_column(sheet: Sheet, name: str, asked: bool) -> str:
    """The column of the splits, or "" if one of a usual name holds something else. Raises UserError for a mixture."""
    if not name:
        return ""
    values = sorted(set(sheet.column(name)))
    strange = [value for value in values if value.lower() not in ROLES]
    if strange and len(strange) == len(values) and not asked:
        return ""
    if strange:
        what = f"expected train, val or test, found {shown(list(map(repr, strange)))}"
        raise UserError(f"{sheet.path}: column {name}: {what}; type dataset.split_column=none to divide anew")
    return name


def _read(sheet: Sheet, columns: Columns, places: Places) -> _Rows:
    """Every row with one file, label, split and weight, and what is wrong with the others, in their order."""
    rows, known = _Rows(), labels(sheet, columns)
    split, group, weight = (
        sheet.column(one) if one else [""] * len(known) for one in (columns.split, columns.group, columns.weight)
    )
    unlabelled = {"test"} - {ROLES[s.lower()] for s, label in zip(split, known, strict=True) if s and label}
    bad: dict[int, Bad] = {}
    for n, name in enumerate(sheet.column(columns.id)):
        role = ROLES[split[n].lower()] if split[n] else "train"
        if role in unlabelled:
            rows.unlabelled += 1
            continue
        found = places.find(name)
        number = _number(weight[n]) if columns.weight else 1.0
        why = _why(name, [places.inside(file) for file in found], known[n], number, weight[n])
        why += _where(sheet, columns, n) if why == UNLABELLED else ""
        if why:
            bad[n] = Bad(name or f"line {sheet.lines[n]}", role, why)
        else:
            rows.good.append(_Row(n, sheet.lines[n], name, found[0], known[n], role, group[n], number))
    if bad and not rows.good and all(not places.find(name) for name in sheet.column(columns.id)):
        _refuse_folder(sheet, columns.id, places)
    rows.good = _once(rows.good, bad)
    rows.bad = [bad[n] for n in sorted(bad)]
    return rows


def _why(name: str, files: Sequence[str], label: str, weight: float, text: str) -> str:
    """What is wrong with a row; "" if nothing is."""
    if not name:
        return "the row names no image"
    if not files:
        return "no such image"
    if len(files) > 1:
        return f"is the name of {len(files)} images, {shown(files, 2)}"
    if not label:
        return UNLABELLED
    return "" if weight >= 0 and math.isfinite(weight) else f"has weight {text!r}, expected a number, 0 or more"


def _where(sheet: Sheet, columns: Columns, number: int) -> str:
    """Which of the columns of several tasks have no label in a row."""
    lacking = [name for name in columns.labels if sheet.column(name)[number] in ("", *MISSING)]
    return f" in {' and '.join(lacking)}" if columns.several else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _refuse_folder(sheet: Sheet, column: str, places: Places) -> None:
    name = next((name for name in sheet.column(column) if name), "")
    there = places.inside(places.files[0])
    raise UserError(
        f"{places.folder}: none of the {len(sheet.rows):,} images that column {column} of {sheet.path} names is here; "
        f"the first is {name!r}, and the folder has {there!r}; type dataset.images=FOLDER or dataset.id_column=COLUMN"
    )


def _once(rows: Sequence[_Row], bad: dict[int, Bad]) -> list[_Row]:
    """The first row of each image; repeated ones are bad, and all are if they contradict each other."""
    by_file: defaultdict[Path, list[_Row]] = defaultdict(list)
    for row in rows:
        by_file[row.file].append(row)
    good = []
    for same in by_file.values():
        first = same[0]
        kinds = {
            "labels": [r.label for r in same],
            "splits": [r.split for r in same],
            "groups": [r.group for r in same],
        }
        kind, values = next(((k, v) for k, v in kinds.items() if len(set(v)) > 1), ("", []))
        if not kind:
            good.append(first)
        lines = ", ".join(str(row.line) for row in same)
        for row in same if kind else same[1:]:
            shown = [repr(value.replace(TOGETHER, ", ")) for value in values]
            pairs = ", ".join(f"{value} in line {r.line}" for value, r in zip(shown, same, strict=False))
            bad[row.number] = Bad(row.name, row.split, f"has two {kind}: {pairs}" if kind else f"is in lines {lines}")
    return sorted(good, key=lambda row: row.number)


def _classes(path: Path, names: set[str]) -> list[str]:
    """The names of the classes, sorted; as numbers if all are. Raises UserError for one number in two forms."""
    values = {name: _number(name) for name in names}
    if any(math.isnan(value) for value in values.values()):
        return sorted(names)
    ordered = sorted(names, key=lambda name: (values[name], name))
    for one, other in pairwise(ordered):
        if values[one] == values[other]:
            raise UserError(f"{path}: the labels {one!r} and {other!r} are one number; write it in one form")
    return ordered


class _Known:
    """The classes of the training rows, which number those of all: of one label, or of several tasks."""

    def __init__(self, path: Path, columns: Columns, labels: Sequence[str]) -> None:
        self._path, self._columns, self.tasks = path, columns, None
        if columns.sets:
            there = sorted({part for label in labels for part in label.split(BETWEEN)} - {EMPTY})
            self.tasks = Tasks.of_sets(there)
            self.classes = self.tasks.outputs
            return
        by_column = [*zip(*map(self._parts, labels), strict=True)]
        found = [_classes(path, {*values}) for values in by_column]
        self._number = [{name: number for number, name in enumerate(names)} for names in found]
        self.classes = found[0]
        if columns.several:
            self.tasks = Tasks(tuple(columns.labels), tuple(map(tuple, found)))
            self.classes = self.tasks.outputs

    def _parts(self, label: str) -> list[str]:
        return label.split(TOGETHER) if self._columns.several else [label]

    def numbers(self, labels: Sequence[str], role: str) -> Tensor:
        """The labels (N,) of a split. Raises UserError for classes that train lacks."""
        if self._columns.sets:
            return self._sets([{*label.split(BETWEEN)} - {EMPTY} for label in labels], role)
        parts = [*map(self._parts, labels)]
        for column, known in enumerate(self._number):
            if unknown := sorted({row[column] for row in parts} - known.keys()):
                where = f" in {self._columns.labels[column]}" if self._columns.several else ""
                what = f"{role} has classes{where} that train lacks: {shown(list(map(repr, unknown)))}"
                raise UserError(f"{self._path}: {what}")
        found = np.array([[known[v] for v, known in zip(row, self._number, strict=True)] for row in parts])
        return torch.from_numpy(found[:, 0].copy()) if self.tasks is None else self.tasks.codes(found)

    def _sets(self, sets: Sequence[set[str]], role: str) -> Tensor:
        assert self.tasks is not None
        if unknown := sorted(set[str]().union(*sets) - {*self.classes}):
            raise UserError(f"{self._path}: {role} has classes that train lacks: {shown(list(map(repr, unknown)))}")
        return self.tasks.codes(np.array([[name in one for name in self.classes] for one in sets], dtype=np.int64))


def _raw(sheet: Sheet, columns: Columns, rows: _Rows, places: Places, form: Form, pattern: str | None) -> Raw:
    by_split: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in rows.good:
        by_split[row.split].append(row)
    if not by_split["train"]:
        raise UserError(f"{sheet.path}: no row can be used for training ({len(sheet.rows):,} rows); see dataset.on_bad")
    known = _Known(sheet.path, columns, [row.label for row in by_split["train"]])
    stream = form.stream([row.file for row in by_split["train"]], places.folder)

    def split(role: str) -> Split | None:
        here = by_split[role]
        if not here:
            return None
        ids = [places.inside(row.file) for row in here]
        groups = named([row.group for row in here], ids) if columns.group else by_pattern(pattern, ids)
        return Split(
            stream([row.file for row in here]),
            known.numbers([row.label for row in here], role),
            ids,
            groups=groups,
            weights=torch.tensor([row.weight for row in here]) if columns.weight else None,
        )

    train, val, test = (split(role) for role in ("train", "val", "test"))
    assert train is not None
    read_test = None if test is None else lambda: test
    left, account = _rowless(sheet, columns, rows, places), Account(len(rows.good), len(known.classes))
    for name in left:
        account.add("without a row", places.folder / name)
    notes = _notes(sheet, columns, rows, left, places, train)
    return Raw(train, read_test, known.classes, val, notes, tuple(rows.bad), account, known.tasks)


def _notes(
    sheet: Sheet, columns: Columns, rows: _Rows, left: Sequence[str], places: Places, train: Split
) -> tuple[str, ...]:
    """What was understood, and what is left out."""
    several = f"one of {len(columns.labels)} columns" if len(columns.labels) > 1 else columns.labels[0]
    several = " and ".join(columns.labels) if columns.several else several
    parts = [f"{sheet.path}: images by column {columns.id}, labels by {several}"]
    parts += [f"{what} by {name}" for what, name in (("splits", columns.split),) if name]
    if train.weights is not None:
        low, high = float(train.weights.min()), float(train.weights.max())
        parts.append(f"the training loss weighted by {columns.weight} ({low:g} to {high:g})")
    if train.groups is not None:
        by = columns.group or "dataset.group_pattern"
        parts.append(f"groups by {by} ({len(set(train.groups)):,})")
    notes = [", ".join(parts)]
    if rows.unlabelled:
        notes.append(f"{rows.unlabelled:,} rows of test have no label; `dlrun predict` is for them")
    if left:
        notes.append(
            f"{len(left):,} images in {places.folder} have no row in {sheet.path} and are left out: {shown(left)}"
        )
    return (*notes,)


def _rowless(sheet: Sheet, columns: Columns, rows: _Rows, places: Places) -> list[str]:
    """The images that no row names."""
    used = {row.file for row in rows.good}
    names = set(sheet.column(columns.id))
    left = [places.inside(file) for file in places.files if file not in used]
    return [name for name in left if not names & {name, Path(name).name, Path(name).stem}]
