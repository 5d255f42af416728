"""Runs, sweeps and ensembles as a short list, and which of them may be deleted: `dlrun list`, `dlrun rm`.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlrun.analysis import compare, scores, sweeps
from dlrun.errors import UserError
from dlrun.folders import contents, ensemble, opener, reading, sweep
from dlrun.folders.contents import Found
from dlrun.folders.opener import Unreadable
from dlrun.folders.outputs import OUTPUTS
from dlrun.vocabulary import FAILED, Status

__all__ = ["Item", "beyond_best", "failed", "items", "newest", "users"]

# ended and cannot be resumed to anything better: what --keep-best may delete besides completed runs
ENDED = (Status.COMPLETED, Status.DIVERGED, Status.PRUNED, *FAILED)


class Item(NamedTuple):
    """One line of `dlrun list`: status and score in words, start in seconds since 1970, size in bytes."""

    found: Found
    name: str  # run.name, if the folder's name does not contain it
    status: str
    score: str
    started: float
    size: int


def items(paths: Sequence[str]) -> list[Item]:
    """Return the runs, sweeps and ensembles at or below `paths`, newest first; of a single sweep its trials.

    Raises UserError for a path that is not there.
    """
    found = contents.find(paths)
    if len(found) == len(paths) == 1 and found[0].kind == "sweep":
        found = [Found(path, "run") for path in contents.trials(found[0].path)]
    return sorted(map(_item, found), key=lambda item: item.started, reverse=True)


def _item(found: Found) -> Item:
    path, size, result = found.path, contents.size([found.path]), _result(found)
    status, score = str(result.get("status", "")), _score("val_acc", result)
    if found.kind == "sweep":
        status, score = _sweep(path)
    elif found.kind == "ensemble":
        status = f"ensemble of {result.get('members', '?')}"
    name = str(result.get("name") or "")
    return Item(found, "" if name in path.name else name, status, score, _started(found, result), size)


def _result(found: Found) -> dict[str, Any]:
    try:
        return reading.stored(found.path) if found.kind == "ensemble" else reading.result(found.path)
    except Unreadable:
        return {"status": Status.UNREADABLE}


def _score(column: str, result: Mapping[str, Any]) -> str:
    value = result.get(column)
    return scores.counted(column, value, result) if isinstance(value, (int, float)) else ""


def _sweep(path: Path) -> tuple[str, str]:
    """How many trials of a sweep are completed, and the score of the best."""
    entries, metric, lower = sweeps.searched([path], compare.read([str(path)]))
    rows = compare.table(entries, metric, lower=lower)
    done = sum(row["status"] == Status.COMPLETED for row in rows)
    results = {str(entry.path): entry.result for entry in entries}
    score = next((_score(metric, results[row["run"]]) for row in rows if compare.scored(row, metric)), "")
    return f"sweep, {done} of {len(rows)}", score if metric == "val_acc" or not score else f"{metric} {score}"


def _started(found: Found, result: Mapping[str, Any]) -> float:
    try:
        return time.mktime(time.strptime(str(result["started"])[:19], "%Y-%m-%dT%H:%M:%S"))
    except (KeyError, ValueError, OverflowError):
        return (found.path / contents.MARKERS[found.kind]).stat().st_mtime


def failed(paths: Sequence[str]) -> list[Found]:
    """Return the single runs at or below `paths` that failed, diverged, or were stopped by a check."""
    return [found for found, entry in _runs(paths) if entry.result.get("status") in (*FAILED, Status.DIVERGED)]


def beyond_best(paths: Sequence[str], count: int) -> list[Found]:
    """Return the single runs at or below `paths` that have ended, without the best `count` of each dataset."""
    by_data: dict[tuple[str, ...], list[tuple[Found, compare.Entry]]] = {}
    for found, entry in _runs(paths):
        keys = ("choices.dataset", *(f"dataset.{name}" for name in ("root", "path", "x", "csv")))
        data = tuple(entry.config.get(key, "") for key in keys)
        by_data.setdefault(data, []).append((found, entry))
    dropped = []
    for group in by_data.values():
        entries = [entry for _, entry in group]
        column = compare.metric(entries)
        scored = [row["run"] for row in compare.table(entries, column) if compare.scored(row, column)]
        kept = set(scored[:count])
        ended = [found for found, entry in group if entry.result.get("status") in ENDED]
        dropped += [found for found in ended if str(found.path) not in kept]
    return dropped


def _runs(paths: Sequence[str]) -> list[tuple[Found, compare.Entry]]:
    """The single runs at or below `paths`: trials belong to their sweep, whose table and study would miss them."""
    return [
        (found, compare.read([str(found.path)])[0])
        for found in contents.find(paths)
        if found.kind == "run" and not sweep.is_sweep(found.path.absolute().parent)
    ]


def newest() -> Path | None:
    """Return the newest completed run below outputs, of a sweep its best trial; None if there is none."""
    results = [(found, _result(found)) for found in (contents.find([str(OUTPUTS)]) if OUTPUTS.is_dir() else [])]
    for (path, kind), result in sorted(results, key=lambda one: _started(*one), reverse=True):
        if kind == "run" and result.get("status") == Status.COMPLETED:
            return path
        if kind == "sweep":
            trials = sweeps.read(path)
            if trials.best:
                return trials.entries[trials.best[0]].path
    return None


def users(targets: Sequence[Found]) -> dict[Path, str]:
    """Return who needs what is to be deleted: by folder, the ensemble with this member or the student of this teacher.

    Looks below outputs, in the working folder and beside the targets; what is to be deleted itself does not count.
    """
    gone = {found.path.resolve(): found.path for found in targets}
    used: dict[Path, str] = {}
    for found in _places(targets):
        here = found.path.resolve()
        if gone.keys() & {here, *here.parents}:
            continue
        for needed, word in _needs(found):
            for path in (needed, *needed.parents):
                if path in gone:
                    used.setdefault(gone[path], f"{word} {found.path}")
    return used


def _places(targets: Sequence[Found]) -> Iterable[Found]:
    beside = {Path(), *(found.path.absolute().parent for found in targets)}
    near = [path for folder in beside for path in sorted(folder.iterdir()) if not path.is_symlink()]
    seen: dict[Path, Found] = {path.resolve(): Found(path, what) for path in near if (what := contents.kind(path))}
    for found in contents.find([str(OUTPUTS)]) if OUTPUTS.is_dir() else []:
        seen.setdefault(found.path.resolve(), found)
    return list(seen.values())


def _needs(found: Found) -> list[tuple[Path, str]]:
    """The runs that a folder depends on: members, a teacher."""
    if found.kind == "ensemble":
        try:
            members = ensemble.read(found.path)["members"]
        except UserError:
            return []
        return [((found.path / str(member["run"])).resolve(), "a member of the ensemble") for member in members]
    inside = contents.trials(found.path) if found.kind == "sweep" else [found.path]
    teachers = {teacher for path in inside if (teacher := _teacher(path))}
    return [(Path(os.path.expanduser(teacher)).resolve(), "the teacher of") for teacher in sorted(teachers)]


def _teacher(path: Path) -> str:
    try:
        if b"teacher:" not in opener.read(path, "config.yaml"):  # parsing it takes a hundred times as long
            return ""
        objective = reading.config(path).get("objective")
    except (OSError, UserError):
        return ""
    return str(objective.get("teacher") or "") if isinstance(objective, dict) else ""
