"""A sweep as numbers: its axes, the score of each trial, what the best share, what to warn of (S3, S7, S9).

Behind `dlrun report SWEEP` and its pictures. Read from the run folders, best trial first. Nothing imports torch.
"""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from dlrun import vocabulary
from dlrun.analysis import compare, edges
from dlrun.analysis.compare import Entry
from dlrun.errors import UserError
from dlrun.folders import ensemble as ensemble_folder
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.vocabulary import NOT_RANKED, Status, lower_is_better, minimised

__all__ = ["Axis", "Trials", "expect_model", "judged", "read", "score", "searched", "shared", "warnings"]

# learning rate, momentum, batch size, penalties, then the rest (S7)
FIRST = (r"optimizer\.lr$", r"momentum|betas", r"batch_size", r"regularizer\.|weight_decay|dropout", r"")
SHARES = ("dropout", "momentum", "label_smoothing", "alpha")  # keys whose values stay below one
NARROW = 1 / 3  # of a searched range: within it the best are said to agree


@dataclass(frozen=True)
class Axis:
    """A key that was swept: each trial's value as text, and as a number where all are (nan where a trial lacks it)."""

    name: str
    texts: list[str]
    numbers: list[float] | None
    log: bool
    low: float
    high: float

    @cached_property
    def choices(self) -> list[str]:
        """The values that are there, numbers by size, in the order of their first best trial otherwise."""
        found = list(dict.fromkeys(t for t in self.texts if t))
        return found if self.numbers is None else sorted(found, key=float)

    def place(self, trial: int) -> float:
        """Return where the value of a trial lies on the axis, 0 to 1; nan where it has none."""
        if self.numbers is None:
            found, text = self.choices, self.texts[trial]
            return found.index(text) / max(len(found) - 1, 1) if text else math.nan
        value = self.numbers[trial]
        return math.nan if math.isnan(value) else edges.position(value, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, best first: `scores` by `metric` are nan for those that do not count."""

    entries: list[Entry]
    rows: list[dict[str, Any]]
    axes: list[Axis]
    metric: str
    lower: bool  # whether a lower score is better
    scores: list[float]
    said: list[str] | None = None  # of edges by the sweep itself, which knows its ranges and what was to follow

    @cached_property
    def done(self) -> list[int]:
        """The trials whose scores count, best first."""
        return [k for k, score in enumerate(self.scores) if not math.isnan(score)]

    @cached_property
    def best(self) -> list[int]:
        """A trial a setting, that of its best seed, by the mean over the setting's seeds: one lucky seed is no best."""
        numbers, means = self.settings, {}
        for setting in {numbers[k] for k in self.done}:
            means[setting] = fmean(self.scores[k] for k in self.done if numbers[k] == setting)
        first = {numbers[k]: k for k in reversed(self.done)}
        return sorted(first.values(), key=lambda k: means[numbers[k]] * (1 if self.lower else -1))

    @cached_property
    def settings(self) -> list[int]:
        """The number of each trial's setting: trials of equal values differ in their seed alone."""
        numbers: dict[tuple[str, ...], int] = {}
        return [
            numbers.setdefault(tuple(axis.texts[k] for axis in self.axes), len(numbers))
            for k in range(len(self.entries))
        ]


def read(folder: Path) -> Trials:
    """Return the trials at or below a folder. Raises UserError when it is not there."""
    entries, metric, lower = searched([folder], compare.read([str(folder)]))
    rows, by_path = compare.table(entries, metric, lower=lower), {str(entry.path): entry for entry in entries}
    entries = [by_path[row["run"]] for row in rows]
    scores = [float(row[metric]) if compare.scored(row, metric) else math.nan for row in rows]
    axes = [_asked(axis, ranges) for axis in _axes(entries)] if (ranges := _ranges(folder)) else _axes(entries)
    return Trials(entries, rows, axes, metric, lower, scores, _said(folder))


def expect_model(folder: Path) -> None:
    """Raise UserError unless a folder is that of a run or an ensemble; of a sweep it names the best run."""
    if reading.is_run(folder) or ensemble_folder.is_ensemble(folder):
        return
    if not sweep_folder.is_sweep(folder):
        raise UserError(f"{folder}: no completed run; expected a run or an ensemble that dlrun has finished")
    found = read(folder)
    if not found.best:
        again = f"`dlrun resume {shlex.quote(str(folder))}` goes on with it"
        raise UserError(f"{folder} is a sweep, none of whose runs is completed; {again}")
    best = found.entries[found.best[0]].path
    raise UserError(f"{folder} is a sweep; name one of its runs: {best} is the best by {found.metric}")


def searched(folders: Sequence[Path], entries: list[Entry]) -> tuple[list[Entry], str, bool]:
    """Return the runs of folders, the column that says which is best, and whether its lowest value does.

    A sweep alone says both itself (search.metric, search.direction); a column that result.json lacks is then added to
    the results. Of other folders, and where no run has the column, the runs say it.
    """
    metric = ""
    with suppress(UserError, KeyError, TypeError, AttributeError):  # a stranger's or a damaged file
        if len(folders) == 1 and sweep_folder.is_sweep(folders[0]):
            asked = sweep_folder.plan(folders[0])["search"]
            metric, direction = str(asked["metric"]), str(asked.get("direction", "auto"))
    if metric and metric not in vocabulary.SCORES:
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
    """Return a metric of a run with the weights that count; None where it has none, diverged, or it is not finite.

    What result.json says of a completed run comes first: with trainer.ema it is not what metrics.csv says. Before its
    end the better of raw and averaged weights counts, as for its best epoch.
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


def _ranges(folder: Path) -> dict[str, tuple[float, float, bool]]:
    """The ranges that a sweep searched, as wide as they grew, and whether by logarithms; none where it does not say."""
    found: dict[str, tuple[float, float, bool]] = {}
    if not sweep_folder.is_sweep(folder):
        return found
    with suppress(UserError, KeyError, TypeError, ValueError, AttributeError):  # a stranger's or a damaged file
        plan = sweep_folder.plan(folder)
        for axis in (a for one in (plan, *plan["rounds"]) for a in one["axes"] if not a["words"]):
            name, low, high = str(axis["key"]).lstrip("+"), float(axis["low"]), float(axis["high"])
            before = found.get(name, (low, high))
            found[name] = (min(low, before[0]), max(high, before[1]), bool(axis["log"]))
    return found


def _said(folder: Path) -> list[str] | None:
    """What the sweep said of edges after its last round; None where it is no sweep, or none is over."""
    with suppress(UserError, KeyError, TypeError, AttributeError):  # a stranger's or a damaged file
        if sweep_folder.is_sweep(folder):
            over = [one["said"] for one in sweep_folder.plan(folder)["rounds"] if isinstance(one.get("said"), list)]
            return [str(words) for words in over[-1]] if over else None
    return None


def _asked(axis: Axis, ranges: Mapping[str, tuple[float, float, bool]]) -> Axis:
    """The axis over the range that was searched, not only what was drawn from it; as it is where values lie outside."""
    low, high, log = ranges.get(axis.name, (math.nan, math.nan, False))
    if axis.numbers is None or not low <= axis.low <= axis.high <= high < math.inf or (log and low <= 0):
        return axis
    return replace(axis, low=low, high=high, log=log)


def _axes(entries: Sequence[Entry]) -> list[Axis]:
    """The keys that differ but for seeds, the most important by experience first (S7)."""
    keys = [k for k in compare.varying([e.config for e in entries]) if k.rpartition(".")[2] not in ("seed", "threads")]
    made = []
    for key in keys:
        texts = [entry.config.get(key, "") for entry in entries]
        leader = f"choices.{key.partition('.')[0]}"
        if leader not in keys or key == leader or not _brought(texts, [e.config.get(leader, "") for e in entries]):
            made.append(_axis(key, texts))
    return sorted(made, key=lambda axis: next(k for k, first in enumerate(FIRST) if re.search(first, axis.name)))


def _brought(texts: Sequence[str], options: Sequence[str]) -> bool:
    """Whether a key has one value an option: the option brought it, nobody searched it."""
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
    """Return what distinguishes the best few from the rest, a sentence an axis: a value or a narrow range in common."""
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


def warnings(trials: Trials) -> list[str]:
    """Return what a reader should know before trusting the best trial, and what to try next where there is such."""
    return [*_at_borders(trials), *_noisy(trials), *_failures(trials)]


def judged(axis: Axis, trial: int) -> Any:
    """Return the edge of what was tried that a trial's value is near, `low` or `high`, or None (S3)."""
    if axis.numbers is None or math.isnan(axis.numbers[trial]):
        return None
    return edges.edge(axis.numbers[trial], axis.low, axis.high, log=axis.log)


def _at_borders(trials: Trials) -> list[str]:
    if trials.said is not None:
        return trials.said
    said = []
    for axis in trials.axes if trials.done else ():
        best = trials.best[0]
        side = judged(axis, best)
        if axis.numbers is None or side is None:
            continue
        most = 1.0 if axis.name.rpartition(".")[2] in SHARES else math.inf
        grown = edges.beyond(axis.low, axis.high, side, log=axis.log, most=most)
        if grown is None:
            continue
        scale = "log" if axis.log else "linear"
        said.append(
            f"border: the best {axis.name}, {axis.numbers[best]:.3g}, is within a tenth of the {side} edge of what was "
            f"tried ({axis.low:.3g} to {axis.high:.3g}, {scale} scale): better ones may lie beyond it; "
            f"try {_searched(axis, grown)}"
        )
    return said


def _searched(axis: Axis, grown: tuple[float, float]) -> str:
    """The words that search a grown range: a list for whole numbers, else an interval."""
    if axis.numbers is not None and all(v.is_integer() for v in axis.numbers if not math.isnan(v)):
        more = (
            [axis.high * 2, axis.high * 4] if grown[1] > axis.high else [max(axis.low // 4, 1), max(axis.low // 2, 1)]
        )
        return f"{axis.name}={','.join(dict.fromkeys(f'{v:.0f}' for v in more))}"
    word = f"interval({grown[0]:.3g},{grown[1]:.3g})"
    return f"'{axis.name}={f'tag(log,{word})' if axis.log else word}'"


def _noisy(trials: Trials) -> list[str]:
    """Whether the best settings, one seed each, differ by less than the error of an accuracy on so few images (S9)."""
    best, numbers = trials.best[:3], trials.settings
    repeated = any(numbers.count(numbers[k]) > 1 for k in best)
    if len(best) < 2 or trials.metric != "val_acc" or repeated:
        return []
    data = trials.entries[best[0]].result.get("data")
    images = data.get("val") if isinstance(data, dict) else None
    if not isinstance(images, int) or images < 1:
        return []
    top, last = (trials.scores[k] for k in (best[0], best[-1]))
    error = math.sqrt(max(top * (1 - top), 0.0) / images)
    if top - last >= error:
        return []
    return [
        f"noise: the best {len(best)} differ by {top - last:.4f} in val_acc, less than the standard error of an "
        f"accuracy of {top:.4f} on {images} images, {error:.4f}: repeat them with other seeds before you choose; "
        "try 'seed=range(1,6)', then dlrun compare --group-seeds"
    ]


def _failures(trials: Trials) -> list[str]:
    """The trials that came to nothing, by status and reason, with the range in which only they lie."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, entry in enumerate(trials.entries):
        if entry.result.get("status") in NOT_RANKED:
            groups.setdefault(_reason(entry.result), []).append(k)
    said, total = [], len(trials.entries)
    for (status, reason), which in sorted(groups.items(), key=lambda group: -len(group[1])):
        apart = [word for axis in trials.axes if (word := _apart(axis, which, trials.done))]
        parts = [f"{status}: {len(which)} of {total} trials", *([reason] if reason else []), *apart]
        said.append("; ".join(parts))
    for status in (Status.RUNNING, Status.INTERRUPTED):
        if count := sum(entry.result.get("status") == status for entry in trials.entries):
            said.append(f"{status}: {count} of {total} trials have no final score")
    return said


def _apart(axis: Axis, lost: Sequence[int], done: Sequence[int]) -> str:
    """Say where several failed trials lie beyond all that completed: that end of the axis is the cause."""
    if axis.numbers is None or len(lost) < 2:
        return ""
    bad, good = ([v for k in which if not math.isnan(v := axis.numbers[k])] for which in (lost, done))
    if not good or len(bad) < len(lost):
        return ""
    if min(bad) > max(good):
        return f"all have {axis.name} above {max(good):.3g}, and none above that completed"
    return f"all have {axis.name} below {min(good):.3g}, and none below that completed" if max(bad) < min(good) else ""


def _reason(result: Mapping[str, Any]) -> tuple[str, str]:
    """Status and reason without the numbers in which equal failures differ."""
    reason = str(result.get("reason") or "").split("\n")[0]
    reason = re.sub(r"(?<![\w.])\d[\d.]*(?:e[-+]?\d+)?(?![\w])", "…", reason.split(": try ")[0])
    return str(result.get("status")), reason[:160]
