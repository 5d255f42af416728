"""Which run is the best: settings by the mean over their seeds, the runs of a setting by their own score (S9, S10).

The rule of every table, page and command that names a best run: `dlrun compare`, `list`, `ensemble`, `rm --keep-best`,
`board`, `report`, and of the terminal of a sweep. A single lucky seed is no better setting. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from statistics import fmean
from typing import Any, NamedTuple

from dlrun.vocabulary import FURTHER, NUMBERS, is_loss, place

__all__ = [
    "FOLD",
    "INDIFFERENT",
    "Scored",
    "Setting",
    "by_target",
    "compared",
    "data_of",
    "further",
    "ranked",
    "repeats",
]

# these do not change what is learned, only where and how it is computed and stored
INDIFFERENT = ("seed", "trainer.threads", "trainer.keep", "trainer.diagnostics")
FOLD = "dataset.fold"
DIGITS = 12  # means that differ only by rounding are equal


class Scored(NamedTuple):
    """A run to rank: what its setting has in common, its seed, its score, its val_loss, and what decides at last."""

    setting: Hashable
    seed: str
    score: float
    val_loss: Any  # None if it is unknown
    number: Any


class Setting(NamedTuple):
    """Runs that differ in their seeds alone, by their places in what was ranked, best first."""

    runs: list[int]
    by_seed: dict[str, float]  # the mean of the runs with one seed: they are not independent
    mean: float


def repeats(key: str) -> bool:
    """Whether runs that differ in this key are of the same setting: a seed, a fold, or what changes no result."""
    return key in INDIFFERENT or key == FOLD or key.endswith(".seed")


def data_of(result: Mapping[str, Any], over: str = "seed") -> str:
    """Return the hash of a run's images and folds, or of all images that its folds divide; "" if it recorded none."""
    record = result.get("data")
    if not isinstance(record, dict):
        return ""
    if over != "seed":
        return str(record.get("folds_identity") or "")
    # of versions before that: names, and pixels if all files were decoded
    older = f"{record.get('content_sha256') or ''}{record.get('val_sha256') or ''}"
    return str(record.get("identity") or older)


def ranked(runs: Sequence[Scored], *, lower: bool) -> list[Setting]:
    """Return the settings, best first by their mean over seeds; ties as in `vocabulary.place`."""
    groups: dict[Hashable, list[int]] = {}
    for k, run in enumerate(runs):
        groups.setdefault(run.setting, []).append(k)
    found = []
    for group in groups.values():
        group.sort(key=lambda k: place(runs[k].score, runs[k].val_loss, runs[k].number, lower=lower))
        seeds: dict[str, list[float]] = {}
        for k in group:
            seeds.setdefault(runs[k].seed, []).append(runs[k].score)
        by_seed = {seed: fmean(values) for seed, values in seeds.items()}
        mean, loss = fmean(by_seed.values()), _mean([runs[k].val_loss for k in group])
        first = place(round(mean, DIGITS), loss, runs[group[0]].number, lower=lower)
        found.append((first, Setting(group, by_seed, mean)))
    return [setting for _, setting in sorted(found, key=lambda one: one[0])]


def _mean(losses: Sequence[Any]) -> float | None:
    known = [float(loss) for loss in losses if isinstance(loss, (int, float))]
    return round(fmean(known), DIGITS) if len(known) == len(losses) else None


def compared(monitors: Set[str]) -> str:
    """Return the column by which runs with these monitors are compared: val_loss if all are losses, mostly val_acc."""
    if len(monitors) == 1 and monitors < {*FURTHER}:
        return next(iter(monitors))
    return "val_loss" if monitors and all(map(is_loss, monitors)) else "val_acc"


def further(by: str, also: Sequence[str]) -> list[str]:
    """Return the scores that a table has beside NUMBERS: the one it is sorted by, also of test, and those asked for."""
    if not by or by in NUMBERS:
        return [name for name in also if name in FURTHER]
    pair = by.replace("val_", "test_")
    return list(dict.fromkeys((by, *(name for name in (pair, *also) if name in FURTHER))))


def by_target(results: Iterable[Mapping[str, Any]], also: Sequence[str]) -> list[str]:
    """Return the scores of single targets, such as test_species_acc, that are asked for and that a run has (M11)."""
    data = [found for one in results if isinstance(found := one.get("data"), dict) and found.get("tasks")]
    names = {name for found in data for name in found["tasks"]} if also else set()
    of_sets = ("val_map", "test_map", "val_tuned_f1", "test_tuned_f1")
    there = {*of_sets} if any(found.get("multilabel") for found in data) else set()
    there |= {f"{split}_{name}_{what}" for split in ("val", "test") for name in names for what in ("acc", "loss")}
    return [name for name in also if name in there]
