"""Pictures of a sweep in `plots/`, from the files of its runs alone: `dlrun report SWEEP` (S3, S7, S10).

Trials without a score are marked at their values, outside the scale of the scores, which they would distort. Nothing
here imports torch.
"""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis.importance import Importance
from dlrun.analysis.sweeps import Axis, Trials
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.reports import axis_plots
from dlrun.reports.axis_plots import called, legend, span, strip, wanted
from dlrun.reports.figures import BLUE, GREEN, OKABE_ITO, STYLE, canvas, columns, epochs_axis, headline, positive, save
from dlrun.vocabulary import Status, is_loss, lower_is_better

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

MOST_CURVES = 200
LEGEND = 58  # characters of a legend's entry, two of which share a line


def draw(folder: Path, trials: Trials, found: Importance | str) -> list[Path]:
    """Draw every picture for which the trials have numbers, into `folder`/plots; return the files."""
    from matplotlib import rc_context

    ranked = _by_importance(trials.axes, found)
    made = []
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks are drawn as boxes
        for name, figure in (
            ("sweep_axes", axis_plots.against_axes(trials, ranked)),
            ("sweep_map", axis_plots.two_axes(trials, ranked, isinstance(found, Importance))),
            ("sweep_parallel", axis_plots.parallel(trials, ranked)),
            ("sweep_importance", _importance(found)),
            ("sweep_time", _time(trials)),
            ("curves", _curves(folder, trials, ranked)),
        ):
            if figure is not None:
                made.append(save(folder, name, figure))
    return made


def _by_importance(axes: Sequence[Axis], found: Importance | str) -> list[Axis]:
    order = {name: k for k, name in enumerate(found.names)} if isinstance(found, Importance) else {}
    return sorted(axes, key=lambda axis: order.get(axis.name, len(order)))


def _importance(found: Importance | str) -> Figure | None:
    if isinstance(found, str):
        return None
    count = len(found.names)
    figure = canvas(1.25 + 0.32 * count, left=2.3, right=0.5, top=0.62)
    panel = figure.add_subplot()
    rows = range(count)
    panel.barh(rows, [100 * s for s in found.shares], color=BLUE, height=0.66)
    shares, errors = ([100 * v for v in values] for values in (found.shares, found.errors))
    panel.errorbar(shares, rows, xerr=errors, fmt="none", ecolor="#222222", lw=1)
    panel.set_yticks(rows, found.names)
    panel.invert_yaxis()
    panel.set(xlabel="share of the explained variance, % ± standard error over five folds")
    panel.set_xlim(left=0)
    panel.grid(axis="y", visible=False)
    headline(
        figure,
        f"Importance: loss of accuracy of a random forest when a value is shuffled; it explains {found.explained:.0%}\n"
        f"of the ranks of unseen trials; {found.trials} completed trials; interactions count for each axis involved",
    )
    return figure


def _time(trials: Trials) -> Figure | None:
    """Scores in the order in which trials ended, and the best so far."""
    ends = {k: end for k in range(len(trials.entries)) if (end := _clock(trials.entries[k].result.get("ended")))}
    starts = [s for e in trials.entries if (s := _clock(e.result.get("started")))]
    done = sorted((k for k in trials.done if k in ends), key=lambda k: ends[k])
    if len(done) < 2:
        return None
    begin = min([*starts, *ends.values()])
    unit, name = next((u, n) for u, n in ((1, "seconds"), (60, "minutes"), (3600, "hours"))
                      if max(ends.values()) - begin < 180 * u or n == "hours")  # fmt: skip
    low, high = span(trials)
    figure = canvas(3.7, top=0.42, bottom=0.95)
    panel = figure.add_subplot()
    hours = np.array([(ends[k] - begin) / unit for k in done])
    scores = np.array([trials.scores[k] for k in done])
    so_far = (np.minimum if trials.lower else np.maximum).accumulate(scores)
    panel.scatter(hours, np.clip(scores, low, high), s=18, color=BLUE, alpha=0.6, lw=0, label=str(Status.COMPLETED))
    last = (max(ends.values()) - begin) / unit
    panel.step([*hours, last], [*so_far, so_far[-1]], where="post", color=GREEN, label="best so far")
    strip(panel, trials, np.array([(ends.get(k, math.nan) - begin) / unit for k in range(len(trials.entries))]))
    panel.set_xlim(left=0)
    panel.set(xlabel=f"{name} since the start", ylabel=called(trials.metric))
    panel.set_title(
        f"Best so far by time, {wanted(trials)}: if it has been level for long, more trials will hardly help"
    )
    legend(figure, *panel.get_legend_handles_labels())
    return figure


def _clock(text: Any) -> float | None:
    """`started` or `ended` of result.json in seconds since 1970."""
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return None


def _curves(folder: Path, trials: Trials, varied: Sequence[Axis]) -> Figure | None:
    """The learning curves of the trials that wrote any, best first; the legend names the settings that were varied."""
    tables: dict[str, dict[str, Any]] = {}
    settings: dict[str, str] = {}
    for k, entry in enumerate(trials.entries):
        if len(tables) < MOST_CURVES and (table := _by_epoch(entry.path)):
            tables[label := os.path.relpath(entry.path, folder)] = table
            settings[label] = _setting(label, varied, k)
    if not tables:
        return None
    rows = math.ceil(min(len(tables), len(OKABE_ITO)) / 2)
    figure = canvas(3.75 + 0.18 * rows, left=0.9, top=0.75, bottom=0.7 + 0.18 * rows)
    kept = {os.path.relpath(trials.entries[k].path, folder) for k in trials.done} & set(tables) or set(tables)
    logged = all(trials.metric in table for table in tables.values())
    shown = [trials.metric, "val_acc"] if logged and trials.metric != "val_acc" else ["val_loss", "val_acc"]
    for place, column in enumerate(shown):
        axes = figure.add_subplot(1, 2, place + 1)
        lower = trials.lower if column == trials.metric else lower_is_better(column)
        for k, (label, table) in reversed(list(enumerate(tables.items()))):
            named = k < len(OKABE_ITO)
            (line,) = axes.plot(table["epoch"], table[column], label=settings[label] if named else None)
            line.set(color=OKABE_ITO[k] if named else "#BBBBBB", linewidth=1.8 if named else 0.8)
        epochs_axis(axes, "lower is better" if lower else "higher is better", called(column))
        if is_loss(column):
            # diverged runs are clipped, so that they do not flatten the others
            seen = np.concatenate([tables[label][column] for label in kept])
            if positive(seen := seen[np.isfinite(seen)]):
                axes.set_yscale("log")
                axes.set_ylim(seen.min() / 1.3, seen.max() * 1.3)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="lower center", ncols=2, fontsize=8)
    more = f"; the best {len(OKABE_ITO)} in colour" if len(tables) > len(OKABE_ITO) else ""
    some = "of the first" if len(tables) == MOST_CURVES < len(trials.entries) else "of"
    headline(figure, f"Learning curves {some} {len(tables)} runs, best first{more}")
    return figure


def _setting(label: str, axes: Sequence[Axis], trial: int) -> str:
    """The folder of a trial and its values on the most important axes, as many as there is room for."""
    names = [axis.name.rpartition(".")[2] for axis in axes]
    said = label[-24:]
    for axis, short in zip(axes, names, strict=True):
        if value := axis.texts[trial]:
            value = f"{axis.numbers[trial]:.3g}" if axis.numbers is not None else value.rpartition(".")[2][:14]
            word = f"{short if names.count(short) == 1 else axis.name} {value}"
            if len(said) + len(word) + 2 > LEGEND:
                break
            said += f"{':' if said == label[-24:] else ','} {word}"
    return said


def _by_epoch(run_folder: Path) -> dict[str, Any]:
    """The columns of metrics.csv; nothing if it is missing or damaged, which must not spoil the other curves."""
    try:
        table = columns(reading.metrics(run_folder))
    except (UserError, TypeError, csv.Error):
        return {}
    return table if {"epoch", "val_loss", "val_acc"} <= set(table) else {}
