"""What the board shows of all runs: table, curves, sweeps, read again only where a file has changed (`dlrun board`).

What run folders hold is untrusted: a folder that cannot be read is listed with the reason. Nothing imports torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dlrun.analysis import compare, scores, sweeps
from dlrun.analysis.compare import Entry
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.disk import owned
from dlrun.reports import tables
from dlrun.vocabulary import FURTHER, NUMBERS, SCORES, Status, is_loss

__all__ = ["Runs", "content"]

CURVES = ("val_acc", "val_loss", "train_acc", "train_loss", "lr", "ema_val_loss", "ema_val_acc")
UNSETTLED = (Status.RUNNING, Status.INTERRUPTED)  # which of the two depends on the owner, not on the files
# epochs kept of a run, and of all runs together: a page of 1,000 runs stays below about 5 MB
POINTS, ALL_POINTS, FEWEST = 300, 100_000, 20
SETTINGS = 8  # columns of settings shown at first; the page offers the others
LONG = 300  # letters of a cell
AXES = 12  # of a sweep, the most important by experience first (S7)


@dataclass(frozen=True)
class Run:
    """One run as read, with the state of its files before they were read."""

    files: tuple[tuple[int, int], ...]
    owned: bool
    entry: Entry
    curves: dict[str, list[float | None]]  # of equal length; `epoch` and `time` (s) are among them
    trouble: str  # why there are no curves


@dataclass
class Runs:
    """All runs at or below a folder; `refresh` reads those that are new or have changed."""

    folder: Path
    found: dict[Path, Run] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _bad: dict[Path, tuple[tuple[tuple[int, int], ...], str]] = field(default_factory=dict)

    def refresh(self) -> bool:
        """Read what has changed; return whether anything has. Raises UserError if the folder is not there."""
        left_out: dict[str, str] = {}
        found: dict[Path, Run] = {}
        for path in reading.find([str(self.folder)], left_out):
            run = self._read(path)
            if isinstance(run, str):
                left_out[str(path)] = run
                continue
            found[path] = run
            if run.trouble:
                left_out[f"curves of {path}"] = run.trouble
        changed = left_out != self.left_out or found.keys() != self.found.keys()
        changed = changed or any(run is not self.found[path] for path, run in found.items())
        self.found, self.left_out = found, left_out
        return changed

    def _read(self, path: Path) -> Run | str:
        """A run, or why it cannot be shown."""
        files, before = reading.stamp(path), self.found.get(path)
        if before and before.files == files:
            unsettled = before.entry.result.get("status") in UNSETTLED
            if not unsettled or owned(path) == before.owned:
                return before
        elif path in self._bad and self._bad[path][0] == files:
            return self._bad[path][1]
        try:
            held = owned(path)
            entry = _entry(path)
            return Run(files, held, entry, *_curves(path, str(entry.result.get("monitor"))))
        except Exception as error:  # a damaged or a hostile file fails in any way
            self._bad[path] = (files, _reason(error))
            return self._bad[path][1]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:LONG]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _entry(path: Path) -> Entry:
    """A run as the comparison reads it. Raises anything if its files are damaged."""
    (entry,) = compare.read([str(path)])
    if not isinstance(entry.result.get("config"), dict):
        reading.config(path)
    for column in ("val_loss", "val_acc"):
        compare.table([entry], column)  # one that cannot stand in a table alone cannot stand beside others
    return entry


def _curves(path: Path, monitor: str) -> tuple[dict[str, list[float | None]], str]:
    """The columns of metrics.csv that are drawn, by name, and why there are none; `monitor` is one if it is a score."""
    try:
        rows = [row for row in reading.metrics(path) if (_number(row.get("epoch")) or 0) > 0]
    except Exception as error:  # no text, or no CSV
        return {}, _reason(error)
    columns: dict[str, list[float | None]] = {"epoch": [_number(row["epoch"]) for row in rows]}
    seconds, clock = 0.0, []
    for row in rows:
        seconds += sum(_number(row.get(name)) or 0.0 for name in ("train_seconds", "eval_seconds"))
        clock.append(_short(seconds))
    columns["time"] = clock
    for name in (*CURVES, *({monitor} & {*FURTHER})) if rows else ():
        values = [_short(_number(row.get(name))) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values
    return columns, ""


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _short(value: float | None) -> float | None:
    """Five digits, which no curve shows more of."""
    return None if value is None else float(f"{value:.5g}")


def content(runs: Runs, page_folder: Path) -> dict[str, Any]:
    """Return what the page of the runs holds, ready for JSON: rows best first; links relative to `page_folder`."""
    entries = [run.entry for run in runs.found.values()]
    searched, metric, lower = sweeps.searched([runs.folder], entries)
    rows = compare.table(searched, metric, lower=lower)
    paths = {str(path): path for path in runs.found}
    order = [paths[row["run"]] for row in rows]
    most = max(FEWEST, min(POINTS, ALL_POINTS // max(len(rows), 1)))
    return {
        "folder": str(runs.folder),
        "metric": metric,
        "lower": lower,
        "columns": _columns(rows, metric, lower),
        "links": [_link(path, page_folder) for path in order],
        "images": [_images(runs.found[path].entry) for path in order],
        "planned": [_number(runs.found[path].entry.config.get("trainer.epochs")) for path in order],
        "curves": [_drawn(runs.found[path], most, metric, lower) for path in order],
        "sweeps": _sweeps(runs, {path: k for k, path in enumerate(order)}, page_folder),
        "left_out": [[name, reason[:LONG]] for name, reason in runs.left_out.items()],
    }


def _images(entry: Entry) -> dict[str, int]:
    """The splits with so few images that their accuracies are shown with how many are right."""
    found = {split: scores.images(entry.result, split) for split in ("train", "val", "test")}
    return {split: count for split, count in found.items() if 0 < count < scores.FEW}


def _link(folder: Path, page_folder: Path) -> str:
    """The report of a run or a sweep as a relative address, which no folder's name can turn into another; or none."""
    report = reading.report(folder)
    if not report.is_file():
        return ""
    return "./" + quote(Path(os.path.relpath(report.absolute(), page_folder.absolute())).as_posix())


def _columns(rows: Sequence[Mapping[str, Any]], metric: str, lower: bool) -> list[dict[str, Any]]:
    """The table by column: its name, its kind, whether it is shown at first, its cells."""
    if not rows:
        return []
    informative, made = tables.informative(rows), []
    fixed = ["run", "status", metric, *(n for n in SCORES if n != metric)]
    last = [name for name in ("epochs", "best_epoch", "seconds", "checks", "verdicts") if name in rows[0]]
    settings = [name for name in rows[0] if name not in (*fixed, *last, *NUMBERS)]
    shown = set(settings[:SETTINGS]) | set(fixed) - {"test_loss"} | set(last) - {"best_epoch"}
    for name in (*fixed, *settings, *last):
        cells = [_cell(row.get(name)) for row in rows]
        numbers = [_number(cell) for cell in cells]
        numeric = name != "run" and all(n is not None or c == "" for n, c in zip(numbers, cells, strict=True))
        made.append(
            {
                "name": name,
                "numeric": numeric,
                "setting": name in settings,
                "score": name in SCORES or name == metric,
                "lower": lower if name == metric else is_loss(name),
                "shown": name in shown and (name in informative or name in ("run", "status", metric)),
                "cells": ["" if n is None else n for n in numbers] if numeric else cells,
            }
        )
    return made


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else ""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return "" if value is None else value
    return str(value)[:LONG]


def _drawn(run: Run, most: int, metric: str, lower: bool) -> dict[str, Any] | None:
    """The curves of a run in at most about `most` epochs, the first, the last and the best among them."""
    count = len(run.curves.get("epoch", ()))
    if not count:
        return None
    kept = set(range(count))
    if count > most:
        kept = {round(k * (count - 1) / (most - 1)) for k in range(most)}
        values = [(v if lower else -v, k) for k, v in enumerate(run.curves.get(metric, ())) if v is not None]
        kept |= {min(values)[1]} if values else set()
    which = sorted(kept)
    thin = {name: [values[k] for k in which] for name, values in run.curves.items()}
    return {"steps": _steps(run.entry), **thin}


def _steps(entry: Entry) -> int | None:
    """Batches of one epoch; a single sample left over joins the batch before it."""
    data = entry.result.get("data")
    samples = _number(data.get("train")) if isinstance(data, dict) else None
    batch = _number(entry.config.get("trainer.batch_size"))
    if not samples or not batch or batch < 1:
        return None
    return int(samples // batch + (samples % batch > 1)) or 1


def _sweeps(runs: Runs, places: Mapping[Path, int], page_folder: Path) -> list[dict[str, Any]]:
    """The sweeps among the runs, newest name first; all runs together if there is none."""
    folders: dict[Path, list[Entry]] = {}
    for path, run in runs.found.items():
        folders.setdefault(path.parent, []).append(run.entry)
    groups = {f: entries for f, entries in folders.items() if sweep_folder.is_sweep(f)}
    groups = groups or {runs.folder: [run.entry for run in runs.found.values()]}
    made = []
    for folder, entries in sorted(groups.items(), reverse=True):
        try:
            trials = sweeps.of(folder, entries)
        except Exception as error:  # a damaged sweep.yaml, or values that are not what their axis says
            runs.left_out[f"axes of {folder}"] = _reason(error)
            continue
        axes = [
            {
                "name": axis.name,
                "log": axis.log,
                "numbers": [_finite(v) for v in axis.numbers] if axis.numbers is not None else None,
                "texts": [text[:LONG] for text in axis.texts],
                "choices": [text[:LONG] for text in axis.choices],
                "range": [_finite(axis.low), _finite(axis.high)],
            }
            for axis in trials.axes[:AXES]
        ]
        if axes and len(entries) > 1:
            name = os.path.relpath(folder, runs.folder)
            made.append(
                {
                    "name": "all runs" if name == "." and not sweep_folder.is_sweep(folder) else name,
                    "link": _link(folder, page_folder),
                    "metric": trials.metric,
                    "lower": trials.lower,
                    "rows": [places[entry.path] for entry in trials.entries],
                    "scores": [_finite(score) for score in trials.scores],
                    "axes": axes,
                }
            )
    return made


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
