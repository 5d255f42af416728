"""Runs side by side: `dlrun compare [PATH…]` reads run folders and lays out what differs and what came of it (S10).

Reads result.json alone, a file a run, and never imports torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun import rundir

__all__ = ["as_csv", "as_table", "rows"]

SCORES = ("val_acc", "val_loss", "test_acc", "test_loss")
# where a run lies, and what follows from the chosen options, says nothing about it
IGNORED = ("run.", "sweep.", "trust", "choices.experiment")


def rows(paths: list[str]) -> list[dict[str, Any]]:
    """Return a row a run, best validation score first: its folder, status, the config keys that differ, its scores.

    Raises UserError for a path that is not there.
    """
    found = [(path, rundir.result(path)) for path in rundir.find(paths)]
    configs = [dict(_flat(result.get("config") or {})) for _, result in found]
    varying = _varying(configs)
    table = []
    for (path, result), config in zip(found, configs, strict=True):
        row: dict[str, Any] = {"run": str(path), "status": result.get("status", "")}
        row.update({_short(key): config.get(key, "") for key in varying})
        row.update({key: result.get(key, "") for key in ("epochs", "best_epoch", *SCORES, "seconds")})
        table.append(row)
    return sorted(table, key=_rank)


def _rank(row: Mapping[str, Any]) -> tuple[float, str]:
    score = row["val_acc"]
    return (-score if isinstance(score, float) else 1.0, row["run"])


def _varying(configs: list[dict[str, str]]) -> list[str]:
    """The keys with more than one value among the runs that have them, in the order of the config."""
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(value)
    several = [key for key, seen in values.items() if len(seen) > 1 and not key.startswith(IGNORED)]
    # an option that differs brings its own _target_ along
    kept = [key for key in several if not key.endswith("._target_")]
    return sorted(kept, key=lambda key: not key.startswith("choices."))


def _short(key: str) -> str:
    return key.removeprefix("choices.")


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


def as_table(table: list[dict[str, Any]]) -> Any:
    """Return the rows as a rich table: folders shortened, empty columns left out, the best of each score marked."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    columns = [c for c in (table[0] if table else {}) if any(row[c] != "" for row in table)]
    best = {c: _best(table, c) for c in columns if c in SCORES}
    for column in columns:
        numeric = column in SCORES or column in ("epochs", "best_epoch", "seconds")
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in table:
        cells = [_cell(column, row[column]) for column in columns]
        marked = [f"[bold green]{c}[/]" if k in best and row[k] == best[k] else c for k, c in zip(columns, cells, strict=True)]
        shown.add_row(*marked)
    return shown


def _best(table: list[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in table if isinstance(row[column], (int, float))]
    if len(values) < 2:
        return None
    return min(values) if column.endswith("loss") else max(values)


def _cell(column: str, value: Any) -> str:
    from rich.markup import escape

    if column == "run":
        return escape("/".join(Path(value).parts[-2:] if Path(value).name.isdigit() else Path(value).parts[-1:]))
    if isinstance(value, float):
        return f"{value:.1f}" if column == "seconds" else f"{value:.4f}"
    return escape(str(value))
