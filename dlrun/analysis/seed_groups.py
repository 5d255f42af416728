"""Runs that differ in their seed alone, as one setting: mean ± std, and which differences exceed the noise (S9).

`dlrun compare --group-seeds`. The standard deviation is the sample's (n − 1). Against the best setting every other is
tested by its scores, two-sided: a paired t-test by seed if both have the same seeds, else Welch's t-test (1947,
Biometrika 34), and Holm's step-down correction (1979, Scand. J. Statist. 6) over all of these tests.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from statistics import fmean, stdev
from typing import Any

from dlrun.analysis import compare
from dlrun.analysis.compare import Entry
from dlrun.analysis.ranking import FOLD, INDIFFERENT, Scored, data_of, further, ranked
from dlrun.vocabulary import RESULTS, Status, lower_is_better, worst

__all__ = ["LEVEL", "difference", "grouped", "holm", "note"]

LEVEL = 0.05  # probability of any wrong "worse" in a table
FEW = 5  # seeds below which a t-test detects only large differences (Colas, Sigaud, Oudeyer 2018, arXiv:1806.08295)


def grouped(
    entries: Sequence[Entry],
    by: str = "",
    *,
    lower: bool | None = None,
    over: str = "seed",
    also: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return one row per setting, best mean first: the keys that differ, mean and std of each score, n, a verdict.

    Sorted `by` a number of the results, by default the one that the runs monitored; `also` are further scores. Only
    completed runs count; the statuses of the others are in the column `rest`. Runs of one setting with the same seed
    are not independent: their mean counts as one. Runs on other images are another setting, told apart by the column
    `data`. With `over` FOLD the folds of one cross-validation take the place of the seeds, and the seeds of a fold
    count as one.
    """
    follow = {k for k in {k for e in entries for k in e.config} if _repeats_seed(k, entries)} | {over}
    groups, several = _settings(entries, follow, over)
    differing = compare.varying([{k: v for k, v in g[0].config.items() if k not in follow} for g in groups.values()])
    column = by or compare.metric(entries)
    found, spread = [], [n.name for n in RESULTS if n.over_seeds == "spread"]
    numbers = tuple(dict.fromkeys((*spread, column, *further(column, also))))
    for (_, data), group in groups.items():
        about = {"data": data[:8]} if several else {}
        found.append((about | _row(group, differing, (column, numbers), over), _by_seed(group, column, over)))
    down = lower_is_better(column) if lower is None else lower
    done = [
        Scored(str(k), str(e.config.get(over, "")), float(e.result[column]), e.result.get("val_loss"), str(e.path))
        for k, group in enumerate(groups.values())
        for e in group
        if compare.scored(e.result, column)
    ]
    order = [int(str(done[setting.runs[0]].setting)) for setting in ranked(done, lower=down)]
    found = [found[k] for k in (*order, *sorted({*range(len(found))} - {*order}))]
    _judge(found)
    return [row for row, _ in found]


def _settings(entries: Sequence[Entry], follow: Set[str], over: str) -> tuple[dict[tuple[Any, str], list[Entry]], bool]:
    """The runs by setting and data; and whether one setting was run on several data.

    A run that ended before it recorded its data is counted with others of its setting.
    """
    groups: dict[tuple[Any, str], list[Entry]] = {}
    data: dict[Any, dict[str, None]] = {}
    keys = []
    for entry in entries:
        config = sorted(entry.config.items())
        setting = tuple((k, v) for k, v in config if k not in follow and not k.startswith(compare.IGNORED))
        keys.append((setting, data_of(entry.result, over)))
        data.setdefault(setting, {})[keys[-1][1]] = None
    for entry, (setting, found) in zip(entries, keys, strict=True):
        groups.setdefault((setting, found or max(data[setting])), []).append(entry)
    return groups, any(len(set(known) - {""}) > 1 for known in data.values())


def _repeats_seed(key: str, entries: Sequence[Entry]) -> bool:
    """Whether a key is no part of a setting: the seed, a key that equals it, or one that changes no result."""
    if key in INDIFFERENT:
        return True
    return key.endswith(".seed") and all(e.config.get(key) in (None, e.config.get("seed")) for e in entries)


def _by_seed(group: Sequence[Entry], column: str, over: str) -> dict[str, float]:
    """The mean score of each seed, or fold, over its completed runs."""
    scores: dict[str, list[float]] = {}
    for entry in group:
        if compare.scored(entry.result, column):
            scores.setdefault(entry.config.get(over, ""), []).append(float(entry.result[column]))
    return {seed: fmean(values) for seed, values in scores.items()}


def _row(
    group: Sequence[Entry], differing: Sequence[str], scores: tuple[str, Sequence[str]], over: str
) -> dict[str, Any]:
    """The row of a setting; `scores` are the metric, and all columns that are shown with their spread."""
    metric, columns = scores
    config = group[0].config
    row: dict[str, Any] = {key.removeprefix("choices."): config.get(key, "") for key in differing}
    seeds = sorted(_by_seed(group, metric, over), key=_number)
    row |= {"n": len(seeds), "seeds" if over == "seed" else "folds": f"[{', '.join(seeds)}]"}
    for column in columns:
        values = list(_by_seed(group, column, over).values())
        row[f"{column}_mean"] = fmean(values) if values else ""
        row[f"{column}_std"] = stdev(values) if len(values) > 1 else ""
    for column in (n.name for n in RESULTS if n.over_seeds == "mean"):
        done = [e.result.get(column) for e in group if e.result.get("status") == Status.COMPLETED]
        numbers = [value for value in done if isinstance(value, (int, float))]
        row[column] = fmean(numbers) if numbers else ""
    rest = Counter(
        str(e.result.get("status", "")) or "empty" for e in group if e.result.get("status") != Status.COMPLETED
    )
    row["rest"] = " ".join(f"{count} {status}" for status, count in sorted(rest.items()))
    row["checks"] = worst(e.result.get("checks") for e in group if e.result.get("status") == Status.COMPLETED)
    row |= {"verdict": "", "p": "", "test": "", "runs": json.dumps([str(e.path) for e in group])}
    return row


def _number(text: str) -> tuple[float, str]:
    return (float(text), text) if text.lstrip("-").isdigit() else (math.inf, text)


def _judge(found: Sequence[tuple[dict[str, Any], Mapping[str, float]]]) -> None:
    """Fill verdict, p and test of each row; the rows, best first, are tested against the best with several seeds."""
    several = [k for k, (_, scores) in enumerate(found) if len(scores) > 1]
    tests: dict[int, tuple[float, str]] = {}
    for k, (row, scores) in enumerate(found):
        if len(scores) < 2:
            row["verdict"] = "one seed: no noise estimate" if scores else "no score"
        elif k == several[0]:
            row["verdict"] = "best" if k == 0 else "best of several seeds"
        else:
            tests[k] = difference(found[several[0]][1], scores)
    usable = {k: p for k, (p, _) in tests.items() if not math.isnan(p)}
    corrected = dict(zip(usable, holm(list(usable.values())), strict=True))
    for k, (_, name) in tests.items():
        row = found[k][0]
        row["test"] = name
        if k not in corrected:
            row["verdict"] = "no spread: no noise estimate"
            continue
        row["p"] = corrected[k]
        fewest = min(len(found[several[0]][1]), len(found[k][1]))
        alike = "two seeds: cannot tell" if fewest == 2 else "within noise"
        row["verdict"] = "worse" if corrected[k] < LEVEL else alike


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, str]:
    """Return the two-sided p of two settings' scores by seed, and the test: `paired` or `welch`.

    Both need at least two seeds. nan if neither varies and they differ: the noise is unknown.
    """
    if set(one) == set(other):
        apart = [one[seed] - other[seed] for seed in one]
        mean, square, name = fmean(apart), stdev(apart) ** 2 / len(apart), "paired"
        freedom = len(apart) - 1.0
    else:
        a, b = (stdev(scores.values()) ** 2 / len(scores) for scores in (one, other))
        mean, square, name = fmean(one.values()) - fmean(other.values()), a + b, "welch"
        # Welch–Satterthwaite
        freedom = square**2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1)) if square else 1.0
    if square <= (1e-12 * max(map(abs, [*one.values(), *other.values()]))) ** 2:
        return (1.0 if math.isclose(mean, 0, abs_tol=1e-12) else math.nan), name
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(mean) / math.sqrt(square))), name


def holm(found: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method, in the order given."""
    corrected, highest = [0.0] * len(found), 0.0
    for rank, k in enumerate(sorted(range(len(found)), key=lambda k: found[k])):
        highest = max(highest, min(1.0, (len(found) - rank) * found[k]))
        corrected[k] = highest
    return corrected


def note(rows: Sequence[Mapping[str, Any]], column: str, over: str = "seed") -> list[str]:
    """Return the notes below the table: what ± is, how it was tested, and the limits of the test."""
    tested = [row for row in rows if row["test"]]
    unit = "fold" if over == FOLD else "seed"
    notes = [f"mean ± sample standard deviation over {unit}s"]
    if any("data" in row for row in rows):
        notes.append("data: runs of one setting on other images or folds are not averaged")
    if over == FOLD and tested:
        notes.append("folds share most of their training images, so that p is optimistic (Dietterich 1998)")
    if tested:
        tests = {"paired": f"paired t-tests by {unit}", "welch": "Welch's t-tests"}
        names = " and ".join(tests[name] for name in sorted({row["test"] for row in tested}))
        count = f"Holm's correction for {len(tested)} comparisons" if len(tested) > 1 else "one comparison"
        notes.append(f"worse than the best on {column}: {names}, two-sided, p < {LEVEL:g} after {count}")
        notes.append("the best setting was selected by this mean, so the mean is optimistic")
        least = min(row["n"] for row in rows if row["n"] > 1)
        if least < FEW:
            notes.append(f"{least} {unit}s can detect only large differences: within noise does not mean equal")
    if any(row["n"] == 1 for row in rows):
        more = (
            "folds, such as dataset.folds=5 dataset.fold=range:0:5"
            if over == FOLD
            else "seeds, such as 'seed=range(1,6)'"
        )
        notes.append(f"one {unit} gives no noise estimate: run more {more}")
    return notes
