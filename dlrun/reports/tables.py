"""A table of runs or settings as CSV, JSON, LaTeX or for reading: `dlrun compare --csv|--json|--latex` (S10)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dlrun.analysis import compare, scores
from dlrun.errors import legible
from dlrun.folders import formats
from dlrun.vocabulary import FURTHER, NUMBERS, RESULTS, SCORES, Outcome, Status, lower_is_better

__all__ = ["aligned", "as_csv", "as_json", "as_latex", "as_text", "cut", "cut_end", "informative", "interval_note"]

Rows = Sequence[Mapping[str, Any]]
# values of a healthy run: a column of them alone is not shown on screen
QUIET = {"checks": Outcome.PASS, "verdicts": "none"}
# always text, even if it looks like a number
WORDS = ("run", "status", "checks", "verdicts", "verdict", "rest", "test", "reason", "name", "note")
SHORT = 7  # characters up to which a number is shown as typed
# dropped from a narrow terminal in this order
LAST = ("best_epoch", "epochs", "test_loss", "seconds", "val_loss", "test_acc", "val_acc")
GAP = 2  # spaces between columns
NARROW = re.compile(r"[\x00-\x7f\xa1-\xac\xae-\u02ff–…]*")  # letters that take one place each
DONE = {"status": Status.COMPLETED}
DIGITS = {number.name: number.digits for number in RESULTS}
FILES_ONLY = ("runs", "seeds", "folds", "test", "name", "tags", "note")  # for programs that read the CSV
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


def as_latex(
    rows: Rows, notes: Sequence[str] = (), metric: str = "val_acc", *, lower: bool = False, best: str = ""
) -> str:
    """Return the rows as a LaTeX tabular for the package booktabs, the best scores in bold.

    `best` is the run whose metric is bold, the first row with the best one if it is empty.
    """
    columns = _columns(rows, metric, lower, leader=best)
    lines = ["% needs \\usepackage{booktabs}", *(f"% {legible(note)}".replace("\n", " ") for note in notes)]
    lines += [f"\\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in columns)}}}", "\\toprule"]
    lines += [" & ".join(_latex(c.name) for c in columns) + r" \\", "\\midrule"]
    for k in range(len(rows)):
        cells = [f"\\textbf{{{_latex(c.cells[k])}}}" if k in c.best else _latex(c.cells[k]) for c in columns]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _latex(cell: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in legible(cell))


def as_text(
    rows: Rows,
    most: int | None = None,
    metric: str = "val_acc",
    *,
    lower: bool = False,
    settings: Collection[str] | None = None,
    columns: Sequence[str] = (),
    images: Mapping[str, tuple[int, int]] | None = None,
    names: Mapping[str, str] | None = None,
    best: str = "",
) -> str:
    """Return the rows for reading: one line each, within the width of the terminal (80 or $COLUMNS for a pipe).

    Columns come by priority, and those without room are named below: the run, its status, the score by `metric`, the
    test score, `settings` (all, if None), the rest; or exactly those of `columns`. The best scores are green on a
    terminal, which gets at most `most` rows. `images` holds the numbers of validation and test images by run:
    accuracies are then shown ± half their interval; `names` their short names. `lower` if a lower metric is better;
    `best` is the run whose metric is green, the first row with the best one if it is empty.
    """
    from rich.console import Console

    console = Console(highlight=False)
    shown = list(rows)[: most if console.is_terminal else None]
    found = {c.name: c for c in _columns(rows, metric, lower, shown=len(shown), asked=columns, leader=best)}
    for split, place in (("val_acc", 0), ("test_acc", 1)):
        if images and split in found and "run" in rows[0]:
            counts = [images.get(row["run"], (0, 0))[place] for row in shown]
            found[split] = found[split]._replace(cells=_margins(found[split].cells, shown, split, counts))
        elif images and split in found:
            counts = [max((images.get(run, (0, 0))[place] for run in _alone(row)), default=0) for row in shown]
            found[split] = found[split]._replace(cells=_of_one_seed(found[split].cells, shown, split, counts))
    if "run" in found:
        paths = [str(row["run"]) for row in shown]
        short = names or dict(zip(paths, scores.short_names(paths), strict=True))
        cells = [cut(short[path], max(12, console.width // 4)) for path in paths]
        found["run"] = found["run"]._replace(cells=cells)
    order = [*dict.fromkeys(("run", *columns))] if columns else _priority(found, metric, settings)
    order = [name for name in order if name in found]
    longest = max(15, console.width // 6)
    for name in set(order) - {"run", "status", "checks", "verdicts"}:
        found[name] = found[name]._replace(cells=[cut(cell, longest) for cell in found[name].cells])
    kept, dropped = _fitting({name: _width(found[name]) for name in order}, console.width)
    if "run" not in found and not columns:
        kept = [name for name in found if name in kept]
    lines = _lines([found[name] for name in kept], len(shown), colour=console.color_system is not None)
    note = f"no room for {', '.join(dropped)}: see the CSV, or choose with --columns"
    return "\n".join([*lines, *([cut_end(note, console.width)] if dropped else [])])


def aligned(rows: Rows) -> list[str]:
    """Return a small table as lines: a head, then one line per row; numbers with four digits, unknown ones empty."""
    if not rows:
        return []
    cells = [[*rows[0]], *([_small(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]


def _small(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _priority(found: Mapping[str, Column], metric: str, settings: Collection[str] | None) -> list[str]:
    """The names of the columns, those to keep in a narrow terminal first; of the settings only those to show."""
    test = metric.replace("val_", "test_")
    failed = ["checks"] * ("checks" in found and Outcome.FAIL in found["checks"].cells)
    first = ["run", "status", metric, *failed, test]
    others = {*WORDS, *NUMBERS, "n", "p", metric}
    chosen = [name for name in found if name not in others and (settings is None or name in settings)]
    if "run" not in found:  # one row per setting: its name is its settings
        first = [*chosen, metric, "n", "verdict", "p", test]
    new = [name for name in NUMBERS if name not in LAST]
    rest = [name for name in found if name in others]
    return list(dict.fromkeys([*first, *chosen, "checks", "verdicts", *new, *reversed(LAST), *rest]))


def _fitting(widths: Mapping[str, int], room: int) -> tuple[list[str], list[str]]:
    """The columns that fit side by side, in their order, and those that do not; the first always stays."""
    kept: list[str] = []
    used = -GAP
    for name, width in widths.items():
        if not kept or used + GAP + width <= room:
            kept.append(name)
            used += GAP + width
    return kept, [name for name in widths if name not in kept]


def _lines(columns: Sequence[Column], count: int, *, colour: bool) -> list[str]:
    """The header and one line per row, columns aligned; the best in bold green."""
    padded = [_padded(column, count, colour=colour) for column in columns]
    return [(" " * GAP).join(cells).rstrip() for cells in zip(*padded, strict=True)]


def _padded(column: Column, count: int, *, colour: bool) -> list[str]:
    """The name and the first cells of a column in its width."""
    cells = [column.name, *column.cells[:count]]
    lengths = _lengths(cells)
    width = max(lengths, default=0)
    spaces = [" " * (width - length) for length in lengths]
    padded = [s + c if column.numeric else c + s for s, c in zip(spaces, cells, strict=True)]
    for k in sorted(column.best) if colour else ():
        if k < count and (bare := column.cells[k].strip()):
            padded[k + 1] = padded[k + 1].replace(bare, f"\x1b[1;32m{bare}\x1b[0m", 1)
    return padded


def _width(column: Column) -> int:
    return max(_lengths([column.name, *column.cells]))


def _lengths(texts: Sequence[str]) -> list[int]:
    """Places on a screen: letters of some scripts take two."""
    if NARROW.fullmatch("".join(texts)):
        return list(map(len, texts))
    from rich.cells import cell_len

    return [len(text) if text.isascii() else cell_len(text) for text in texts]


def cut(text: str, most: int) -> str:
    """Return a long word without its middle, on one line: names differ at their ends."""
    text = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    head = (most - 1) // 2
    return text if len(text) <= most else f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def cut_end(text: str, most: int) -> str:
    """Return a line of at most `most` letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _margins(cells: Sequence[str], rows: Rows, column: str, counts: Sequence[int]) -> list[str]:
    """Accuracies ± half the width of their interval, if the number of images is known."""
    return [
        f"{cell} ±{scores.margin(row[column], count):.3f}"
        if count and isinstance(row[column], (int, float)) and 0 <= row[column] <= 1
        else cell
        for cell, row, count in zip(cells, rows, counts, strict=True)
    ]


def _alone(row: Mapping[str, Any]) -> list[str]:
    """The runs of a setting with one seed; none of a setting whose mean has a deviation."""
    return [str(run) for run in json.loads(row["runs"])] if row.get("n") == 1 else []


def _of_one_seed(cells: Sequence[str], rows: Rows, column: str, counts: Sequence[int]) -> list[str]:
    """Accuracies of settings with one seed with how many of few images are right; other cells as they are."""
    return [
        scores.share(row[f"{column}_mean"], count) if 0 < count < scores.FEW else cell
        for cell, row, count in zip(cells, rows, counts, strict=True)
    ]


def interval_note(counts: Sequence[tuple[int, int]]) -> str:
    """Return what ± means below a table of runs; empty if no number of images is known."""
    found = sorted({n for n, _ in counts if n})
    if not found:
        return ""
    number = f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
    return f"±: half a Wilson 95 % interval; n = {number} validation images"


def informative(rows: Rows) -> list[str]:
    """Return the columns with information: some cell is neither empty nor quiet."""
    return [c for c in rows[0] if any(row[c] not in ("", None, QUIET.get(c, "")) for row in rows)]


def _columns(
    rows: Rows,
    metric: str = "val_acc",
    lower: bool = False,
    *,
    shown: int | None = None,
    asked: Sequence[str] = (),
    leader: str = "",
) -> list[Column]:
    """The columns for reading: mean and std of a score in one. Cells are those of the first rows `shown`."""
    found = []
    for name in dict.fromkeys((*informative(rows), *(c for c in asked if c in rows[0]))):
        if name not in asked and (name.endswith("_std") or name in FILES_ONLY):
            continue
        score, first = name.removesuffix("_mean"), rows[:shown]
        cells = [_with_spread(row, name, score) if score != name else _cell(name, row[name]) for row in first]
        numeric = score in NUMBERS or name in ("n", "p") or all(map(_is_number, cells))
        down = lower if score == metric else lower_is_better(score)
        best = _best(rows, name, lower=down) if score in (*SCORES, *FURTHER, metric) else set()
        if score == metric and best:  # the best setting's best run, which need not have the highest score
            best = {k for k, row in enumerate(rows) if row.get("run") == leader} if leader else {min(best)}
        found.append(Column(score, cells, best, numeric))
    return found


def _best(rows: Rows, name: str, *, lower: bool) -> set[int]:
    """The rows with the best of a score, if at least two have one."""
    # a row over seeds has no status
    counted = [k for k, row in enumerate(rows) if compare.scored(row if "status" in row else {**row, **DONE}, name)]
    values = {k: float(rows[k][name]) for k in counted}
    if len(values) < 2:
        return set()
    best = (min if lower else max)(values.values())
    return {k for k, value in values.items() if value == best}


def _with_spread(row: Mapping[str, Any], name: str, score: str) -> str:
    spread = row[f"{score}_std"]
    return _cell(score, row[name]) + (f" ± {_cell(score, spread)}" if spread != "" else "")


def _cell(column: str, value: Any) -> str:
    if column == "run":
        parts = [part for part in str(value).split("/") if part not in ("", ".")]
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
