"""Runs side by side: `dlrun compare [PATH…]` lays out what differs between them and what came of it (S10).

Reads result.json alone, a file a run, and never imports torch.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun import rundir, verdicts
from dlrun.config import UserError

__all__ = ["as_csv", "as_text", "rows"]

# what a column says of a run that nothing is to be said of: not worth a column on screen
QUIET = {"checks": "pass", "verdicts": "none"}
SCORES = ("val_acc", "val_loss", "test_acc", "test_loss")
NUMBERS = ("epochs", "best_epoch", *SCORES, "seconds")
# where a run lies and how it was checked says nothing about what it learned
IGNORED = ("run.", "sweep.", "trust", "choices.experiment", "choices.check", "check.")


def rows(paths: list[str]) -> list[dict[str, Any]]:
    """Return a row a run, best first: its folder, status, the config keys that differ, its scores.

    Best is by val_loss where every run was asked to watch a loss, else by val_acc.
    Raises UserError for a path that is not there.
    """
    found = [(path, rundir.result(path)) for path in rundir.find(paths)]
    configs = [dict(_flat(result.get("config") or _config(path))) for path, result in found]
    varying = _varying(configs)
    table = []
    for (path, result), config in zip(found, configs, strict=True):
        row: dict[str, Any] = {
            "run": str(path),
            "status": result.get("status", ""),
            "checks": result.get("checks", ""),
            "verdicts": verdicts.summary(result["verdicts"]) if "verdicts" in result else "",
        }
        row.update({key.removeprefix("choices."): config.get(key, "") for key in varying})
        row.update({key: result.get(key, "") for key in NUMBERS})
        table.append(row)
    by_loss = bool(found) and all(str(result.get("monitor", "")).endswith("loss") for _, result in found)
    return sorted(table, key=lambda row: _rank(row, by_loss))


def _config(path: Path) -> dict[str, Any]:
    try:
        return rundir.config(path)  # a run that has just begun, or died at once, has nothing else
    except UserError:
        return {}


def _rank(row: Mapping[str, Any], by_loss: bool) -> tuple[float, str]:
    score = row["val_loss" if by_loss else "val_acc"]
    if not isinstance(score, (int, float)) or not math.isfinite(score):
        return (math.inf, row["run"])
    return (score if by_loss else -score, row["run"])


def _varying(configs: list[dict[str, str]]) -> list[str]:
    """The keys with more than one value among the runs that have them, options before the rest."""
    values: dict[str, list[str | None]] = {}
    for config in configs:
        for key in config:
            values.setdefault(key, [c.get(key) for c in configs])
    several = {k: v for k, v in values.items() if len(set(v) - {None}) > 1 and not k.startswith(IGNORED)}
    kept: list[str] = []
    for key in sorted(several, key=lambda key: not key.startswith("choices.")):
        # an option that differs brings its own _target_ along
        told = key.endswith("._target_") and f"choices.{key.split('.')[0]}" in several
        if not told and not any(_follows(several[key], several[k]) for k in kept if _last(k) == _last(key)):
            kept.append(key)
    return kept


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _follows(values: list[str | None], leader: list[str | None]) -> bool:
    """Whether a key such as scheduler.epochs only repeats another of the same name, here trainer.epochs."""
    return all(mine is None or mine == theirs for mine, theirs in zip(values, leader, strict=True))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def as_csv(table: list[dict[str, Any]]) -> str:
    """Return the rows as CSV text, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_text(table: list[dict[str, Any]]) -> str:
    """Return the rows for reading: folders shortened, empty columns left out, the best scores in green.

    Colours and folding only on a terminal; a pipe gets a line a run.
    """
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    columns = [c for c in table[0] if any(row[c] not in ("", QUIET.get(c, "")) for row in table)]
    best = {c: _best(table, c) for c in columns if c in SCORES}
    for column in columns:
        numeric = column in NUMBERS
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in table:
        cells = {column: _cell(column, row[column]) for column in columns}
        for column, score in best.items():
            if score is not None and row[column] == score:
                cells[column] = f"[bold green]{cells[column]}[/]"
        shown.add_row(*cells.values())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _best(table: list[dict[str, Any]], column: str) -> float | None:
    values = [float(row[column]) for row in table if isinstance(row[column], (int, float))]
    if len(values) < 2:
        return None
    return min(values) if column.endswith("loss") else max(values)


def _cell(column: str, value: Any) -> str:
    from rich.markup import escape

    if column == "run":
        parts = Path(value).parts
        return escape("/".join(parts[-2:] if parts[-1:] and parts[-1].isdigit() else parts[-1:]) or value)
    if isinstance(value, float):
        return f"{value:.1f}" if column == "seconds" else f"{value:.4f}"
    return escape(str(value))
