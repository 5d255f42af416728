"""The report of a sweep, one self-contained page: `dlrun report SWEEP` (S3, S7, S9, S10).

The best trials and what they share, warnings, pictures, means over seeds, and all trials in a table that a click sorts.
Written from the files of its runs alone. Nothing imports torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dlrun.analysis import importance, scores, seed_groups, steps, sweeps
from dlrun.analysis.importance import Importance
from dlrun.analysis.sweeps import Trials
from dlrun.analysis.warnings import warnings
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.reports import ladder_report, study_report, sweep_plots, tables
from dlrun.reports.axis_plots import called, wanted
from dlrun.reports.page import picture, section, table, text, write_page
from dlrun.vocabulary import NUMBERS, SCORES, Outcome, Status

__all__ = ["write"]

BEST = 3


def write(folder: Path, known: Trials | None = None, shares: Importance | str | None = None) -> Path:
    """Draw the pictures of the runs below a folder and write their page; return it.

    `known` trials and `shares` are not read and measured again. Raises UserError when there are no runs.
    """
    found = known or sweeps.read(folder)
    if not found.entries:
        raise UserError(f"{folder}: no runs here; expected a run, a sweep or a folder of them, such as outputs/latest")
    shares = importance.measure(found) if shares is None else shares
    pictures = sweep_plots.draw(folder, found, shares)
    said = importance.sentence(shares)
    why = f"<p class=soft>{text(said[:1].upper() + said[1:])}.</p>" if said else ""
    cards = "".join(f"<div class='card warn'>{_coded(sentence)}</div>" for sentence in warnings(found))
    parts = [
        _head(folder, found),
        section("Study", study_report.section(folder, found)),
        section("Ladder", ladder_report.section(folder, found)),
        section(f"The best {min(BEST, len(found.best))}" if len(found.best) > 1 else "The best", _best(folder, found)),
        section(
            "Warnings", cards or "<div class='card fine'>No warnings: no best value near an edge, no failures.</div>"
        ),
        section("Steps", _steps(folder, found)),
        section("Pictures", "".join(map(picture, pictures)) + why),
        section("Means over seeds", _seeds(found)),
        section("Every trial", _every(folder, found)),
    ]
    return write_page(folder, folder.resolve().name, parts)


def _head(folder: Path, found: Trials) -> str:
    states = Counter(str(row["status"]) or "empty" for row in found.rows)
    counted = ", ".join(f"{count} {text(status)}" for status, count in states.most_common())
    boxes: dict[str, str] = {}
    for column in dict.fromkeys((found.metric, "val_acc", "val_loss", "test_acc")) if found.best else ():
        best = found.entries[found.best[0]].result
        if isinstance(score := found.rows[found.best[0]][column], float):
            name = {"test_acc": "test accuracy"}.get(column, called(column))
            shown = scores.counted(column, score, best) if column in SCORES else f"{score:.4g}"
            boxes[f"{'its' if boxes else 'best'} {name}"] = shown
    boxes["trials"] = str(len(found.entries))
    boxes["hyperparameters varied"] = str(len(found.axes))
    numbers = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in boxes.items())
    by = f"best by {text(found.metric)}, {wanted(found)}"
    return (
        f"<header><h1>{escape(folder.resolve().name)}</h1><p class=soft>{counted}; {by}</p>"
        f"</header><div class=numbers>{numbers}</div>"
    )


def _best(folder: Path, found: Trials) -> str:
    """The best trials, one per setting, with the values of all axes, and what they share."""
    chosen = found.best[:BEST]
    if not chosen:
        return "<p>No trial has completed.</p>"
    others = (c for c in NUMBERS if c not in (*SCORES, "best_epoch"))
    there = [c for c in (*SCORES, *others) if any(found.rows[k][c] != "" for k in chosen)]
    columns = [found.metric, *(c for c in there if c != found.metric)]
    columns += ["checks"] * any(found.rows[k]["checks"] == Outcome.FAIL for k in chosen)  # with check.warn_only
    shown = [{"place": place, **_named(folder, found, k, columns)} for place, k in enumerate(chosen, 1)]
    said = sweeps.shared(found, BEST)
    common = "".join(f"<li>{text(line)}</li>" for line in said) or "<li>no value and no narrow range</li>"
    common = f"<p>What they have in common:</p><ul>{common}</ul>" if len(found.best) > BEST else ""
    repeated = len(set(found.settings)) < len(found.settings)
    how = (
        "<p class=soft>Ranked by the mean over seeds; each setting is shown with its best seed.</p>" if repeated else ""
    )
    return table(shown, links=_links(folder, found)) + _interval(found) + common + how


def _steps(folder: Path, found: Trials) -> str:
    """What each step of a search brought, as a list (S7)."""
    lines = steps.sentences(steps.gains(folder, found), found.metric)
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _interval(found: Trials) -> str:
    """What ± is, if a table has it."""
    note = tables.interval_note([(scores.images(e.result, "val"), 0) for e in found.entries])
    return f"<p class=soft>{text(note)}.</p>" if note else ""


def _named(folder: Path, found: Trials, trial: int, columns: Sequence[str]) -> dict[str, Any]:
    """A trial with its score first, then the hyperparameters, then the other columns."""
    first, *others = columns
    values = {axis.name: axis.texts[trial] for axis in found.axes}
    row = found.rows[trial]
    beside = scores.margins(found.entries[trial].result, row)
    numbers = {name: cell for c in others for name, cell in ((c, row[c]), *beside.get(c, ()))}
    label = _label(folder, found, trial)
    return {"run": label, first: row[first], **dict(beside.get(first, ())), **values, **numbers}


def _label(folder: Path, found: Trials, trial: int) -> str:
    return os.path.relpath(found.entries[trial].path, folder)


def _links(folder: Path, found: Trials) -> dict[str, str]:
    """The reports of the runs by label, as links relative to the folder of the sweep."""
    there = {}
    for trial, entry in enumerate(found.entries):
        if (page := reading.report(entry.path)).exists():
            there[_label(folder, found, trial)] = os.path.relpath(page, folder)
    return there


def _every(folder: Path, found: Trials) -> str:
    shown = tables.informative(found.rows)
    reasons = [str(entry.result.get("reason") or "") for entry in found.entries]
    failed = [row["status"] not in (Status.COMPLETED, Status.RUNNING) for row in found.rows]
    beside = [scores.margins(entry.result, row) for entry, row in zip(found.entries, found.rows, strict=True)]
    rows = [
        {name: cell for c in shown for name, cell in ((c, row[c]), *beside[k].get(c, ()))}
        | {"run": _label(folder, found, k)}
        | ({"reason": reasons[k] if failed[k] else ""} if any(failed) else {})
        for k, row in enumerate(found.rows)
    ]
    return table(rows, links=_links(folder, found), long=("reason",), tall=True)


def _seeds(found: Trials) -> str:
    """Settings with several seeds as mean ± std, and whether they differ from the best by more than noise (S9)."""
    if len(set(found.settings)) == len(found.settings):
        return ""
    rows = seed_groups.grouped(found.entries, found.metric, lower=found.lower)
    notes = "".join(f"<li>{text(line)}</li>" for line in seed_groups.note(rows, found.metric))
    results = {str(entry.path): entry.result for entry in found.entries}
    shown = [_spread(row, _completed(row, results)) for row in rows]
    columns = tables.informative(shown)
    return table([{c: row[c] for c in columns} for row in shown]) + f"<ul class=soft>{notes}</ul>"


def _completed(row: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The result of a completed run of a setting, empty if there is none."""
    found = (results[run] for run in json.loads(row["runs"]))
    return next((result for result in found if result.get("status") == Status.COMPLETED), {})


def _spread(row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a setting: a mean with its deviation, the score of a single seed with its counts."""
    shown: dict[str, Any] = {}
    for key, value in row.items():
        score = key.removesuffix("_mean")
        if score != key and value != "":
            spread = row[f"{score}_std"]
            # spaces that do not break keep a mean and its deviation on one line
            shown[score] = scores.counted(score, value, result)
            if spread != "":
                shown[score] = f"{value:.4f}\u00a0±\u00a0{spread:.4f}"
        elif score != key:
            shown[score] = ""
        elif key not in ("seeds", "folds", "runs", "test") and not key.endswith("_std"):
            shown[key] = value
    return shown


def _coded(sentence: str) -> str:
    """A warning, with the override to try as code."""
    said, tried, words = sentence.partition("; try ")
    return text(said) + (f"<p>To try next: <code>{text(words)}</code></p>" if tried else "")
