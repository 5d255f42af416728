"""Pictures of what a sweep searched: scores against each axis, two axes as a map, all of them in parallel (S3, S7).

Part of `dlrun report SWEEP`. Trials without a score are marked at their values, outside the scale of the scores, which
they would distort. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis.edges import position
from dlrun.analysis.sweeps import Axis, Trials, edge_near
from dlrun.reports.figures import BLUE, GREEN, GREY, ORANGE, canvas, headline
from dlrun.vocabulary import FAILED, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Ruler
    from matplotlib.figure import Figure

__all__ = ["against_axes", "called", "legend", "parallel", "span", "strip", "two_axes", "wanted"]

ACROSS = 3  # panels side by side
MOST_PANELS = 9
COLOURED = 12  # lines of a parallel plot that stand out
UNSCORED = "no score yet"
# trials without a score: what a legend calls them, marker, colour, statuses
LOST: tuple[tuple[str, str, str, tuple[Status, ...]], ...] = (
    (str(Status.PRUNED), "v", GREY, (Status.PRUNED,)),
    (str(Status.DIVERGED), "x", ORANGE, (Status.DIVERGED,)),
    (str(Status.FAILED), "x", "#000000", FAILED),
    (UNSCORED, ".", GREY, ()),
)
FENCE = 3.0  # interquartile ranges beyond a quartile: worse scores are clipped (Tukey's far out)


def called(metric: str) -> str:
    """Return the name of a metric for a title."""
    return {"val_acc": "validation accuracy", "val_loss": "validation loss"}.get(metric, metric)


def wanted(trials: Trials) -> str:
    """Return which way the metric of a sweep is better, in words."""
    return "lower is better" if trials.lower else "higher is better"


def span(trials: Trials) -> tuple[float, float]:
    """The range of scores that a picture shows: all but far outliers on the bad side."""
    scores = np.array([trials.scores[k] for k in trials.done])
    low, high = float(scores.min()), float(scores.max())
    first, third = np.quantile(scores, (0.25, 0.75))
    if trials.lower:
        high = min(high, float(third + FENCE * (third - first))) if third > first else high
    else:
        low = max(low, float(first - FENCE * (third - first))) if third > first else low
    margin = 0.06 * (high - low) or max(0.01, 0.01 * abs(high))
    return low - margin, high + margin


def lost_trials(trials: Trials) -> dict[str, tuple[str, str, list[int]]]:
    """The trials without a score, by their name in LOST: marker, colour and numbers."""
    found: dict[str, tuple[str, str, list[int]]] = {}
    for name, marker, colour, _ in LOST:
        found[name] = (marker, colour, [])
    for k, score in enumerate(trials.scores):
        if math.isnan(score):
            status = trials.entries[k].result.get("status")
            name = next((name for name, _, _, statuses in LOST if status in statuses), UNSCORED)
            found[name][2].append(k)
    return {name: look for name, look in found.items() if look[2]}


def strip(panel: Axes, trials: Trials, where: Any) -> None:
    """Set the limits of the scores, and mark trials without one in a separate strip on the bad side."""
    low, high = span(trials)
    height = 0.1 * (high - low)
    lost = lost_trials(trials)
    for name, (marker, colour, which) in lost.items():
        bad = high + height if trials.lower else low - height
        at = (where[which], [bad] * len(which))
        panel.scatter(*at, s=22, lw=1, alpha=0.8, marker=marker, color=colour, label=name)
    if lost:
        panel.axhline(high + 0.4 * height if trials.lower else low - 0.4 * height, color=GREY, lw=0.5)
    room = 1.6 * height if lost else 0
    panel.set_ylim(low - (0 if trials.lower else room), high + (room if trials.lower else 0))


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add one legend below all panels of a figure."""
    figure.legend(handles, labels, loc="lower center", ncols=6, fontsize=8.5, handletextpad=0.3, columnspacing=1.2)


def against_axes(trials: Trials, axes: Sequence[Axis]) -> Figure | None:
    """Draw the scores against each of the first axes; None without a completed trial."""
    if not axes or not trials.done:
        return None
    shown = axes[:MOST_PANELS]
    across = min(len(shown), ACROSS)
    down = -(-len(shown) // across)
    figure = canvas(1.35 + 2.45 * down if across > 1 else 4.1, top=0.68, bottom=0.85)
    figure.subplots_adjust(wspace=0.16, hspace=0.42)
    name = called(trials.metric)
    name = name if name == trials.metric else name[:1].upper() + name[1:]  # a column keeps its name
    headline(figure, f"{name} against each hyperparameter: {wanted(trials)}")
    for k, axis in enumerate(shown):
        panel = figure.add_subplot(down, across, k + 1)
        _panel(panel, trials, axis)
        panel.set_ylabel(called(trials.metric) if k % across == 0 else "")
        if k % across:
            panel.tick_params(labelleft=False)
    legend(figure, *figure.axes[0].get_legend_handles_labels())
    return figure


def _panel(panel: Axes, trials: Trials, axis: Axis) -> None:
    """One axis: scores as dots, the best as a diamond, and below them a strip of trials without a score."""
    low, high = span(trials)
    where = _positions(axis, len(trials.entries))
    done, best = trials.done, trials.best[0]
    if (side := edge_near(axis, best)) is not None:
        edges = {"low": (0.0, 0.1), "high": (0.9, 1.0)}[side]
        panel.axvspan(*(_value(axis, edge) for edge in edges), color="#E69F00", alpha=0.18, lw=0, zorder=0)
    scores = np.array(trials.scores)
    small = 26 if len(done) <= 60 else 12
    shown = np.clip(scores[done], low, high)
    panel.scatter(where[done], shown, s=small, color=BLUE, alpha=0.65, lw=0, label=str(Status.COMPLETED))
    panel.scatter(
        where[best], scores[best], s=70, marker="D", color=GREEN, edgecolor="white", lw=0.8, label="best", zorder=4
    )
    strip(panel, trials, where)
    _scale(panel.xaxis, axis, panel)
    title = axis.name + ("" if side is None else ": best near the edge")
    panel.set_title(title, fontsize=9.5)


def _positions(axis: Axis, count: int) -> Any:
    """The positions of the trials on the scale of the axis; options side by side, spread so that none is hidden."""
    if axis.numbers is not None:
        return np.array(axis.numbers)
    spread = ((np.arange(count) * 0.618) % 1 - 0.5) * 0.4  # multiples of the golden ratio spread evenly
    places = [axis.choices.index(text) if text else math.nan for text in axis.texts]
    return np.array(places, float) + spread


def _value(axis: Axis, place: float) -> float:
    """The value at a place from 0 to 1."""
    if axis.log:
        return float(axis.low * (axis.high / axis.low) ** place)
    return float(axis.low + (axis.high - axis.low) * place)


def _scale(ruler: Ruler, axis: Axis, panel: Axes) -> None:
    """Label one side of a panel: options by name, few numbers as typed, decades as powers."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    across = ruler is panel.xaxis
    name = "x" if across else "y"
    if axis.numbers is None:
        long = max(map(len, axis.choices)) * len(axis.choices) > 26
        labels = [text.rpartition(".")[2][:14] for text in axis.choices]
        ruler.set_ticks(range(len(labels)), labels)
        if across and long:
            panel.tick_params(axis="x", rotation=25)
        getattr(panel, f"set_{name}lim")(-0.5, len(labels) - 0.5)
        return
    if axis.log:
        getattr(panel, f"set_{name}scale")("log")
    typed = [float(text) for text in axis.choices]
    places = [position(v, axis.low, axis.high, log=axis.log) for v in typed]
    apart = min(b - a for a, b in pairwise(places))
    if len(typed) <= 6 and apart > 0.1 and max(len(f"{v:g}") for v in typed) <= 6:
        ruler.set_ticks(typed, [f"{v:g}" for v in typed])
        ruler.set_minor_locator(NullLocator())
    elif not axis.log:
        ruler.set_major_locator(MaxNLocator(5))


def two_axes(trials: Trials, axes: Sequence[Axis], measured: bool) -> Figure | None:
    """The two most important numeric axes, one dot per setting, coloured by its mean score."""
    numeric = [axis for axis in axes if axis.numbers is not None]
    count, numeric = len(numeric), numeric[:2]
    if len(numeric) < 2 or len(trials.done) < 3:
        return None
    across, up = numeric
    figure = canvas(4.6, top=0.62, right=0.1, bottom=0.95)
    panel = figure.add_subplot()
    points: dict[tuple[float, float], list[float]] = {}
    for k in trials.done:
        points.setdefault((across.numbers[k], up.numbers[k]), []).append(trials.scores[k])  # type: ignore[index]
    there = {point: float(np.mean(values)) for point, values in points.items() if not any(map(math.isnan, point))}
    if len(there) < 3:
        return None
    # the best are drawn last
    order = sorted(there, key=lambda point: -there[point] if trials.lower else there[point])
    for name, (marker, colour, which) in lost_trials(trials).items():
        lost = [[axis.numbers[k] for k in which] for axis in numeric]  # type: ignore[index]
        panel.scatter(lost[0], lost[1], s=26, marker=marker, color=colour, lw=1, alpha=0.7, label=name)
    x, y = zip(*order, strict=True)
    dots = panel.scatter(
        x, y, c=[there[point] for point in order], s=46 if len(order) <= 100 else 30,
        cmap=_shades(trials.lower), edgecolor="white", lw=0.4, vmin=span(trials)[0],
        vmax=span(trials)[1], label=str(Status.COMPLETED),
    )  # fmt: skip
    best = trials.best[0]
    at = [axis.numbers[best] for axis in numeric]  # type: ignore[index]
    panel.scatter(at[0], at[1], s=190, facecolor="none", edgecolor=GREEN, lw=2.2, label="best")
    for ruler, axis in ((panel.xaxis, across), (panel.yaxis, up)):
        _scale(ruler, axis, panel)
    _box(panel, across, up)
    panel.set(xlabel=across.name, ylabel=up.name)
    figure.colorbar(dots, ax=panel, pad=0.02, fraction=0.12).set_label(f"{called(trials.metric)}, {wanted(trials)}")
    known = "" if count == 2 else " that matter most" if measured else " that usually matter most"
    headline(figure, f"The two numeric axes{known}: where good values lie, and whether at an edge")
    legend(figure, *panel.get_legend_handles_labels())
    return figure


def _box(panel: Axes, across: Axis, up: Axis) -> None:
    """Outline the ranges that were searched, with room around them: what lies beyond was not tried."""
    x, y = (across.low, across.high), (up.low, up.high)
    corners = [x[0], x[1], x[1], x[0], x[0]], [y[0], y[0], y[1], y[1], y[0]]
    panel.plot(*corners, color=GREY, lw=1.2, ls="--", label="range searched", zorder=0.5)
    panel.set(xlim=(_value(across, -0.05), _value(across, 1.05)), ylim=(_value(up, -0.07), _value(up, 1.07)))


def _shades(lower: bool) -> Any:
    """Cividis without its palest yellows, the good end dark: it stands out on white and, inverted, on black."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    shades = colormaps["cividis"](np.linspace(0, 0.9, 256))
    return ListedColormap(shades if lower else shades[::-1])


def parallel(trials: Trials, axes: Sequence[Axis]) -> Figure | None:
    """One line per trial over all axes, ending at its score; the best in colour, all others in grey."""
    if len(axes) < 2 or len(trials.done) < 2:
        return None
    shown = list(reversed(axes[:MOST_PANELS]))  # the most important next to the score
    figure = canvas(4.4, left=0.55, right=0.75, top=0.62, bottom=0.9)
    panel = figure.add_subplot()
    low, high = span(trials)
    places = np.array([[axis.place(k) for axis in shown] for k in range(len(trials.entries))], float)
    places = np.where(np.isnan(places), -0.12, places)
    ends = np.clip([(score - low) / (high - low) for score in trials.scores], 0, 1)
    ends = 1 - ends if trials.lower else ends
    lines, best = np.column_stack([places, ends]), trials.best[:COLOURED]
    steps = np.arange(lines.shape[1])
    for _, colour, which in lost_trials(trials).values():
        panel.plot(steps[:-1], lines[which, :-1].T, color=colour, lw=0.8, alpha=0.4, ls=":")
    rest = [k for k in trials.done if k not in best]
    panel.plot(steps, lines[rest].T, color="#AAAAAA", lw=0.7, alpha=0.5)
    from matplotlib import colormaps

    for place, k in reversed(list(enumerate(best))):
        shade = colormaps["cividis"](0.05 + 0.8 * place / COLOURED)
        panel.plot(steps, lines[k], color=shade, lw=2.4 if place == 0 else 1.3)
    paper = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.75}
    for step, axis in enumerate(shown):
        panel.axvline(step, color="#444444", lw=0.8)
        for at, word in _words(axis):
            panel.text(step, at, f" {word}", fontsize=8, va="center", bbox=paper)
    panel.axvline(steps[-1], color="#444444", lw=0.8)
    worst = (max if trials.lower else min)(trials.done, key=lambda k: trials.scores[k])
    for k in (best[0], worst):
        panel.text(steps[-1], ends[k], f" {trials.scores[k]:.3g}", fontsize=8, va="center")
    if (places < -0.1).any():
        panel.text(-0.06, -0.12, "not set", fontsize=8, va="center", ha="right", color=GREY)
    names = [axis.name.replace(".", ".\n", 1) for axis in shown] + [called(trials.metric).replace(" ", "\n")]
    panel.set_xticks(steps, names, fontsize=8.5)
    panel.set(xlim=(-0.1, steps[-1] + 0.1), ylim=(-0.17, 1.06), yticks=[])
    panel.grid(visible=False)
    panel.spines[["left", "bottom"]].set_visible(False)
    lost = "; dotted: no score" if lost_trials(trials) else ""
    headline(figure, f"One line per trial: the best {len(best)} in colour, good scores end at the top right{lost}")
    return figure


def _words(axis: Axis) -> list[tuple[float, str]]:
    """The labels on an axis of the parallel plot, and their places."""
    if axis.numbers is None:
        found = axis.choices
        return [(k / max(len(found) - 1, 1), text.rpartition(".")[2][:14]) for k, text in enumerate(found)]
    return [(place, f"{_value(axis, place):.2g}") for place in (0.0, 0.5, 1.0)]
