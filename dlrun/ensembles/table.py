"""The table of an ensemble: every vote beside the best and the mean member (`dlrun ensemble`)."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlrun.analysis import errors
from dlrun.analysis import scores as shares
from dlrun.analysis.classification import agreement, auc, bootstrap, by_class, count, top
from dlrun.ensembles import folds
from dlrun.ensembles.members import SPLITS, Member, splits
from dlrun.ensembles.votes import FEWEST, VOTES, Vote, disagreement, fit_temperature, heated, scores, softmax
from dlrun.folders import ensemble as ensemble_folder
from dlrun.folders import reading
from dlrun.vocabulary import MEASURES, Status, is_accuracy, worst

__all__ = ["ORDERS", "Table", "as_text", "each", "further", "judge", "sizes", "store"]


ORDERS = 20  # random orders behind mean and std of the accuracy by number of members


@dataclass
class Table:
    """One row for the best member, the mean member and each vote; temperatures by vote (1: unchanged)."""

    rows: list[dict[str, Any]]
    temperatures: dict[str, float]
    votes: dict[str, dict[str, Vote]] = field(default_factory=dict)  # by vote, then split
    errors: dict[str, int] = field(default_factory=dict)  # on validation, by vote
    unfitted: int = 0  # members with too few errors on validation for a temperature


def judge(members: Sequence[Member], temperature: bool = False) -> Table:
    """Score every vote of the members, beside the best member on validation and the mean member (E5).

    Members are sorted best first, as by `select`. With `temperature` each row is rescaled by one fitted on
    validation, except those with fewer than FEWEST errors there.
    """
    weights = np.array([m.weight for m in members], dtype=float)
    there = splits(members)
    labels = {split: members[0].arrays[f"{split}_labels"] for split in there}
    logits = {split: np.stack([m.arrays[f"{split}_logits"] for m in members]) for split in there}
    p = {split: softmax(logits[split]) for split in there}
    table = Table([], {})

    def scored(votes: dict[str, Vote], name: str = "", *, ranks: bool = True) -> dict[str, float | None]:
        errors = int((votes["val"].classes != labels["val"]).sum()) if "val" in votes else 0
        enough = errors >= FEWEST
        heat = fit_temperature(votes["val"], labels["val"]) if temperature and enough else 1.0
        votes = {split: heated(vote, heat) for split, vote in votes.items()}
        if name:
            table.temperatures[name], table.votes[name], table.errors[name] = heat, votes, errors
        else:
            table.unfitted += not enough
        found: dict[str, float | None] = {}
        for split, vote in votes.items():
            found |= {f"{split}_{what}": value for what, value in scores(vote, labels[split]).items()}
        for split, vote in votes.items():
            found |= {f"{split}_{what}": value for what, value in further(vote, labels[split], ranks=ranks).items()}
        return found

    each = [scored({s: Vote(p[s][m], p[s][m].argmax(1)) for s in there}, ranks=not m) for m in range(len(members))]
    mean = {key: _mean([one[key] for one in each]) for key in each[0]}
    alone: dict[str, Any] = {f"{split}_disagreement": None for split in there}
    table.rows.append(
        {
            "vote": "best member" if "val" in there else "first member",
            "members": 1,
            **each[0],
            **_price(members[:1]),
            **alone,
        }
    )
    average = {key: _mean([_price([m])[key] for m in members]) for key in ("ms_per_image", "parameters")}
    table.rows.append({"vote": "mean member", "members": 1, **mean, **average, **alone})
    differ = {f"{split}_disagreement": disagreement(logits[split]) for split in there}
    for name, vote in VOTES.items():
        row = scored({s: vote(logits[s], p[s], weights) for s in there}, name)
        table.rows.append({"vote": name, "members": len(members), **row, **_price(members), **differ})
    return table


def further(vote: Vote, labels: Any, *, ranks: bool = True) -> dict[str, float | None]:
    """Return the scores of a vote beside those of `scores`; the area under the ROC curve, which sorts, with `ranks`."""
    found = agreement(count(labels, vote.classes, vote.probabilities.shape[1]))
    found |= {"top5_acc": top(vote.probabilities, labels, 5), "auc": auc(vote.probabilities, labels) if ranks else None}
    return {name: found[name] for name in MEASURES if name != "ece"}


def _price(members: Sequence[Member]) -> dict[str, Any]:
    """The cost of one image at inference: every member once, regardless of its weight."""
    ms, parameters = [m.ms for m in members], [m.parameters for m in members]
    return {
        "ms_per_image": sum(t for t in ms if t is not None) if None not in ms else None,
        "parameters": sum(n for n in parameters if n is not None) if None not in parameters else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean([v for v in values if v is not None]))


def sizes(members: Sequence[Member]) -> list[dict[str, float]]:
    """Return accuracy by number of members, voting by mean probability (E7), one row per number.

    `*_mean` and `*_std` are over 20 random orders of the members, `*_best_first` adds them best first. Each member
    counts by its weight.
    """
    draw, weights = np.random.default_rng(0), np.array([m.weight for m in members], dtype=float)
    count = len(members)
    orders = [np.arange(count)] + [draw.permutation(count) for _ in range(ORDERS if count > 1 else 0)]
    rows: list[dict[str, float]] = [{"members": n + 1} for n in range(count)]
    for split in splits(members):
        labels = members[0].arrays[f"{split}_labels"]
        p = [
            (softmax(m.arrays[f"{split}_logits"]) * w).astype(np.float32) for m, w in zip(members, weights, strict=True)
        ]
        found = np.zeros((len(orders), count))
        for k, order in enumerate(orders):
            total = np.zeros_like(p[0])
            for n, m in enumerate(order):
                total += p[m]
                found[k, n] = (total.argmax(1) == labels).mean()
        random = found[1:] if count > 1 else found
        for n, row in enumerate(rows):
            row[f"{split}_acc_mean"], row[f"{split}_acc_std"] = float(random[:, n].mean()), float(random[:, n].std())
            row[f"{split}_acc_best_first"] = float(found[0, n])
    return rows


def each(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return one row per member: its folder, weight, scores and cost."""
    rows = []
    for m in members:
        row: dict[str, Any] = {"member": m.name, "weight": m.weight}
        for split in splits(members):
            arrays = m.arrays if m.own is None else m.own
            p = softmax(arrays[f"{split}_logits"])
            found = scores(Vote(p, p.argmax(1)), arrays[f"{split}_labels"])
            row.update({f"{split}_{what}": value for what, value in found.items()})
        rows.append(row | _price([m]) | {"checks": worst([reading.stored(m.path).get("checks")])})
    return rows


def as_text(rows: Sequence[Mapping[str, Any]], images: Mapping[str, int] | None = None) -> str:
    """Return the table for reading, accuracies in per cent.

    With the numbers of `images` by split, those on fewer than 1,000 are shown ± half their interval. That of the mean
    member is the widest it may be: models that err alike have as much noise together as one has.
    """
    columns = {"vote": "", "members": "members"}
    for split in (split for split in SPLITS if f"{split}_acc" in rows[0]):
        columns |= {f"{split}_acc": f"{split} acc", f"{split}_loss": "log loss", f"{split}_ece": "calib. error"}
    columns |= {"test_disagreement": "disagreement", "ms_per_image": "ms/image", "parameters": "parameters"}
    counts = {f"{split}_acc": count for split, count in (images or {}).items()}
    lines = [list(columns.values())]
    for row in rows:
        lines.append([_cell(c, row.get(c), counts.get(c, 0)) for c in columns])
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if k == 0 else f"{cell:>{w}}" for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(column: str, value: Any, images: int = 0) -> str:
    if value is None:
        return "-"
    if is_accuracy(column) or column.endswith("disagreement"):
        spread = f" ± {100 * shares.margin(value, images):.2f}" if 0 < images < shares.FEW else ""
        return f"{100 * value:.2f} %{spread}"
    if column == "parameters":
        return f"{round(value):,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def store(path: Path, args: Namespace, members: Sequence[Member], table: Table) -> None:
    """Write the files of an ensemble: its members, scores, predictions, tables and page.

    Of `args` it reads vote, top and greedy.
    """
    from dlrun.reports import ensemble_report  # draws with matplotlib, which takes a while to import

    chosen = next(row for row in table.rows if row["vote"] == args.vote)
    listed = []
    for m in members:
        # relative to the ensemble, so that a folder with both can be moved
        entry = {"run": os.path.relpath(m.path.resolve(), path.resolve()), "weight": m.weight}
        listed.append(entry | ({"checkpoint": m.checkpoint} if m.checkpoint else {}))
    asked = {"members": listed, "vote": args.vote, "temperature": float(table.temperatures[args.vote])}
    asked["selection"] = f"top {args.top}" if args.top else "greedy" if args.greedy else "all"
    answers = {s: (members[0].arrays[f"{s}_labels"], vote.classes) for s, vote in table.votes[args.vote].items()}
    classes = [str(name) for name in members[0].data["classes"]]
    scores = {"status": Status.COMPLETED, **chosen, "data": dict(members[0].data), "votes": table.rows}
    scores["bootstrap"] = bootstrap(*answers["test"], len(classes), ("acc",))
    arrays = {}
    for split, vote in table.votes[args.vote].items():
        # the logarithm of a probability is a logit, so the same code reads runs and ensembles
        arrays[f"{split}_logits"] = np.log(vote.probabilities + 1e-12).astype(np.float32)
        arrays |= {f"{split}_{what}": members[0].arrays[f"{split}_{what}"] for what in ("labels", "ids")}
    curve = sizes(members)
    listing = each(members)
    scores["checks"] = worst(one.get("checks") for one in listing)
    tables = {"table": table.rows, "members": listing, "sizes": curve, "per_class": by_class(answers, classes)}
    if members[0].own is not None:
        tables["oof"] = folds.rows(members)
    ensemble_folder.write(path, asked, scores, arrays, tables)
    errors.write(path)
    ensemble_report.write(path)
