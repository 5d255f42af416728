"""Predictions in the form of a sample (`dlrun predict RUN test.csv --like sample_submission.csv --out submission.csv`).

Every id of the sample has a row, in its order, under its columns: one for the class, one for the probability of one
class, or one per class for all probabilities. Classes are called as in the table that the run was trained on.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrun.console import Screen
from dlrun.data.columns import is_number
from dlrun.data.sheet import Sheet, read, shown, simple
from dlrun.errors import UserError
from dlrun.folders.disk import replacing
from dlrun.inference.classify import Outcome, Sources, votes
from dlrun.inference.predictor import Predictor
from dlrun.vocabulary import Exit

__all__ = ["Form", "form_of", "write"]


@dataclass(frozen=True)
class Form:
    """The column of the ids, and the others with the number of the class whose probability they hold.

    `classes` is empty if the only other column holds the class itself.
    """

    sheet: Sheet
    id: str
    names: Sequence[str]  # of all classes
    classes: dict[str, int]

    def __str__(self) -> str:
        others = [name for name in self.sheet.columns if name != self.id]
        if not self.classes:
            return f"{others[0]} holds the class"
        if len(others) == 1:
            return f"{others[0]} holds the probability of class {self.names[self.classes[others[0]]]}"
        return f"{len(others)} columns hold the probabilities"


def write(predictor: Predictor, sources: Sources, like: Path, out: Path, screen: Screen) -> tuple[Outcome, Form]:
    """Write a row for every id of the sample `like`; images that it does not name are not predicted.

    Raises UserError for a form that is not unmistakable, and, without writing a file, for ids without a prediction.
    """
    if sources.arrays:
        raise UserError(f"{sources.arrays[0]}: arrays have no ids for --like; predict files, or a table of ids")
    sheet = read(like)
    numbers = _numbers(sources)
    form = form_of(sheet, predictor.classes, numbers)
    ids = sheet.column(form.id)
    found = [numbers.get(name) if name in numbers else numbers.get(PurePath(name).stem) for name in ids]
    _require([name for name, number in zip(ids, found, strict=True) if number is None], sources.missing, like)
    files = sources.files
    sources.files = [files[n] for n in dict.fromkeys(n for n in found if n is not None)]
    done = Outcome()
    predicted = {name: (p, k) for name, p, k in votes(predictor, sources, screen, done)}
    rows = [predicted.get(sources.name(files[n])) for n in found if n is not None]
    _require([name for name, row in zip(ids, rows, strict=True) if row is None], done.unreadable, like)
    with replacing(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=sheet.delimiter, lineterminator="\n")
        writer.writerow(sheet.columns)
        for name, row in zip(ids, rows, strict=True):
            assert row is not None
            writer.writerow(_values(form, name, *row))
        text.flush()
        text.detach()
    return done, form


def _values(form: Form, name: str, p: NDArray[np.floating[Any]], k: int) -> list[str]:
    def value(column: str) -> str:
        if column == form.id:
            return name
        return f"{p[form.classes[column]]:.6f}" if form.classes else form.names[k]

    return [value(column) for column in form.sheet.columns]


def _require(missing: Sequence[str], reasons: dict[str, str], like: Path) -> None:
    if missing:
        why = f" ({missing[0]}: {reasons[missing[0]]})" if missing[0] in reasons else ""
        what = f"{like}: no prediction for {len(missing):,} of its ids: {shown(missing)}{why}"
        raise UserError(f"{what}; no file was written; add these images, or omit --like", Exit.FAILED)


def _numbers(sources: Sources) -> dict[str, int]:
    """The number of the file of each id: its name in a table, its path, or its name without folder and extension."""
    exact = {sources.name(file): number for number, file in enumerate(sources.files)}
    loose: defaultdict[str, set[int]] = defaultdict(set)
    for number, file in enumerate(sources.files):
        own = PurePath(sources.name(file))
        for name in (own.name, own.stem, file.name, file.stem):
            loose[name].add(number)
    return {name: min(numbers) for name, numbers in loose.items() if len(numbers) == 1} | exact


def form_of(sheet: Sheet, classes: Sequence[str], numbers: dict[str, int]) -> Form:
    """Return what the columns of a sample hold; `numbers` has the ids that there are.

    Raises UserError that says which columns were expected.
    """

    def hits(name: str) -> int:
        return sum(value in numbers or PurePath(value).stem in numbers for value in sheet.column(name))

    own = max(sheet.columns, key=hits)  # the first of equal ones
    rest = [name for name in sheet.columns if name != own]
    known = _by_name(rest, classes)
    if known and (len(known) == len(classes) or len(rest) == 1):
        return Form(sheet, own, classes, known)
    if len(rest) != 1:
        names = shown(classes, 5)
        raise UserError(
            f"{sheet.path}: columns {', '.join(sheet.columns)}: expected an id, and one column for the class, "
            f"or one for each class of the run ({names})"
        )
    (name,) = rest
    values = [value for value in sheet.column(name) if value]
    if any(_fractional(value) for value in values):
        if {*classes} == {"0", "1"}:
            return Form(sheet, own, classes, {name: 1})
        raise UserError(
            f"{sheet.path}: column {name} holds fractions, and no class of the run is called so; rename it to the "
            f"class whose probability it wants ({shown(classes, 5)})"
        )
    if values and all(map(is_number, values)) and not any(map(is_number, classes)):
        raise UserError(
            f"{sheet.path}: column {name} holds numbers, such as {values[0]}, and the classes of the run are names "
            f"({shown(classes, 5)}); train with the column of numbers: dataset.label_column=COLUMN"
        )
    return Form(sheet, own, classes, {})


def _by_name(columns: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The class of each column by its name, perhaps between one prefix and suffix; {} if one has no class."""
    if not columns:
        return {}
    plain = all(map(simple, classes)) and len({*map(simple, classes)}) == len(classes)
    names = [*map(simple, columns)] if plain else [*columns]
    wanted = {(simple(name) if plain else name): number for number, name in enumerate(classes)}
    first = names[0]
    for one in sorted(wanted, key=len, reverse=True):
        at = first.find(one)
        if at < 0 or (len(columns) == 1 and first != one):
            continue
        start, end = first[:at], first[at + len(one) :]
        inner = [name[len(start) : len(name) - len(end)] for name in names]
        fits = all(name == f"{start}{middle}{end}" for name, middle in zip(names, inner, strict=True))
        if fits and len({*inner}) == len(inner) and all(middle in wanted for middle in inner):
            return {column: wanted[middle] for column, middle in zip(columns, inner, strict=True)}
    return {}


def _fractional(text: str) -> bool:
    return is_number(text) and not float(text).is_integer()
