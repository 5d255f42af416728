"""Runs side by side: `dlrun compare [PATH…]` tabulates the settings in which they differ and their scores (S10).

Reads one file per run, result.json, and never imports torch.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from dlrun.analysis.finding import summary
from dlrun.analysis.flat import Known, flat, uncollected
from dlrun.analysis.ranking import FOLD, Scored, Setting, by_target, compared, data_of, further, ranked, repeats
from dlrun.errors import UserError
from dlrun.folders import ensemble as ensemble_folder
from dlrun.folders import reading
from dlrun.folders.opener import Unreadable
from dlrun.vocabulary import FAILED, LOGGED, NOT_RANKED, NUMBERS, Status, lower_is_better, place

__all__ = [
    "DERIVED",
    "IGNORED",
    "Entry",
    "ensembles",
    "expect_columns",
    "folded",
    "keys",
    "metric",
    "read",
    "rows",
    "scored",
]
__all__ += ["settings", "shown", "sorted_by", "table", "typed", "varying"]

# settings that do not affect what a run learns: its folder, search, checks and report
IGNORED = (
    *("run.", "sweep.", "search.", "choices.search", "hydra", "choices.hydra", "trust", "choices.experiment"),
    *("check.", "choices.check", "trainer.report"),
)
# a key whose default refers to another, and that other: it repeats what somebody set there
DERIVED = {
    "scheduler.epochs": "trainer.epochs",
    "scheduler.tau": "trainer.epochs",
    "model.dropout": "regularizer.dropout",
    "loss.label_smoothing": "regularizer.label_smoothing",
    "search.metric": "trainer.monitor",
}
ABOUT = ("name", "tags", "note")  # what a person says of a run
UNFINISHED = (Status.RUNNING, Status.INTERRUPTED, Status.PAUSED, Status.PRUNED, Status.FAILED)


class Entry(NamedTuple):
    """A run in a comparison: its folder, result.json, and its config by dotted key, values as text."""

    path: Path
    result: Mapping[str, Any]
    config: Mapping[str, str]


def read(paths: Sequence[str]) -> list[Entry]:
    """Return the runs at or below `paths`; one without a readable result.json has its config alone.

    Raises UserError for a path that is not there.
    """
    known: Known = {}
    with uncollected():
        return [_entry(path, known) for path in reading.find(paths)]


def ensembles(paths: Sequence[str]) -> list[Entry]:
    """Return the ensembles at or below `paths`, with the scores of the vote that each has stored."""
    found = []
    for path in ensemble_folder.find(paths):
        try:
            result = reading.stored(path)
        except Unreadable as error:
            found.append(_unreadable(path, error))
            continue
        named = f"{result.get('vote')} of {result.get('members')}"
        # the runs decide which column is compared, so an ensemble must not prevent val_loss
        found.append(Entry(path, {**result, "monitor": "val_loss"}, {"choices.model": named}))
    return found


def _unreadable(path: Path, error: Unreadable) -> Entry:
    return Entry(path, {"status": Status.UNREADABLE, "reason": str(error)}, {})


def _entry(path: Path, known: Known) -> Entry:
    try:
        result = reading.result(path)
    except Unreadable as error:
        return _unreadable(path, error)
    config = result.get("config")
    if result.get("status") in UNFINISHED and result.get("best_epoch") != result.get("epochs"):
        result |= _at_best(path, result)
    return Entry(path, result, flat(config if isinstance(config, dict) else _config(path), known))


def _at_best(path: Path, result: Mapping[str, Any]) -> dict[str, float]:
    """The scores of the best epoch of a run that has not completed: result.json holds those of its last epoch."""
    with contextlib.suppress(UserError, ValueError, TypeError, csv.Error):
        best = str(result.get("best_epoch"))
        row = next((row for row in reading.metrics(path) if row.get("epoch") == best), {})
        kinds = [{c: float(row[f"{kind}{c}"]) for c in LOGGED if row.get(f"{kind}{c}")} for kind in ("", "ema_")
                 if row.get(f"{kind}val_loss") and row.get(f"{kind}val_acc")]  # fmt: skip
        monitor = str(result.get("monitor"))
        column = monitor if monitor in LOGGED else "val_acc"
        lower = lower_is_better(column)
        return min(kinds, key=lambda s: place(s.get(column), s["val_loss"], 0, lower=lower), default={})
    return {}


def rows(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per run, best first: its folder, status, the config keys that differ, its scores."""
    return table(read(paths))


def table(
    entries: Sequence[Entry], by: str = "", *, lower: bool | None = None, also: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return one row per entry, best first `by` a score, failed ones last, with the columns of `rows`.

    The completed runs come by their settings, as in `settings`. `also` are settings to include that do not differ, and
    further scores.

    `by` may be any number of the results; without `lower` its name decides whether a lower value is better.
    """
    differing = varying([entry.config for entry in entries], typed(entries))
    for name in also:
        key = next((k for k in (f"choices.{name}", name) if any(k in entry.config for entry in entries)), None)
        differing += [key] if key and key not in differing else []
    columns = [(key.removeprefix("choices."), key) for key in differing]
    more = [*further(by, also), *by_target((entry.result for entry in entries), also)]
    named = [key for key in ABOUT if any(entry.result.get(key) for entry in entries)]
    unreadable = any(entry.result.get("status") == Status.UNREADABLE for entry in entries)
    made = []
    for path, result, config in entries:
        row: dict[str, Any] = {
            "run": str(path),
            "status": result.get("status", ""),
            "checks": result.get("checks", ""),
            "verdicts": _names(result.get("verdicts")),
        }
        row.update({key: _about(result.get(key)) for key in named})
        row.update([(name, config.get(key, "")) for name, key in columns])
        row.update([(key, result.get(key, "")) for key in NUMBERS])
        for key in more:
            row.setdefault(key, "" if result.get(key) is None else result[key])
        if unreadable:
            row["reason"] = result["reason"] if result.get("status") == Status.UNREADABLE else ""
        made.append(row)
    column = by or metric(entries)
    down = lower_is_better(column) if lower is None else lower
    first = [k for setting in settings(entries, column, differing, lower=down) for k in setting.runs]
    others = sorted({*range(len(made))} - {*first}, key=lambda k: _rank(made[k], column, down))
    return [made[k] for k in (*first, *others)]


def folded(entry: Entry) -> bool:
    """Whether a run is on a fold of a cross-validation."""
    return entry.config.get("dataset.folds", "0") != "0"


def settings(entries: Sequence[Entry], column: str, keys: Sequence[str], *, lower: bool) -> list[Setting]:
    """Return the settings of the completed runs with their places in `entries`, best first.

    Runs are of one setting if they differ in none of these `keys` but in seeds and folds, and are on the same images.
    """
    keys = [key for key in keys if not repeats(key)]
    done = [k for k, entry in enumerate(entries) if scored(entry.result, column)]
    runs = []
    for path, result, config in (entries[k] for k in done):
        folds = data_of(result, FOLD)
        seed = config.get("seed", "") + (f" fold {config.get(FOLD)}" if folds else "")
        setting = (folds or data_of(result), *map(config.get, keys))
        runs.append(Scored(setting, seed, float(result[column]), result.get("val_loss"), str(path)))
    return [s._replace(runs=[done[k] for k in s.runs]) for s in ranked(runs, lower=lower)]


def metric(entries: Sequence[Entry]) -> str:
    """Return the column by which runs are compared: what all monitored, if a loss or a further score; else val_acc."""
    return compared({str(entry.result.get("monitor", "")) for entry in entries})


def scored(row: Mapping[str, Any], column: str) -> bool:
    """Whether the score of a run or row counts: only of completed runs, and only if it is finite."""
    return row.get("status") == Status.COMPLETED and _finite(row.get(column))


def sorted_by(rows: Sequence[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Return the rows sorted by a column: scores best first, all else upwards; `-column` reverses, empty cells last.

    Raises UserError for a column that does not exist.
    """
    name = column.removeprefix("-")
    key = _column(rows, name, f"--sort={column}")
    best_first = not lower_is_better(name)
    there: list[dict[str, Any]] = []
    empty: list[dict[str, Any]] = []
    for row in rows:
        # a value that is not itself is nan
        (empty if row[key] in ("", None) or row[key] != row[key] else there).append(row)
    there.sort(key=lambda row: _order(row[key]), reverse=best_first != column.startswith("-"))
    return there + empty


def expect_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raise UserError for the first name that is no column of the rows."""
    for name in names:
        _column(rows, name, f"--columns {name}")


def _column(rows: Sequence[Mapping[str, Any]], name: str, typed: str) -> str:
    """The key of a column; of a score over seeds that of its mean."""
    names = list(rows[0]) if rows else []
    key = f"{name}_mean" if f"{name}_mean" in names else name
    if key not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise UserError(f"{typed}: no such column; {hint}")
    return key


def _order(value: Any) -> tuple[float, str]:
    """Numbers by size, also those stored as text, before words."""
    try:
        return (float(value), "")
    except (TypeError, ValueError):
        return (math.inf, str(value))


def _config(path: Path) -> dict[str, Any]:
    try:
        return reading.config(path)  # a run that has just started, or died at once, has nothing else
    except UserError:
        return {}


def _names(found: Any) -> str:
    try:
        return summary(found) if found is not None else ""
    except (TypeError, KeyError, AttributeError):
        return ""  # not written by dlrun


def _about(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _rank(row: Mapping[str, Any], column: str, lower: bool) -> tuple[bool, tuple[bool, float, float, str]]:
    found = place(row[column], row.get("val_loss"), row["run"], lower=lower)
    return (found[0] or row["status"] in NOT_RANKED, found)


def varying(
    configs: Sequence[Mapping[str, str]], asked: Collection[str] = (), among: Collection[str] | None = None
) -> list[str]:
    """Return the keys with more than one value among the runs that have them, options before the rest.

    Of keys that repeat each other the first is kept: one of those `asked` for, else the first of the config.
    """
    several: dict[str, list[str | None]] = {}
    if among is None:  # ten thousand configs have few sets of keys
        among = dict.fromkeys(chain.from_iterable(dict.fromkeys(map(tuple, configs))))
    for key in among:
        if not key.startswith(IGNORED):
            values = _values(configs, key)
            if len(set(values) - {None}) > 1:
                several[key] = values
    kept: list[str] = []
    order = sorted(several, key=lambda key: (not key.startswith("choices."), key in DERIVED, key not in asked))
    for key in order:
        # an option that differs brings its own _target_ along
        implied = key.endswith("._target_") and f"choices.{key.split('.')[0]}" in several
        leaders = [k for k in kept if _last(k) == _last(key) or DERIVED.get(key) == k]
        if not implied and not any(_follows(several[key], several[k]) for k in leaders):
            kept.append(key)
    return kept


def _values(configs: Sequence[Mapping[str, str]], key: str) -> list[str | None]:
    try:
        return list(map(itemgetter(key), configs))  # all have it: twice as fast
    except KeyError:
        return [config.get(key) for config in configs]


def typed(entries: Sequence[Entry]) -> set[str]:
    """Return the keys that somebody typed, or a preset changed; of a run older than that record all its keys."""
    found: set[str] = set()
    seen: set[str] = set()
    for _, result, config in entries:
        words, changed = result.get("typed"), result.get("changed")
        if not isinstance(words, list):
            found.update(config)
            continue
        if not seen.issuperset(map(str, words)):  # most words are those of runs before
            for word in map(str, words):
                key = word.partition("=")[0].lstrip("+~")
                found.add(option if (option := f"choices.{key}") in config else key)
                seen.add(word)
        found.update(changed if isinstance(changed, dict) else ())
    return found


def keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of a config that the columns of a table may show."""
    return [key for name in (rows[0] if rows else ()) for key in (f"choices.{name}", name)]


def shown(entries: Sequence[Entry], among: Collection[str] | None = None) -> list[str]:
    """Return the settings that a terminal shows: typed, and different among the runs that began to train.

    Only those `among` some keys, as of `keys`, are considered: faster for ten thousand runs.
    """
    began = [e for e in entries if e.result.get("status") not in FAILED or e.result.get("epochs")]
    asked = typed(began)
    return [key.removeprefix("choices.") for key in varying([e.config for e in began], asked, among) if key in asked]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _follows(values: list[str | None], leader: list[str | None]) -> bool:
    """Whether a key such as scheduler.epochs only repeats another of the same name, such as trainer.epochs."""
    return all(mine is None or mine == theirs for mine, theirs in zip(values, leader, strict=True))
