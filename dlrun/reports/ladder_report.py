"""The ladder of a sweep: one picture and one table on its page (`dlrun ladder`, `dlrun report SWEEP`, M8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.analysis import ladder
from dlrun.analysis.ladder import Climb
from dlrun.analysis.sweeps import Trials
from dlrun.reports.axis_plots import called, legend, wanted
from dlrun.reports.figures import BLUE, GREEN, GREY, ORANGE, STYLE, canvas, headline, save
from dlrun.reports.page import picture, table, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["section"]

Rows = Sequence[dict[str, Any]]


def section(folder: Path, trials: Trials) -> str:
    """Return the picture, the table and the sentences of a ladder; empty if the sweep is none."""
    found = ladder.read(folder, trials)
    if found is None or found.chosen is None:
        return ""
    rows = ladder.rows(found, trials)
    shown = [{k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawn = save(folder, "ladder", _figure(found, rows, trials))
    said = "".join(f"<li>{text(line)}</li>" for line in ladder.sentences(found, rows, trials.metric))
    return picture(drawn) + f"<ul>{said}</ul>" + table(shown)


def _figure(found: Climb, rows: Rows, trials: Trials) -> Figure:
    figure = canvas(4.2, top=0.62, bottom=1.0)
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2, sharey=left)
    for panel, column in ((left, "parameters"), (right, "seconds")):
        _panel(panel, column, found, rows, trials.metric)
    left.set_ylabel(called(trials.metric).replace("validation ", ""))
    legend(figure, *left.get_legend_handles_labels())
    headline(figure, f"Score by capacity and time, {wanted(trials)}: means over seeds; bars are one standard deviation")
    return figure


def _panel(panel: Axes, column: str, found: Climb, rows: Rows, metric: str) -> None:
    """Training and validation score of the growing rungs against a column, and the regularised ones beside them."""
    train = f"train_{metric.removeprefix('val_')}"
    usable = [
        (rung, row)
        for rung, row in zip(found.rungs, rows, strict=True)
        if isinstance(row[column], (int, float)) and row[column] > 0 and not math.isnan(rung.mean)
    ]
    grown = sorted(((rung, row) for rung, row in usable if rung.grows), key=lambda pair: float(pair[1][column]))
    others = [row for rung, row in usable if not rung.grows]
    for name, shown, colour in ((train, "training", BLUE), (metric, "validation", ORANGE)):
        spread = [0.0 if name == train or math.isnan(row["std"]) else row["std"] for _, row in grown]
        panel.errorbar(
            [row[column] for _, row in grown],
            [row[name] for _, row in grown],
            yerr=spread,
            fmt="o-" if column == "parameters" else "o",
            ms=4,
            color=colour,
            capsize=2,
            label=f"{shown}, no regularisation",
        )
    if others:
        at = [row[column] for row in others]
        panel.plot(at, [row[metric] for row in others], "^", color=GREY, ms=5, label="validation, regularised")
    for rung, row in usable:
        if rung is found.chosen:
            label = f"chosen, rung {rung.number}"
            panel.plot(row[column], row[metric], "o", ms=13, mfc="none", mec=GREEN, mew=2, label=label)
        if rung.grows:
            panel.annotate(
                str(rung.number), (row[column], row[metric]), (4, -11), textcoords="offset points", fontsize=8
            )
    panel.set_xscale("log" if column == "parameters" else "linear")
    panel.set_xlabel({"seconds": "seconds per run"}.get(column, column))
