"""The report of an ensemble, one self-contained page: `dlrun report ENSEMBLE`, the end of `dlrun ensemble` (E5, E7).

Every vote beside the best and the mean member, accuracy by number of members, confusion, and the members with links to
their own pages. Written from the files of the ensemble alone, which are untrusted. Nothing imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis import scores
from dlrun.folders import ensemble, reading
from dlrun.reports import run_plots
from dlrun.reports.figures import BLUE, HALF, ORANGE, SHARP, STYLE, canvas, number, save
from dlrun.reports.page import attempted, card, is_number, pictures, table, text, write_page
from dlrun.reports.score_tables import scores_table
from dlrun.vocabulary import is_accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write"]

SPLITS = {"val": "validation", "test": "test"}
# of table.csv and members.csv, in the order in which they are read
COLUMNS: tuple[str, ...] = ("val_acc", "val_loss", "val_ece", "test_acc", "test_loss", "test_ece")
COLUMNS += ("test_disagreement", "ms_per_image", "parameters")
CAPTIONS = {
    **{
        f"members_{split}": f"Accuracy on {name} by number of members that vote by mean probability. Good rises, then "
        "flattens: members beyond that point only cost time."
        for split, name in SPLITS.items()
    },
    **{
        f"confusion_{split}": f"Confusion of the vote on {name}, in % of each true class."
        for split, name in SPLITS.items()
    },
}


def write(folder: Path) -> Path:
    """Draw the pictures of an ensemble and write its page; return it. Raises UserError for an unreadable ensemble."""
    asked, result = ensemble.read(folder), reading.stored(folder)
    parts = [
        _head(folder, asked, result),
        attempted("Is the vote better?", lambda: _gain(asked, ensemble.rows(folder, "table"), result)),
        attempted("Votes", lambda: _votes(asked, ensemble.rows(folder, "table"), result)),
        attempted("Scores", lambda: scores_table(result)),
        attempted("Pictures", lambda: pictures(_draw(folder), CAPTIONS)),
        attempted("Most confused classes", lambda: table(run_plots.confused(folder))),
        attempted("Scores by class", lambda: table(reading.per_class(folder), tall=True)),
        attempted("Members", lambda: _members(folder, asked, result)),
    ]
    return write_page(folder, f"{folder.resolve().name}: ensemble", parts)


def _head(folder: Path, asked: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    boxes = {
        "test accuracy": _accuracy(result, "test_acc"),
        "test log loss": _decimals(result.get("test_loss")),
        "validation accuracy": _accuracy(result, "val_acc"),
        "validation log loss": _decimals(result.get("val_loss")),
        "members": str(len(asked["members"])),
    }
    shown = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in boxes.items() if value)
    how = f"vote: {text(asked.get('vote', '?'))}; members chosen: {text(asked.get('selection', '?'))}"
    heat = asked.get("temperature")
    how += f"; temperature {heat:.3g}" if isinstance(heat, float) and heat != 1 else ""
    return (
        f"<header><h1>{escape(folder.resolve().name)}</h1><p class=soft>an ensemble; {how}</p></header>"
        f"<div class=numbers>{shown}</div>"
    )


def _accuracy(result: Mapping[str, Any], column: str) -> str:
    value = result.get(column)
    return scores.counted(column, value, result) if isinstance(value, float) else ""


def _decimals(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def _gain(asked: Mapping[str, Any], votes: Sequence[Mapping[str, str]], result: Mapping[str, Any]) -> str:
    """The vote against the best member, in images: a difference of one or two is no gain."""
    found = {row.get("vote"): row for row in votes}
    chosen, best = found.get(str(asked.get("vote"))), found.get("best member")
    if chosen is None or best is None:
        return ""
    said, gained = [], 0
    data = result.get("data")
    for split, name in SPLITS.items():
        images = data.get(split) if isinstance(data, dict) else None
        column = f"{split}_acc"
        if not isinstance(images, int) or not (is_number(chosen.get(column)) and is_number(best.get(column))):
            continue
        vote, single = (round(number(row, column, "table.csv") * images) for row in (chosen, best))
        said.append(f"{name}: {vote:,} of {images:,} images right, the best member {single:,} ({vote - single:+,})")
        gained += vote - single
    return card("; ".join(said), "fine" if gained > 0 else "warn") if said else ""


def _votes(asked: Mapping[str, Any], votes: Sequence[Mapping[str, str]], result: Mapping[str, Any]) -> str:
    rows = []
    for row in votes:
        stored = " (stored)" if row.get("vote") == asked.get("vote") else ""
        cells = scores.beside(result, {c: _cell(row, c) for c in COLUMNS})
        rows.append({"vote": f"{row.get('vote', '')}{stored}"} | cells)
    words = "±: half a Wilson 95 % interval; loss: log loss; ece: expected calibration error; disagreement: share of "
    words += "images on which two members differ"
    return table(rows) + f"<p class=soft>{words}.</p>"


def _cell(row: Mapping[str, str], column: str) -> str:
    value = row.get(column) or ""
    if not is_number(value):
        return value
    if is_accuracy(column) or column.endswith("disagreement"):
        return f"{float(value):.4f}"
    return f"{float(value):.0f}" if column == "parameters" else f"{float(value):.4g}"


def _members(folder: Path, asked: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The members with their scores, and links to the pages of those that have one."""
    links, rows = {}, []
    listed = ensemble.rows(folder, "members")
    for k, member in enumerate(asked["members"]):
        where = Path(str(member["run"]))
        name = "/".join(where.parts[-2:]) + (f", {member['checkpoint']}" if member.get("checkpoint") else "")
        page = reading.report(folder / where)
        if page.exists():
            links[name] = os.path.relpath(page.resolve(), folder.resolve())
        found = listed[k] if k < len(listed) else {}
        cells = scores.beside(result, {c: _cell(found, c) for c in COLUMNS})
        rows.append({"run": name, "weight": str(member.get("weight", ""))} | cells)
    kept = [c for c in rows[0] if any(row[c] for row in rows)]
    return table([{c: row[c] for c in kept} for row in rows], links=links)


def _draw(folder: Path) -> dict[str, Path | str]:
    """Draw accuracy by number of members, and the confusion of the vote; return the files by name."""
    from matplotlib import rc_context

    found: dict[str, Path | str] = {}
    sizes = ensemble.rows(folder, "sizes")
    with rc_context(STYLE):
        figures = {f"members_{split}": _by_size(sizes, split) for split in SPLITS}
    figures |= {f"confusion_{split}": run_plots.confusion(folder, split=split) for split in SPLITS}
    for name, figure in figures.items():
        if isinstance(figure, str):
            found[name] = figure
        elif figure is not None:
            found[name] = save(folder, name, figure, SHARP)
    return found


def _by_size(rows: Sequence[Mapping[str, str]], split: str) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    if len(rows) < 2 or f"{split}_acc_mean" not in rows[0]:
        return None
    mean, std, first = (
        np.array([100 * number(row, f"{split}_acc_{what}", "sizes.csv") for row in rows])
        for what in ("mean", "std", "best_first")
    )
    count = [number(row, "members", "sizes.csv") for row in rows]
    figure = canvas(3.2, width=HALF)
    axes = figure.add_subplot()
    axes.plot(count, mean, "o-", color=BLUE, ms=3, label="mean of random orders, ± std")
    axes.fill_between(count, mean - std, mean + std, color=BLUE, alpha=0.15, lw=0)
    axes.plot(count, first, "s--", color=ORANGE, ms=3, lw=1.2, label="best on validation first")
    axes.set(title=f"Accuracy on {SPLITS[split]}", xlabel="members", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=8)
    return figure
