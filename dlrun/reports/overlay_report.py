"""The overlaid curves of several runs, one self-contained page: `dlrun report RUN RUN…` (B1, B2).

A table of their results, their curves, and every setting in which they differ. Written from the files of the runs
alone, which are untrusted. Nothing imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlrun.analysis import differences, scores
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.disk import make_folder
from dlrun.folders.opener import Unreadable
from dlrun.reports.figures import HALF, OKABE_ITO, SHARP, STYLE, canvas, columns, epochs_axis, figure_bytes, positive
from dlrun.reports.page import card, embedded, section, table, text, write_file
from dlrun.vocabulary import SCORES

__all__ = ["write"]

MOST = len(OKABE_ITO)
LONGEST = 24  # characters of a value in the table of differences
# settings that change neither weights nor scores
WITHOUT_EFFECT = ("search", "check", "run.", "sweep.", "logger", "trainer.report", "trainer.threads", "trainer.keep_")
CURVES = {
    "val_acc": ("Validation accuracy", "share of images right", "Validation accuracy by epoch. Higher is better."),
    "val_loss": ("Validation loss", "loss per image", "Validation loss by epoch. Lower is better."),
    "train_acc": ("Train accuracy", "share of images right", "Train accuracy. Far above validation: overfitting."),
    "train_loss": ("Train loss", "loss per image", "Train loss by epoch."),
}


class _Run(NamedTuple):
    path: Path
    name: str  # different for each
    result: dict[str, Any]
    table: dict[str, Any]  # columns of metrics.csv


def write(paths: Sequence[Path], file: Path) -> Path:
    """Write the page of these runs into `file`; return it. Raises UserError for more runs than there are colours."""
    if len(paths) > MOST:
        raise UserError(f"{len(paths)} runs: expected at most {MOST} in one overlay; `dlrun board` shows all")
    make_folder(file.parent)
    runs, left = [], []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            runs.append(_Run(path, name, reading.result(path), columns(reading.metrics(path))))
        except UserError as error:
            left.append(f"left out: {name} ({error.reason if isinstance(error, Unreadable) else error})")
    if not runs:
        raise UserError("; ".join(left))
    curves = "".join(embedded(_curve(runs, c), CURVES[c][2]) for c in CURVES if any(c in r.table for r in runs))
    parts = [
        f"<header><h1>{len(runs)} runs</h1><p class=soft>{text(', '.join(r.name for r in runs))}</p></header>",
        "".join(card(why, "warn") for why in left),
        section("Result", _results(runs, file)),
        section("Curves", f"<div class=pictures>{curves}</div>" if curves else ""),
        section("What differs", _differing(runs)),
    ]
    return write_file(file, f"{len(runs)} runs", parts)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other; a stored run.name is no path, so it may repeat."""
    for depth in range(1, 1 + max(len(path.resolve().parts) for path in paths)):
        names = ["/".join(path.resolve().parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _results(runs: Sequence[_Run], file: Path) -> str:
    rows, links = [], {}
    for run in runs:
        numbers = (*SCORES, "best_epoch", "epochs", "seconds", "parameters")
        shown = {c: value for c in numbers if isinstance(value := run.result.get(c), int | float)}
        rows.append(
            {"run": run.name, "name": run.result.get("name", ""), "status": run.result.get("status", "")}
            | scores.beside(run.result, shown)
        )
        if (page := reading.report(run.path)).exists():
            links[run.name] = os.path.relpath(page.resolve(), file.parent.resolve())
    kept = dict.fromkeys(c for row in rows for c in row if row[c] not in ("", None))
    return table([{c: row.get(c, "") for c in kept} for row in rows], links=links)


def _curve(runs: Sequence[_Run], column: str) -> bytes:
    """The curves of one column as a PNG, a colour for each run; the legend names the runs."""
    from matplotlib import rc_context

    title, what, _ = CURVES[column]
    with rc_context(STYLE):
        rows = len(runs)
        figure = canvas(2.95 + 0.17 * rows, width=HALF, bottom=0.66 + 0.17 * rows)
        axes = figure.add_subplot()
        for color, run in zip(OKABE_ITO, runs, strict=False):
            if column in run.table:
                dots = "o" if len(run.table["epoch"]) < 15 else None
                axes.plot(run.table["epoch"], run.table[column], color=color, marker=dots, ms=3, label=run.name[-58:])
        epochs_axis(axes, title, what)
        seen = np.concatenate([line.get_ydata() for line in axes.lines])
        if column.endswith("loss") and positive(seen := seen[np.isfinite(seen)]) and seen.max() > 20 * seen.min():
            axes.set_yscale("log")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="lower left",
            bbox_to_anchor=(0.13, 0.01),
            fontsize=8,
            labelspacing=0.2,
        )
        return figure_bytes(figure, SHARP)


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"


def _differing(runs: Sequence[_Run]) -> str:
    """One row per key of the configs, versions and data that is not the same in all runs, with a column per run."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    first, *others = runs
    for run in others:
        for one in differences.between(first.path, run.path):
            if one.section in ("scores", "typed") or one.key.startswith(WITHOUT_EFFECT):
                continue  # scores have their own table; what was typed is in the config
            row = found.setdefault((one.section, one.key), {first.name: one.first})
            row[run.name] = one.second
    if not found:
        return card("Nothing differs but the scores.", "fine")
    rows: list[Mapping[str, str]] = [
        {"of": part, "key": key, **{run.name: _cut(row.get(run.name, row[first.name])) for run in runs}}
        for (part, key), row in found.items()
    ]
    return table(rows) + f"<p class=soft>{escape('–')} marks a key that a run does not have.</p>"
