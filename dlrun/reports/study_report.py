"""The page of a study: what was seen, whether it agrees with the essay, a picture, a table (`dlrun study NAME`)."""

from __future__ import annotations

import csv
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis import study
from dlrun.analysis.claims import AGREES, DOES_NOT, Setting, overall
from dlrun.analysis.study import Found
from dlrun.analysis.sweeps import Trials
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.reports.axis_plots import called
from dlrun.reports.figures import BLUE, GREY, OKABE_ITO, STYLE, canvas, columns, epochs_axis, headline, positive, save
from dlrun.reports.page import card, picture, table, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["section"]

KIND = {AGREES: "fine", DOES_NOT: "warn"}
HIGHEST, LOG = 3.0, 5.0  # times the first loss, above which curves would flatten the others; range of a log axis


def section(folder: Path, trials: Trials) -> str:
    """Return the sentences, the picture and the table of a study, or why it is not judged; empty if there is none."""
    found = study.read(folder, trials)
    if not isinstance(found, Found):
        return card(f"{found[:1].upper()}{found[1:]}.", "warn") if found else ""
    from matplotlib import rc_context

    made = study.rows(found)
    with rc_context(STYLE):
        drawn = save(folder, "study", _figure(found, made))
    seen, agrees, *rules = study.sentences(found, made)
    shown = [{k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in made]
    listed = "".join(f"<li>{text(rule)}</li>" for rule in rules)
    return (
        f"<p><b>{text(found.study['question'])}</b></p><p>{text(seen)}</p>"
        f"{card(agrees, KIND.get(overall(found.judged), ''))}<ul>{listed}</ul>{picture(drawn)}{table(shown)}"
        "<p class=soft>Means over seeds; std is the sample standard deviation. Noise is the difference that chance "
        "makes between two means (95 %), from the spread within both. The test split is scored once, at the end.</p>"
    )


def _figure(found: Found, made: list[dict[str, Any]]) -> Figure:
    curves = [s for s in found.settings if s.runs]
    figure = canvas(6.8 if curves else 3.3, top=0.62, bottom=1.15 if curves else 0.6)
    figure.subplots_adjust(hspace=0.42)
    if curves:
        for place, column in enumerate(("train_loss", "val_loss")):
            panel = figure.add_subplot(2, 2, place + 1)
            _curves(panel, found, column)
        handles, names = figure.axes[0].get_legend_handles_labels()
        across = 6 if max(map(len, names), default=0) < 16 else 2
        title = " ".join(found.keys) if len(found.keys) == 1 else None
        figure.legend(handles, names, loc="lower center", ncols=across, fontsize=8.5, title=title, title_fontsize=8.5)
    score = str(found.study["score"])
    panel = figure.add_subplot(2, 2, 3) if curves else figure.add_subplot()
    _scores(panel, found, made, score)
    if curves:
        panel = figure.add_subplot(2, 2, 4)
        seconds = [row.get("seconds per epoch", math.nan) for row in made]
        panel.bar(range(len(made)), [0 if math.isnan(v) else v for v in seconds], color=BLUE, width=0.6)
        panel.set(title="Seconds per epoch", ylim=(0, None))
        panel.grid(axis="x", visible=False)
        _named(panel, found)
    headline(figure, str(found.study["question"])[:110])
    return figure


def _curves(panel: Axes, found: Found, column: str) -> None:
    """A loss by epoch for each setting: the mean over its runs; diverged ones end early."""
    seen, first = [], math.inf
    for place, setting in enumerate(found.settings):
        rows = _by_epoch(setting, column)
        colour = OKABE_ITO[place % len(OKABE_ITO)]
        style = "-" if place < len(OKABE_ITO) else "--"
        panel.plot(range(1, len(rows) + 1), rows, style, color=colour, label=setting.name)
        seen += [v for v in rows if math.isfinite(v)]
        first = min([first, *(v for v in rows[:1] if math.isfinite(v))])
    epochs_axis(panel, f"{called(column)[:1].upper()}{called(column)[1:]}".replace("_", " "), "")
    if seen and positive(np.array(seen)):
        panel.set_yscale("log" if max(seen) > LOG * min(seen) else "linear")
        top = min(max(seen), HIGHEST * first if math.isfinite(first) else max(seen))
        panel.set_ylim(min(seen) / 1.2, top * 1.2)


def _by_epoch(setting: Setting, column: str) -> list[float]:
    runs = []
    for path, _ in setting.runs:
        with suppress(UserError, TypeError, csv.Error):
            values = columns(reading.metrics(path)).get(column)
            if values is not None and len(values):
                runs.append(values)
    length = max(map(len, runs), default=0)
    return [float(np.mean([run[k] for run in runs if k < len(run)])) for k in range(length)]


def _scores(panel: Axes, found: Found, made: list[dict[str, Any]], score: str) -> None:
    """The score of each setting with one standard deviation over seeds; the control is a dashed line."""
    spread = [0.0 if math.isnan(std := row.get("std", math.nan)) else std for row in made]
    name = {"test_acc": "test accuracy"}.get(score, called(score))
    panel.errorbar(range(len(made)), [row[score] for row in made], yerr=spread, fmt="o", color=BLUE, capsize=3)
    control = [row[score] for row, s in zip(made, found.settings, strict=True) if s.name == found.study["control"]]
    if control and not math.isnan(control[0]):
        panel.axhline(control[0], color=GREY, ls="--", lw=1)
    panel.set_title(f"{name[:1].upper()}{name[1:]}, ± std over seeds" + ("; dashed: control" if control else ""))
    _named(panel, found)


def _named(panel: Axes, found: Found) -> None:
    names = [setting.name for setting in found.settings]
    if len(found.keys) > 1:  # of each key the last part, on a line of its own
        names = [re.sub(r"(^|\n)[\w.]*\.(?=\w+=)", r"\1", name.replace(" ", "\n")) for name in names]
    long = len(found.keys) < 2 and (max(map(len, names), default=0) > 9 or len(names) > 7)
    panel.set_xticks(
        range(len(names)), names, rotation=20 if long else 0, fontsize=7.5 if long or len(found.keys) > 1 else 9
    )
    panel.set_xlabel(" ".join(found.keys) if len(found.keys) == 1 else "")
