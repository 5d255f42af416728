"""Members of an ensemble, picked on validation, and the table that says what they are worth (`dlrun ensemble`, E1-E7).

Reads the predictions that runs have stored, so nothing is trained, evaluated or imported that needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.votes import VOTES, Vote, disagreement, fit_temperature, greedy, heated, ranking, scores, softmax

__all__ = [
    "Member",
    "Table",
    "agree",
    "apart",
    "as_text",
    "completed",
    "draw",
    "each",
    "judge",
    "read",
    "select",
    "sizes",
]

Array = Any  # of numpy
SPLITS = ("val", "test")
FEW = 4  # of a list's values, in a sentence
ORDERS = 20  # random orders behind mean and std of the accuracy by number of members


@dataclass
class Member:
    """A trained model and what it said: logits (N, K), labels (N,) and ids of `val` and `test` in `arrays`."""

    path: Path
    data: Mapping[str, Any]  # classes, shape, mean, std as the run recorded them
    arrays: Mapping[str, Array]
    parameters: int | None = None
    ms: float | None = None  # milliseconds an image, without decoding
    checkpoint: str = ""  # the file's name, where the member is one of several checkpoints of a run
    weight: int = 1

    @property
    def name(self) -> str:
        """The folder, and the checkpoint if there are several."""
        return str(self.path) + (f":{self.checkpoint}" if self.checkpoint else "")


@dataclass
class Table:
    """One row for the best member, the mean member and each vote; temperatures by vote (1: as they are)."""

    rows: list[dict[str, Any]]
    temperatures: dict[str, float]
    votes: dict[str, dict[str, Vote]] = field(default_factory=dict)  # by vote, then split


def completed(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the completed runs at or below `paths`, and a line for each that is left out, with the reason.

    An average of other runs votes only where it is named itself: below outputs it would stand beside its own parts.
    """
    named = {Path(name).expanduser().resolve() for name in paths}
    found, left_out = [], []
    for path in reading.find(list(paths)):
        result = reading.result(path)
        if result.get("status") != "completed":
            left_out.append(f"{path} is {result.get('status', 'no run')}, not completed")
        elif result.get("average_of") and path.resolve() not in named:
            left_out.append(f"{path} is an average of other runs; named itself it takes part")
        else:
            found.append(path)
    return found, left_out


def read(paths: Sequence[str]) -> tuple[list[Member], list[str]]:
    """Return the completed runs at or below `paths`, and a line for each that is left out, with the reason.

    Raises UserError when none is left.
    """
    members: list[Member] = []
    found, left_out = completed(paths)
    for path in found:
        try:
            members.append(member(path))
        except UserError as error:
            left_out.append(str(error))
    if not members:
        why = f": {left_out[0]}" if left_out else "; `dlrun train -m 'seed=range(0,5)'` makes five"
        raise UserError(f"no completed runs in {' '.join(paths)}{why}")
    return members, left_out


def member(path: Path) -> Member:
    """Return a run as a member. Raises UserError that names what it lacks."""
    result, arrays = reading.result(path), reading.arrays(path, "predictions")
    if result.get("status") != "completed":
        raise UserError(f"{path} is {result.get('status', 'no run')}, not completed")
    data = result.get("data")
    if not isinstance(data, dict) or not {"classes", "shape", "mean", "std"} <= data.keys():
        raise UserError(f"{path}: result.json does not describe its data")
    if reason := _malformed(arrays, len(data["classes"])):
        raise UserError(f"{path}: predictions.npz: {reason}; `dlrun ensemble --fresh` evaluates again")
    count = result.get("parameters")
    return Member(path, data, arrays, count if isinstance(count, int) else None, _milliseconds(path, arrays))


def _malformed(arrays: Mapping[str, Array], classes: int) -> str:
    """Say what is wrong with stored predictions, which may be a stranger's or damaged."""
    for split in SPLITS:
        if not {f"{split}_logits", f"{split}_labels", f"{split}_ids"} <= arrays.keys():
            return "missing, unreadable or incomplete"
        logits, labels, ids = (arrays[f"{split}_{what}"] for what in ("logits", "labels", "ids"))
        if logits.dtype.kind != "f" or logits.shape != (len(labels), classes) or ids.shape != labels.shape:
            return f"{split}_logits has shape {logits.shape}, expected ({len(labels)}, {classes})"
        if labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() >= classes:
            return f"{split}_labels are no class numbers from 0 to {classes - 1}"
        if not np.isfinite(logits).all():
            return f"{split}_logits are not finite"
    return ""


def _milliseconds(path: Path, arrays: Mapping[str, Array]) -> float | None:
    """The median over epochs of the time that validation took, an image."""
    try:
        seconds = [float(row["eval_seconds"]) for row in reading.metrics(path)]
    except (KeyError, TypeError, ValueError):
        return None
    return 1e3 * float(np.median(seconds)) / len(arrays["val_labels"]) if seconds else None


def agree(members: Sequence[Member]) -> None:
    """Hold all members against the first. Raises UserError that names the first that differs, in what and how."""
    first = members[0]
    for other in members[1:]:
        for what in ("classes", "shape", "mean", "std"):
            a, b = first.data[what], other.data[what]
            if what in ("classes", "shape"):
                same = list(a) == list(b)
            else:
                same = len(a) == len(b) and np.allclose(a, b, rtol=1e-5)
            if not same:
                raise UserError(f"{other.name} and {first.name} differ in {what}: {' and '.join(apart(b, a))}")
        for split in SPLITS:
            for what in ("ids", "labels"):
                a, b = first.arrays[f"{split}_{what}"], other.arrays[f"{split}_{what}"]
                if a.shape != b.shape or not (a == b).all():
                    how = f"{len(b)} and {len(a)} images" if len(a) != len(b) else _first_difference(b, a)
                    hint = "; seeds share a fold when dataset.split_seed and dataset.limit are the same"
                    raise UserError(f"{other.name} and {first.name} differ in {split} {what}: {how}{hint}")


def apart(a: Sequence[Any], b: Sequence[Any]) -> tuple[str, str]:
    """Return each of two lists as their number and a few of them, among these the first that differs."""
    same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    start = same if same >= FEW else 0
    return _some(list(a), start), _some(list(b), start)


def _some(values: list[Any], start: int) -> str:
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values[start : start + FEW]]
    more = ["…"] * (start + FEW < len(values))
    return f"{len(values)} ({', '.join(['…'] * (start > 0) + shown + more)})"


def _first_difference(a: Array, b: Array) -> str:
    at = int(np.flatnonzero(a != b)[0])
    return f"{a[at]} and {b[at]} at number {at}"


def select(members: Sequence[Member], *, top: int = 0, by_greed: bool = False) -> list[Member]:
    """Return the members that count, best first on validation: all, the best `top`, or those greed picks (E2).

    Nothing here looks at the test split. Greed gives `weight`, how often it picked a member.
    """
    logits, labels = [m.arrays["val_logits"] for m in members], members[0].arrays["val_labels"]
    order = ranking(logits, labels)
    if top:
        order = order[:top]
    counts = dict.fromkeys(order, 1)
    if by_greed:
        found = greedy([logits[m] for m in order], labels)
        counts = dict(zip(order, found, strict=True))
    chosen = [members[m] for m in order if counts[m]]
    for m in order:
        members[m].weight = counts[m]
    return chosen


def judge(members: Sequence[Member], temperature: bool = False) -> Table:
    """Score every vote of the members, beside the best member on validation and the mean member (E5).

    Members come best first, as `select` gives them. With `temperature` each row is rescaled by one that is fitted
    on validation.
    """
    weights = np.array([m.weight for m in members], dtype=float)
    labels = {split: members[0].arrays[f"{split}_labels"] for split in SPLITS}
    logits = {split: np.stack([m.arrays[f"{split}_logits"] for m in members]) for split in SPLITS}
    p = {split: softmax(logits[split]) for split in SPLITS}
    table = Table([], {})

    def scored(votes: dict[str, Vote], name: str = "") -> dict[str, float]:
        heat = fit_temperature(votes["val"], labels["val"]) if temperature else 1.0
        votes = {split: heated(vote, heat) for split, vote in votes.items()}
        if name:
            table.temperatures[name], table.votes[name] = heat, votes
        found = {s: scores(vote, labels[s]) for s, vote in votes.items()}
        return {f"{s}_{what}": value for s in SPLITS for what, value in found[s].items()}

    each = [scored({s: Vote(p[s][m], p[s][m].argmax(1)) for s in SPLITS}) for m in range(len(members))]
    mean = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
    alone: dict[str, Any] = {f"{split}_disagreement": None for split in SPLITS}
    table.rows.append({"vote": "best member", "members": 1, **each[0], **_price(members[:1]), **alone})
    average = {key: _mean([_price([m])[key] for m in members]) for key in ("ms_per_image", "parameters")}
    table.rows.append({"vote": "mean member", "members": 1, **mean, **average, **alone})
    differ = {f"{split}_disagreement": disagreement(logits[split]) for split in SPLITS}
    for name, vote in VOTES.items():
        row = scored({s: vote(logits[s], p[s], weights) for s in SPLITS}, name)
        table.rows.append({"vote": name, "members": len(members), **row, **_price(members), **differ})
    return table


def _price(members: Sequence[Member]) -> dict[str, Any]:
    """What an image costs at inference: every member once, however often it counts."""
    ms, parameters = [m.ms for m in members], [m.parameters for m in members]
    return {
        "ms_per_image": sum(t for t in ms if t is not None) if None not in ms else None,
        "parameters": sum(n for n in parameters if n is not None) if None not in parameters else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean([v for v in values if v is not None]))


def sizes(members: Sequence[Member]) -> list[dict[str, float]]:
    """Return accuracy by number of members, voting by mean probability (E7), a row a number.

    `*_mean` and `*_std` are over 20 random orders of the members; `*_best_first` takes them as they come. A member
    that counts several times counts so in each.
    """
    draw, weights = np.random.default_rng(0), np.array([m.weight for m in members], dtype=float)
    count = len(members)
    orders = [np.arange(count)] + [draw.permutation(count) for _ in range(ORDERS if count > 1 else 0)]
    rows: list[dict[str, float]] = [{"members": n + 1} for n in range(count)]
    for split in SPLITS:
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
    """Return a row a member: where it is, how often it counts, its scores and its price."""
    rows = []
    for m in members:
        row: dict[str, Any] = {"member": m.name, "weight": m.weight}
        for split in SPLITS:
            p = softmax(m.arrays[f"{split}_logits"])
            found = scores(Vote(p, p.argmax(1)), m.arrays[f"{split}_labels"])
            row.update({f"{split}_{what}": value for what, value in found.items()})
        rows.append(row | _price([m]) | {"checks": reading.worst_check([reading.stored(m.path)])})
    return rows


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for reading, a line a row, accuracies in per cent."""
    columns = {"vote": "", "members": "members"}
    for split in SPLITS:
        columns |= {f"{split}_acc": f"{split} acc", f"{split}_loss": "log loss", f"{split}_ece": "calib. error"}
    columns |= {"test_disagreement": "disagreement", "ms_per_image": "ms/image", "parameters": "parameters"}
    lines = [list(columns.values())] + [[_cell(c, row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if k == 0 else f"{cell:>{w}}" for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith(("_acc", "disagreement")):
        return f"{100 * value:.2f} %"
    if column == "parameters":
        return f"{round(value):,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def draw(folder: Path, rows: Sequence[Mapping[str, float]]) -> Path:
    """Draw accuracy against the number of members into the plots of the ensemble (E7)."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    from dlrun.reports.figures import BLUE, ORANGE, STYLE, canvas, headline, save

    with rc_context(STYLE):
        figure, count = canvas(3.6, top=0.68), [row["members"] for row in rows]
        headline(figure, f"Accuracy by number of members, mean probability: good rises, then flattens (of {len(rows)})")
        for k, split in enumerate(SPLITS):
            axes = figure.add_subplot(1, 2, k + 1)
            mean, std, first = (
                100 * np.array([row[f"{split}_acc_{what}"] for row in rows]) for what in ("mean", "std", "best_first")
            )
            axes.plot(count, mean, "o-", color=BLUE, ms=3, label=f"mean of {ORDERS} random orders, ± std")
            axes.fill_between(count, mean - std, mean + std, color=BLUE, alpha=0.15, lw=0)
            axes.plot(count, first, "s--", color=ORANGE, ms=3, lw=1.2, label="best on validation first")
            axes.set(title={"val": "validation", "test": "test"}[split], xlabel="members", ylabel="accuracy in %")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if k == 0:
                axes.legend(loc="lower right", fontsize=8)
        return save(folder, "members", figure)
