"""A sweep as numbers: its axes, the score of each trial, what the best trials share (S3, S7, S9).

Behind `dlrun report SWEEP` and its pictures. Read from the run folders, best trial first. Nothing imports torch.
"""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dlrun.analysis import compare, edges
from dlrun.analysis.compare import Entry
from dlrun.analysis.ranking import repeats
from dlrun.errors import UserError
from dlrun.folders import ensemble as ensemble_folder
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.version import NewerFormat
from dlrun.vocabulary import SCORES, Status, lower_is_better, minimised

__all__ = ["Axis", "Trials", "edge_near", "expect_model", "of", "read", "score", "searched", "shared"]

# learning rate, momentum, batch size, penalties, then the rest (S7)
FIRST = (r"optimizer\.lr$", r"momentum|betas", r"batch_size", r"regularizer\.|weight_decay|dropout", r"")
NARROW = 1 / 3  # of a searched range: values within it count as alike


@dataclass(frozen=True)
class Axis:
    """A key that was swept: each trial's value as text, and as a number if all are (nan if a trial lacks it).

    `words` are the values of the list that was asked for; a range has none.
    """

    name: str
    texts: list[str]
    numbers: list[float] | None
    log: bool
    low: float
    high: float
    whole: bool = False
    words: tuple[str, ...] = ()

    @cached_property
    def choices(self) -> list[str]:
        """The values that occur: numbers by size, others in the order of their best trials."""
        found = list(dict.fromkeys(t for t in self.texts if t))
        return found if self.numbers is None else sorted(found, key=float)

    def place(self, trial: int) -> float:
        """Return where the value of a trial lies on the axis, 0 to 1; nan if it has none."""
        if self.numbers is None:
            found, text = self.choices, self.texts[trial]
            return found.index(text) / max(len(found) - 1, 1) if text else math.nan
        value = self.numbers[trial]
        return math.nan if math.isnan(value) else edges.position(value, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, best first by their settings: `scores` by `metric` are nan for those that do not count."""

    entries: list[Entry]
    rows: list[dict[str, Any]]
    axes: list[Axis]
    metric: str
    lower: bool  # whether a lower score is better
    scores: list[float]
    said: list[str] | None = None  # the edge warnings of the sweep itself

    @cached_property
    def done(self) -> list[int]:
        """The trials whose scores count, best first."""
        return [k for k, score in enumerate(self.scores) if not math.isnan(score)]

    @cached_property
    def best(self) -> list[int]:
        """One trial per setting, that of its best seed, the settings by their mean over seeds as the rows are."""
        first: dict[int, int] = {}
        for k in self.done:
            first.setdefault(self.settings[k], k)
        return list(first.values())

    @cached_property
    def settings(self) -> list[int]:
        """The number of the setting of each trial: trials with equal values differ only in their seeds."""
        numbers: dict[tuple[str, ...], int] = {}
        return [
            numbers.setdefault(tuple(axis.texts[k] for axis in self.axes), len(numbers))
            for k in range(len(self.entries))
        ]


def read(folder: Path) -> Trials:
    """Return the trials at or below a folder.

    Raises UserError when it is not there, NewerFormat when it is a sweep of a newer dlrun.
    """
    if sweep_folder.is_sweep(folder):
        try:
            sweep_folder.plan(folder)
        except NewerFormat:
            raise
        except UserError:
            pass  # damaged, but the runs can be read
    return of(folder, compare.read([str(folder)]))


def of(folder: Path, runs: list[Entry]) -> Trials:
    """Return the trials of a folder from its runs, already read."""
    entries, metric, lower = searched([folder], runs)
    rows, by_path = compare.table(entries, metric, lower=lower), {str(entry.path): entry for entry in entries}
    entries = [by_path[row["run"]] for row in rows]
    scores = [float(row[metric]) if compare.scored(row, metric) else math.nan for row in rows]
    asked = _asked(folder)
    axes = [_over(axis, asked.get(axis.name)) for axis in _axes(entries, asked)]
    return Trials(entries, rows, axes, metric, lower, scores, _said(folder))


def expect_model(folder: Path) -> None:
    """Raise UserError unless a folder is that of a run or an ensemble; of a sweep it names the best run."""
    if reading.is_run(folder) or ensemble_folder.is_ensemble(folder):
        return
    if not sweep_folder.is_sweep(folder):
        raise UserError(f"{folder}: no completed run; expected a run or an ensemble that dlrun has finished")
    found = read(folder)
    if not found.best:
        again = f"`dlrun resume {shlex.quote(str(folder))}` continues it"
        raise UserError(f"{folder} is a sweep without a completed run; {again}")
    best = found.entries[found.best[0]].path
    raise UserError(f"{folder} is a sweep; expected one of its runs, such as {best}, the best by {found.metric}")


def searched(folders: Sequence[Path], entries: list[Entry]) -> tuple[list[Entry], str, bool]:
    """Return the runs of folders, the column by which they are compared, and whether a lower value is better.

    A single sweep decides both (search.metric, search.direction); a column that result.json lacks is then added to the
    results. For other folders, or if no run has the column, the monitors of the runs decide.
    """
    metric = ""
    with suppress(UserError, KeyError, TypeError, AttributeError):  # a damaged or foreign file
        if len(folders) == 1 and sweep_folder.is_sweep(folders[0]):
            asked = sweep_folder.plan(folders[0])["search"]
            metric, direction = str(asked["metric"]), str(asked.get("direction", "auto"))
    if metric and metric not in SCORES:
        values = [_logged(entry, metric) for entry in entries]
        if all(value is None for value in values):
            metric = ""
        entries = [e._replace(result={metric: v, **e.result}) for e, v in zip(entries, values, strict=True)]
    if not metric:
        metric, direction = compare.metric(entries), "auto"
    return entries, metric, minimised(metric, direction)


def _logged(entry: Entry, metric: str) -> float | None:
    with suppress(UserError, TypeError, ValueError, csv.Error):
        return score(entry.path, entry.result, metric)
    return None


def score(folder: Path, result: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of a run for the weights that are tested; None if it has none, diverged or is not finite.

    result.json of a completed run comes first: with trainer.ema it differs from metrics.csv. Before the end the better
    of raw and averaged weights counts, as for the best epoch.
    """
    if result.get("status") == Status.DIVERGED:
        return None
    value = result.get(metric) if result.get("status") == Status.COMPLETED else None
    if value is None:
        rows = reading.metrics(folder)
        epoch = str(result.get("tested_epoch") or result.get("best_epoch") or "")
        row = next((r for r in rows if r.get("epoch") == epoch), rows[-1] if rows else {})
        value = row.get(metric) or result.get(metric)
        if averaged := row.get(f"ema_{metric}"):
            value = (min if lower_is_better(metric) else max)(averaged, value or averaged, key=float)
    return float(value) if value not in (None, "") and math.isfinite(float(value)) else None


class Asked(NamedTuple):
    """An axis as the sweep searched it: a range as wide as it grew, or the words of a list."""

    low: float
    high: float
    log: bool
    whole: bool
    words: tuple[str, ...]


def _asked(folder: Path) -> dict[str, Asked]:
    """The numeric axes that a sweep searched, by name; none if the folder is no sweep or cannot be read."""
    found: dict[str, Asked] = {}
    if not sweep_folder.is_sweep(folder):
        return found
    with suppress(UserError, KeyError, TypeError, ValueError, AttributeError):  # a damaged or foreign file
        plan = sweep_folder.plan(folder)
        for axis in (a for one in (plan, *plan["rounds"]) for a in one["axes"]):
            name, words = str(axis["key"]).lstrip("+"), tuple(map(str, axis["words"]))
            values = _numbers(words) if words else [float(axis["low"]), float(axis["high"])]
            if values:
                log = edges.spans_decades(sorted(values)) if words else bool(axis["log"])
                before = found.get(name)
                low, high = min(values), max(values)
                ends = (low, high) if before is None else (min(low, before.low), max(high, before.high))
                found[name] = Asked(*ends, log, bool(axis.get("whole")), words)
    return found


def _said(folder: Path) -> list[str] | None:
    """The edge warnings of the sweep after its last round; None if it is not a sweep or no round is over."""
    with suppress(UserError, KeyError, TypeError, AttributeError):  # a damaged or foreign file
        if sweep_folder.is_sweep(folder):
            over = [one["said"] for one in sweep_folder.plan(folder)["rounds"] if isinstance(one.get("said"), list)]
            return [str(words) for words in over[-1]] if over else None
    return None


def _over(axis: Axis, asked: Asked | None) -> Axis:
    """The axis over all that was searched, not only what was drawn from it; unchanged if values lie outside."""
    if asked is None or axis.numbers is None or not asked.low <= axis.low <= axis.high <= asked.high < math.inf:
        return axis
    return axis if asked.log and asked.low <= 0 else replace(axis, **asked._asdict())


def _axes(entries: Sequence[Entry], asked: Collection[str]) -> list[Axis]:
    """The keys that differ, without seeds, the most important by experience first (S7)."""
    found = compare.varying([e.config for e in entries], asked)
    keys = [key for key in found if not repeats(key)]
    made = []
    for key in keys:
        texts = [entry.config.get(key, "") for entry in entries]
        leader = f"choices.{key.partition('.')[0]}"
        if leader not in keys or key == leader or not _brought(texts, [e.config.get(leader, "") for e in entries]):
            made.append(_axis(key, texts))
    return sorted(made, key=lambda axis: next(k for k, first in enumerate(FIRST) if re.search(first, axis.name)))


def _brought(texts: Sequence[str], options: Sequence[str]) -> bool:
    """Whether a key has one value per option: the option set it, nobody searched it."""
    return len(set(zip(texts, options, strict=True))) == len(set(options))


def _axis(key: str, texts: list[str]) -> Axis:
    name = key.removeprefix("choices.")
    numbers = None if key.startswith("choices.") else _numbers(texts)
    if numbers is None:
        return Axis(name, texts, None, False, math.nan, math.nan)
    there = [v for v in numbers if not math.isnan(v)]
    log = edges.spans_decades(sorted(set(there)))
    return Axis(name, ["" if math.isnan(v) else t for v, t in zip(numbers, texts, strict=True)],
                numbers, log, min(there), max(there))  # fmt: skip


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        found = [math.nan if text in ("", "null") else float(text) for text in texts]
    except ValueError:
        return None
    there = {v for v in found if not math.isnan(v)}
    return found if len(there) > 1 and all(map(math.isfinite, there)) else None


def shared(trials: Trials, count: int = 3) -> list[str]:
    """Return what distinguishes the best few from the rest, one sentence per axis: a value or a narrow range."""
    best = trials.best[:count]
    if len(best) < 2 or len(trials.best) <= len(best):
        return []
    said = []
    for axis in trials.axes:
        values = [axis.texts[k] for k in best]
        rest = {axis.texts[k] for k in trials.done}
        if "" not in values and len(set(values)) == 1 and len(rest) > 1:
            said.append(f"all have {axis.name}={values[0]}")
        elif axis.numbers is not None and "" not in values:
            places = [axis.place(k) for k in best]
            if max(places) - min(places) <= NARROW:
                low, high = (pick(axis.numbers[k] for k in best) for pick in (min, max))
                said.append(
                    f"all have {axis.name} between {low:.3g} and {high:.3g}, of {axis.low:.3g} to {axis.high:.3g} tried"
                )
    return said


def edge_near(axis: Axis, trial: int) -> Literal["low", "high"] | None:
    """Return the edge of the range that the value of a trial is near, `low` or `high`, or None (S3)."""
    if axis.numbers is None or math.isnan(axis.numbers[trial]):
        return None
    return edges.edge(axis.numbers[trial], axis.low, axis.high, log=axis.log)
