"""Tables of text, as people keep labels in: CSV, TSV and Parquet (`dlrun train dataset=table dataset.csv=train.csv`).

Every value stays the text that it is, so that the id 007 keeps its zeros. The delimiter, a mark at the start of the
file and its encoding are recognised. Reached also by `dlrun predict RUN test.csv --like sample_submission.csv`.
"""

from __future__ import annotations

import csv
import gzip
import io
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dlrun.errors import UserError, first_line

__all__ = ["TABLES", "Sheet", "is_table", "read", "shown", "simple"]

TABLES = (".csv", ".tsv", ".txt", ".tab", ".parquet", ".pq", ".csv.gz", ".tsv.gz")
PARQUET = (".parquet", ".pq")
LARGEST = 1 << 30  # bytes of a table, of ten million images or more
DELIMITERS = ",;\t|"
SIGNATURES = {b"PAR1": "parquet", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip"}
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Sheet:
    """Names of the columns and rows of text, all stripped, and each row's line in the file for messages."""

    path: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    delimiter: str = ","

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.columns)}

    def column(self, name: str) -> list[str]:
        """Return the values of a column, one per row."""
        number = self._number[name]
        return [row[number] for row in self.rows]

    def named(self, name: str, key: str) -> str:
        """Return the column of this name, in any case. Raises UserError for one that is not there, naming its key."""
        alike = [one for one in self.columns if simple(one) == simple(name)]
        found = [one for one in self.columns if one == name] or alike
        if not found:
            raise UserError(f"{key}={name}: no such column; {self.path} has {', '.join(self.columns)}")
        return found[0]


def simple(name: str) -> str:
    """Return a column's name without case and punctuation, to compare it: Image ID is image_id."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name."""
    return path.name.lower().endswith(TABLES)


def read(path: Path) -> Sheet:
    """Return the table in a file. Raises UserError that names the line that does not fit."""
    try:
        about = path.stat()  # a run of others may name a pipe, which waits, or a device without end
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            raise UserError(f"{path}: expected a file of at most {LARGEST:,} bytes")
        whole = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    kind = next((kind for start, kind in SIGNATURES.items() if whole.startswith(start)), "")
    if kind == "zip":
        raise UserError(f"{path}: expected a table, found an archive (a .zip or .xlsx); unpack it, or save it as CSV")
    if kind == "parquet" or path.suffix.lower() in PARQUET:
        return _parquet(path)
    try:
        text = _text(_unpacked(path, whole) if kind == "gzip" else whole)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked ({first_line(error)})") from error
    if "\0" in text:
        raise UserError(f"{path}: expected a CSV, TSV or Parquet file, found binary data")
    return _sheet(path, text)


def _unpacked(path: Path, whole: bytes) -> bytes:
    with gzip.open(io.BytesIO(whole)) as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise UserError(f"{path}: expected at most {LARGEST:,} bytes when unpacked")
    return found


def _text(whole: bytes) -> str:
    encoding = next((name for mark, name in MARKS.items() if whole.startswith(mark)), "utf-8")
    try:
        return whole.decode(encoding)
    except UnicodeDecodeError:
        return whole.decode("cp1252", "replace")  # of older spreadsheets


def _sheet(path: Path, text: str) -> Sheet:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = _delimiter(first)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        found = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; a quote inside a text is written twice") from error
    found = [(line, row) for line, row in found if any(row)]
    if not found:
        raise UserError(f"{path}: the table is empty; expected a line with the names of the columns, and one per image")
    (_, columns), *rows = found
    width = len(columns)
    for number, row in rows:
        while len(row) > width and not row[-1]:  # a delimiter at the end of the line
            row.pop()
        if len(row) != width:
            what = f"expected {width} values as in the first line, found {len(row)}"
            raise UserError(f"{path}, line {number}: {what}; quote texts that contain {delimiter!r}")
    return _unnamed(Sheet(path, columns, [row for _, row in rows], [line for line, _ in rows], delimiter))


def _delimiter(first: str) -> str:
    """The character that divides the first line into most values, outside of quotes; a comma if none does."""

    def width(delimiter: str) -> int:
        try:
            return len(next(csv.reader([first], delimiter=delimiter)))
        except csv.Error:  # a value beyond 131,072 characters, which is refused later, with its line
            return 0

    return max(DELIMITERS, key=width)  # the earlier of equal ones


def _parquet(path: Path) -> Sheet:
    try:
        import pandas

        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise UserError(
            f"{path}: Parquet needs pyarrow; type pip install 'dlrun[parquet]', or save it as CSV"
        ) from error
    except Exception as error:  # of pyarrow: ArrowInvalid and others
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error
    if frame.index.name:
        frame = frame.reset_index()
    columns = [[_written(value) for value in frame[name]] for name in frame.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    if not rows:
        raise UserError(f"{path}: the table is empty; expected one row per image")
    return _unnamed(Sheet(path, [str(name).strip() for name in frame.columns], rows, [*range(1, len(rows) + 1)]))


def _written(value: Any) -> str:
    """A value as CSV has it; whole numbers, which pandas makes floats beside a missing one, without a fraction."""
    if value is None or value != value or str(value) in ("<NA>", "NaT"):
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _unnamed(sheet: Sheet) -> Sheet:
    """The table without columns that have no name: the row numbers of pandas."""
    keep = [n for n, name in enumerate(sheet.columns) if name and not name.startswith("Unnamed:")]
    columns = [sheet.columns[n] for n in keep]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{sheet.path}: two columns are named {twice!r}; rename one")
    rows = sheet.rows if len(keep) == len(sheet.columns) else [[row[n] for n in keep] for row in sheet.rows]
    return Sheet(sheet.path, columns, rows, sheet.lines, sheet.delimiter)


def shown(names: Sequence[str], most: int = 10) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
