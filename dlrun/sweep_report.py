"""One page that tells a sweep, with nothing outside it: `dlrun report SWEEP`.

Written from the files of its runs alone. Nothing imports torch.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from dlrun import compare, plots, rundir, tables
from dlrun.config import UserError
from dlrun.page import picture, section, table, write_page

__all__ = ["write"]


def write(folder: Path) -> Path:
    """Draw the learning curves of all runs below a folder and write their table; return the page.

    Raises UserError when there are none.
    """
    rows = compare.rows([str(folder)])
    if not rows:
        raise UserError(f"{folder}: no runs here; expected a run, a sweep or a folder of them, such as outputs/latest")
    labels: dict[str, Path] = {}
    links: dict[str, str] = {}
    for row in rows:
        path = Path(row["run"])
        label = os.path.relpath(path, folder)
        labels[label], row["run"] = path, label
        if rundir.report(path).exists():
            links[label] = os.path.relpath(rundir.report(path), folder)
    shown = tables.telling(rows)
    curves = plots.curves(folder, labels)
    many = f"{len(rows)} run{'s' * (len(rows) > 1)}, best first"
    parts = [
        f"<header><h1>{escape(folder.resolve().name)}</h1><p class=soft>{many}; a click on a column sorts</p></header>",
        section("Runs", table([{c: row[c] for c in shown} for row in rows], links=links)),
        section("Pictures", picture(curves) if curves else ""),
    ]
    return write_page(folder, folder.resolve().name, parts)
