"""The conclusion of a comparison: the best, whether its lead exceeds the noise, the next command (S9, S10).

The last line of `dlrun compare`. Nothing here imports torch.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from dlrun.analysis import compare, scores
from dlrun.analysis.compare import Entry
from dlrun.analysis.seed_groups import INDIFFERENT, LEVEL, difference
from dlrun.vocabulary import is_accuracy, place

__all__ = ["decision"]


class Setting(NamedTuple):
    """Runs that differ in their seeds alone: the best of them, and the score of each seed."""

    best: Entry
    by_seed: dict[str, float]
    mean: float


def decision(
    entries: Sequence[Entry],
    column: str,
    *,
    lower: bool,
    names: Mapping[str, str] | None = None,
    among: Sequence[str] | None = None,
) -> list[str]:
    """Return the lines that decide: the best by `column`, by how much it leads, and the next command.

    Of settings with several seeds the means are compared, by the test of `dlrun compare --group-seeds`; of single runs
    the accuracies, with the noise of so few images. `names` are short ones by path; settings differ only `among`
    these keys, if they are given.
    """

    def name(entry: Entry) -> str:
        return (names or {}).get(str(entry.path)) or scores.short(entry.path)

    ranked = _settings(entries, column, lower, among)
    if not ranked:
        return ["no run has completed with a score; `dlrun list` shows the status of each"]
    first = ranked[0]
    count = len(first.by_seed)
    value = scores.counted(column, first.best.result.get(column), first.best.result)
    line = f"best: {name(first.best)}, {column} {value}"
    if count > 1:
        spread = stdev(first.by_seed.values())
        line = f"best: {name(first.best)} and its seeds, mean {column} of {count} "
        line += f"{first.mean:.4f} ± {spread:.4f}"
    if len(ranked) == 1:
        words = "the only setting" if len(entries) > 1 else "the only run"
        return [f"{line}; {words}", *_next(first, certain=count > 2)]
    lead = abs(first.mean - ranked[1].mean)
    said, certain = _noise(first, ranked[1], column, lead)
    how = (
        f"leads {name(ranked[1].best)} by {lead:.4f}"
        if lead
        else f"equal to {name(ranked[1].best)} and first by val_loss"
    )
    return [f"{line}; {how}: {said}", *_next(first, certain=certain)]


def _settings(entries: Sequence[Entry], column: str, lower: bool, among: Sequence[str] | None) -> list[Setting]:
    """The settings of completed runs, best first by their mean over seeds."""
    done = [e for e in entries if compare.scored(e.result, column)]
    differing = compare.varying([e.config for e in done], among=among)
    keys = [k for k in differing if k not in INDIFFERENT and not k.endswith(".seed")]
    groups: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in done:
        groups.setdefault(tuple(entry.config.get(key) for key in keys), []).append(entry)
    found = []
    for number, group in enumerate(groups.values()):
        group.sort(key=lambda e: place(e.result[column], e.result.get("val_loss"), str(e.path), lower=lower))
        seeds: dict[str, list[float]] = {}
        for e in group:
            seeds.setdefault(e.config.get("seed", ""), []).append(float(e.result[column]))
        by_seed = {seed: fmean(values) for seed, values in seeds.items()}
        losses = [float(e.result["val_loss"]) for e in group if isinstance(e.result.get("val_loss"), (int, float))]
        loss = fmean(losses) if len(losses) == len(group) else None
        mean = fmean(by_seed.values())
        tie = str(group[0].path)
        found.append(((*place(mean, loss, tie, lower=lower), number), Setting(group[0], by_seed, mean)))
    return [setting for _, setting in sorted(found, key=lambda one: one[0])]


def _noise(first: Setting, second: Setting, column: str, lead: float) -> tuple[str, bool]:
    """Whether a lead is more than noise, in words and as a flag."""
    if min(len(first.by_seed), len(second.by_seed)) > 1:
        p, name = difference(first.by_seed, second.by_seed)
        if math.isnan(p):
            return "the seeds do not vary, so the noise is unknown", False
        return f"{'more than' if p < LEVEL else 'within'} noise over seeds ({name} t-test, p {p:.2g})", p < LEVEL
    count = scores.images(first.best.result, "val")
    if not is_accuracy(column) or not count or count != scores.images(second.best.result, "val"):
        return "one seed each, so the noise is unknown", False
    chance = scores.noise(first.mean, second.mean, count)
    if lead > chance:
        return f"more than the noise of {count} validation images, {chance:.4f} (95 %)", True
    return f"within the noise of {count} validation images, {chance:.4f} (95 %)", False


def _next(first: Setting, *, certain: bool) -> list[str]:
    """The command to type next: use the best if its lead is certain, otherwise repeat it with seeds."""
    path = first.best.path
    if certain:
        return [f"next: {shlex.join(['dlrun', 'predict', str(path)])} IMAGES"]
    words = first.best.result.get("typed")
    if not isinstance(words, list):
        return ["next: repeat the best settings with 'seed=range(1,6)', then dlrun compare --group-seeds"]
    dropped = ("seed", "run.", "sweep.", "search", "hydra", "trust")
    kept = [str(w) for w in words if not str(w).lstrip("+").startswith(dropped)]
    return [f"next: {shlex.join(['dlrun', 'train', '-m', *kept, 'seed=range(1,6)'])}, then dlrun compare --group-seeds"]
