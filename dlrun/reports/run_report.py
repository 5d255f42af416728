"""The report of a run, one self-contained page: `dlrun report RUN`, the end of `dlrun train`.

Written from the files alone, pictures included, so an old run gets a new report. The files are untrusted: every text is
escaped, and the page may not load anything. Nothing imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from dlrun.analysis import scores, verdicts
from dlrun.config.defaults import leaves
from dlrun.folders import reading
from dlrun.reports import galleries, run_plots
from dlrun.reports.page import attempted, pictures, section, table, text, tone, write_page
from dlrun.reports.score_tables import by_target, scores_table

__all__ = ["write"]


def write(run_folder: Path) -> Path:
    """Draw the pictures of a run and write its report; return the page."""
    result = reading.result(run_folder)
    config = result.get("config") or reading.config(run_folder)
    choices = config.get("choices") or {}
    title = " ".join(str(choices.get(group) or "") for group in ("dataset", "model")).strip() or run_folder.name
    kind, title = title, str(result.get("name") or title)
    drawn = run_plots.draw(run_folder)
    drawn.pop("errors", None)  # the page has the images themselves
    result_of = {name: drawn.pop(name) for name in run_plots.RESULT if name in drawn}
    parts = [
        _head(title, "" if title == kind else f"{kind}; ", run_folder, result),
        attempted("Verdicts", lambda: _verdicts(result, run_folder, config)),
        section("Result", pictures(result_of, run_plots.CAPTIONS)),
        attempted("Scores", lambda: scores_table(result)),
        attempted("Scores by target", lambda: by_target(result)),
        attempted("Most confused classes", lambda: table(run_plots.confused(run_folder))),
        attempted("Scores by class", lambda: table(reading.per_class(run_folder), tall=True)),
        attempted("Worst validation errors", lambda: galleries.worst(run_folder)),
        attempted("Weights near 0 by layer", lambda: _sparsity(result)),
        section("Training in detail", pictures(drawn, run_plots.CAPTIONS)),
        attempted("Checks before training", lambda: table(reading.checks(run_folder), long=("message",))),
        attempted("Config", lambda: _config(config, result.get("changed"))),
        attempted("Every epoch", lambda: _epochs(result, run_folder)),
        section("The rest of result.json", _rest(result)),
    ]
    return write_page(run_folder, f"{title}: {result.get('status', '')}", parts)


def _head(title: str, kind: str, folder: Path, result: Mapping[str, Any]) -> str:
    status = str(result.get("status", "unknown"))
    boxes_of = {
        "test accuracy": _accuracy(result, "test_acc"),
        "test loss": _decimals(result.get("test_loss"), 4),
        "validation accuracy": _accuracy(result, "val_acc"),
        "validation loss": _decimals(result.get("val_loss"), 4),
        "best epoch": f"{text(result['best_epoch'])} of {text(result.get('epochs', '?'))}"
        if "best_epoch" in result
        else "",
        "seconds of training": _decimals(result.get("seconds"), 1),
        "weights near 0": f"{result['sparsity']:.1%}" if isinstance(result.get("sparsity"), float) else "",
        "parameters": f"{result['parameters']:,}" if isinstance(result.get("parameters"), int) else "",
    }
    boxes = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in boxes_of.items() if value)
    reason = f": {text(result['reason'])}" if result.get("reason") else ""
    origin = f"{kind}{folder.resolve().name}, started {result.get('started', 'at an unknown time')}"
    return (
        f"<header><h1>{escape(title)}</h1><p><span class='badge {tone(status)}'>{escape(status)}</span>{reason}</p>"
        f"<p class=soft>{escape(origin)}{_about(result)}</p></header><div class=numbers>{boxes}</div>"
    )


def _about(result: Mapping[str, Any]) -> str:
    """The tags and the note of a run."""
    tags, note = result.get("tags"), result.get("note")
    said = ", ".join(map(text, tags)) if isinstance(tags, list) else ""
    return (f"; tags: {said}" if said else "") + (f"</p><p>{text(note)}" if note else "")


def _accuracy(result: Mapping[str, Any], column: str) -> str:
    value = result.get(column)
    return scores.counted(column, value, result) if isinstance(value, (int, float)) else ""


def _decimals(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else ""


def _epochs(result: Mapping[str, Any], folder: Path) -> str:
    return table([scores.beside(result, row) for row in reading.metrics(folder)], tall=True)


def _verdicts(result: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> str:
    """The findings that the run has stored, or those of today for a run that has not."""
    found = result.get("verdicts")
    if found is None and (metrics := reading.metrics(folder)):
        judged = verdicts.judge(
            metrics,
            reading.layers(folder),
            config,
            result.get("data", {}),
            str(result.get("status")),
            bool(result.get("train_acc_valid", True)),
            sparsity=result.get("sparsity"),
        )
        found = [finding.record() for finding in judged]
    if found is None:
        return ""
    cards = []
    for one in found:
        kind = "stop" if one.get("severity") == "stop" else "warn"
        fix = f"<p>To try next: <code>{text(one['try'])}</code></p>" if one.get("try") else ""
        cards.append(f"<div class='card {kind}'>{text(one.get('sentence', ''))}{fix}</div>")
    return "".join(cards) or "<div class='card fine'>No findings: a healthy run.</div>"


def _sparsity(result: Mapping[str, Any]) -> str:
    """The share of weights near 0 by layer, of a run with L1 or a pruned one (R4)."""
    shares = result.get("sparsity_by_layer") or {}
    note = "<p class=soft>Weights of at most a thousandth of the largest of their layer.</p>"
    return table([{"layer": k, "share": v} for k, v in shares.items()], tall=True) + note if shares else ""


def _config(config: Mapping[str, Any], changed: Any) -> str:
    import yaml

    whole = f"<pre>{escape(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))}</pre>"
    if not isinstance(changed, Mapping):  # an older dlrun stored no defaults, and those of today may differ
        return whole
    rows = [
        {"key": key.removeprefix("choices."), "value": _plain(value), "default": _plain(changed[key])}
        for key, value in leaves(config)
        if key in changed and changed[key] != value and not key.startswith(("run.", "sweep."))
    ]
    differs = table(rows) or "<p>Everything is at its default.</p>"
    return f"{differs}<details><summary>All of it</summary>{whole}</details>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _rest(result: Mapping[str, Any]) -> str:
    known = {"config", "changed", "verdicts", "status", "reason", "name", "tags", "note"}
    text = json.dumps({k: v for k, v in result.items() if k not in known}, indent=1, ensure_ascii=False)
    return f"<details><summary>Versions, data, origin</summary><pre>{escape(text)}</pre></details>"
