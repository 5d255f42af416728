"""A table of runs or settings as CSV, JSON, LaTeX or for reading: `dlrun compare --csv|--json|--latex` (S10)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlrun.analysis import compare
from dlrun.folders import formats
from dlrun.vocabulary import NUMBERS, RESULTS, SCORES, Status, lower_is_better

__all__ = ["as_csv", "as_json", "as_latex", "as_text", "informative"]

Rows = Sequence[Mapping[str, Any]]
# values of a healthy run: a column of them alone is not shown on screen
QUIET = {"checks": "pass", "verdicts": "none"}
# always text, even if it looks like a number
WORDS = ("run", "status", "checks", "verdicts", "verdict", "rest", "test", "reason", "name", "note")
SHORT = 7  # characters up to which a number is shown as typed
# dropped from a narrow terminal in this order; val_acc stays
LAST = ("best_epoch", "epochs", "test_loss", "seconds", "val_loss", "checks", "verdicts", "test_acc")
DISPENSABLE = (*(name for name in NUMBERS if name not in (*LAST, "val_acc")), *LAST)
DIGITS = {number.name: number.digits for number in RESULTS}
FILES_ONLY = ("runs", "seeds", "test", "name", "tags", "note")  # for programs that read the CSV
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}
LATEX |= {"|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "\n": " ", "\r": " "}


class Column(NamedTuple):
    """A column as shown: its name, the text of each cell, the rows with the best, whether it holds numbers."""

    name: str
    cells: list[str]
    best: set[int]
    numeric: bool


def as_csv(rows: Rows) -> str:
    """Return the rows as CSV text, numbers in full."""
    return formats.as_csv(list(rows)) if rows else "run\n"


def as_json(rows: Rows) -> str:
    """Return the rows as a JSON list of objects: values typed, null for a missing or not finite value."""
    made = [{key: (value or None) if key in WORDS else _typed(value) for key, value in row.items()} for row in rows]
    return json.dumps(made, indent=1, allow_nan=False)


def _typed(value: Any) -> Any:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)  # values of the config are stored as text
        except (ValueError, RecursionError):
            return value
    if isinstance(value, list):
        return [_typed(v) for v in value]
    if isinstance(value, dict):
        return {k: _typed(v) for k, v in value.items()}
    return None if value == "" or (isinstance(value, float) and not math.isfinite(value)) else value


def as_latex(rows: Rows, notes: Sequence[str] = (), metric: str = "val_acc", *, lower: bool = False) -> str:
    """Return the rows as a LaTeX tabular for the package booktabs, the best scores in bold."""
    columns = _columns(rows, metric, lower)
    lines = ["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    lines += [f"\\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in columns)}}}", "\\toprule"]
    lines += [" & ".join(_latex(c.name) for c in columns) + r" \\", "\\midrule"]
    for k in range(len(rows)):
        cells = [f"\\textbf{{{_latex(c.cells[k])}}}" if k in c.best else _latex(c.cells[k]) for c in columns]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _latex(cell: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in cell)


def as_text(rows: Rows, most: int | None = None, metric: str = "val_acc", *, lower: bool = False) -> str:
    """Return the rows for reading: folders and numbers shortened, empty columns omitted.

    A terminal gets the best scores in green, at most `most` rows and as many columns as fit, of which `metric` is never
    dropped; a pipe gets one line per run and every column. `lower` if a lower metric is better.
    """
    from rich.console import Console

    console = Console(highlight=False)
    columns = _columns(rows, metric, lower)
    if not console.is_terminal and not console.color_system:
        return _plain(columns, len(rows))
    return _coloured(console, *_fitting(columns, console.width, metric), min(len(rows), most or len(rows)))


def _fitting(columns: list[Column], width: int, metric: str) -> tuple[list[Column], list[str]]:
    """The columns that fit a terminal, long names in two lines, and the names of the dropped columns."""
    dropped: list[str] = []

    def wide(column: Column) -> int:
        return max(map(len, [*column.name.split("\n"), *column.cells])) + 2

    def narrow() -> bool:
        return sum(map(wide, columns)) > width

    if narrow():
        columns = [c._replace(name=".\n".join(c.name.rsplit(".", 1))) for c in columns]
    for name in DISPENSABLE:
        marked = any(c.name == name == "checks" and "fail" in c.cells for c in columns)  # with check.warn_only
        if narrow() and name != metric and not marked and any(c.name == name for c in columns):
            columns = [c for c in columns if c.name != name]
            dropped.append(name)
    if narrow():  # lr alone is still clear
        columns = [c._replace(name=c.name.rpartition("\n")[2]) for c in columns]
    return columns, dropped


def _plain(columns: Sequence[Column], count: int) -> str:
    padded = []
    for column in columns:
        width = max(map(len, [column.name, *column.cells]))
        padded.append([f"{c:>{width}}" if column.numeric else f"{c:<{width}}" for c in (column.name, *column.cells)])
    return "\n".join("  ".join(cells[k] for cells in padded).rstrip() for k in range(count + 1))


def _coloured(console: Any, columns: Sequence[Column], dropped: Sequence[str], count: int) -> str:
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(
            escape(column.name),
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column.numeric,
        )
    for k in range(count):
        shown.add_row(*(f"[bold green]{escape(c.cells[k])}[/]" if k in c.best else escape(c.cells[k]) for c in columns))
    with console.capture() as captured:
        console.print(shown)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, *([f"no room for {', '.join(dropped)}: see the CSV"] if dropped else [])])


def informative(rows: Rows) -> list[str]:
    """Return the columns with information: some cell is neither empty nor quiet."""
    return [c for c in rows[0] if any(row[c] not in ("", None, QUIET.get(c, "")) for row in rows)]


def _columns(rows: Rows, metric: str = "val_acc", lower: bool = False) -> list[Column]:
    """The columns for reading: mean and std of a score in one."""
    found = []
    for name in informative(rows):
        if name.endswith("_std") or name in FILES_ONLY:
            continue
        score = name.removesuffix("_mean")
        cells = [_with_spread(row, name, score) if score != name else _cell(name, row[name]) for row in rows]
        numeric = score in NUMBERS or name in ("n", "p") or all(map(_is_number, cells))
        down = lower if score == metric else lower_is_better(score)
        best = _best(rows, name, lower=down) if score in (*SCORES, metric) else set()
        found.append(Column(score, cells, best, numeric))
    return found


def _best(rows: Rows, name: str, *, lower: bool) -> set[int]:
    """The rows with the best of a score, if at least two have one."""
    counts = [compare.scored({"status": Status.COMPLETED} | dict(row), name) for row in rows]
    values = {k: float(row[name]) for k, row in enumerate(rows) if counts[k]}
    if len(values) < 2:
        return set()
    best = (min if lower else max)(values.values())
    return {k for k, value in values.items() if value == best}


def _with_spread(row: Mapping[str, Any], name: str, score: str) -> str:
    spread = row[f"{score}_std"]
    return _cell(score, row[name]) + (f" ± {_cell(score, spread)}" if spread != "" else "")


def _cell(column: str, value: Any) -> str:
    if column == "run":
        parts = Path(value).parts
        return "/".join(parts[-2:] if parts[-1:] and parts[-1].isdigit() else parts[-1:]) or value
    if isinstance(value, float):
        return f"{value:.2g}" if column == "p" else f"{value:.{DIGITS.get(column, 4)}f}"
    # a drawn value has sixteen digits; the CSV keeps them
    return f"{float(value):.4g}" if len(str(value)) > SHORT and _is_number(value) else str(value)


def _is_number(text: Any) -> bool:
    try:
        return math.isfinite(float(text or 0))
    except (TypeError, ValueError):
        return False
