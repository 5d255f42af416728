"""The rungs of a ladder of capacities, and which of them were an improvement by more than noise (M8).

`dlrun ladder` decides by it what to train next, and `dlrun report` draws it: both from the rounds in sweep.yaml and the
scores of the trials. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dlrun.analysis import scores
from dlrun.analysis.spread import margin
from dlrun.analysis.sweeps import Trials
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder

__all__ = ["Climb", "Rung", "climb", "read", "rows", "sentences", "words"]

MEMORISED = 0.99  # of the training accuracy: above it a network can memorise its data (C3)
NAMED = ("rung", "kept", "std", "parameters", "seconds")  # columns of `rows`, which are no key
MOST = 2000  # trials of one page: a file may ask for a million


@dataclass
class Rung:
    """A setting of the ladder: `values` by key, the trials with their scores, and what came of it.

    `gain` over the rung that was kept before is positive for a better score, `noise` what chance explains.
    """

    number: int
    key: str  # what changed against the rung before; "" for the first
    grows: bool
    values: dict[str, str]
    trials: list[int]
    scores: list[float]
    gain: float = math.nan
    noise: float = math.nan
    kept: bool = False

    @property
    def mean(self) -> float:
        """The mean score over seeds, nan without a score."""
        return fmean(self.scores) if self.scores else math.nan


@dataclass
class Climb:
    """The rungs in the order in which they were trained, the best of the growing ones, and the best of all."""

    rungs: list[Rung] = field(default_factory=list)
    grown: Rung | None = None
    chosen: Rung | None = None


def climb(
    rounds: Sequence[Mapping[str, Any]],
    grow: Sequence[str],
    score: Callable[[int], float | None],
    *,
    lower: bool,
    count: int = 0,
) -> Climb:
    """Return the rungs of some rounds; one is kept if its mean is better than the last kept one's by more than noise.

    Noise is the difference that chance makes, from the spread over seeds of all rungs so far. With one seed it is that
    of guessing on `count` images for an accuracy, and otherwise 0. `grow` are the keys of capacity, `score` returns the
    score of a trial.
    """
    found = Climb()
    for one in rounds:
        made = _settings(one, score, len(found.rungs))
        before = found.chosen
        for rung in made:
            changed = [k for k, v in rung.values.items() if before is not None and before.values.get(k) != v]
            rung.key, rung.grows = next(iter(changed), ""), not set(changed) - set(grow)
        found.rungs += made
        best = _best(made, lower=lower)
        if before is None:
            if best is not None:
                best.kept = True
                found.chosen = found.grown = best
            continue
        for rung in made:
            rung.gain = before.mean - rung.mean if lower else rung.mean - before.mean
            rung.noise = _noise(rung, before, [r.scores for r in found.rungs], count)
        if best is not None and best.gain > best.noise:
            best.kept = True
            found.chosen = best
            found.grown = best if best.grows else found.grown
    return found


def _settings(one: Mapping[str, Any], score: Callable[[int], float | None], number: int) -> list[Rung]:
    """The rungs of a round: the settings of its grid without seeds, whose list varies fastest."""
    axes = {str(a["key"]).lstrip("+"): list(a["words"]) for a in one["axes"]}
    seeds = axes.pop("seed", None) or [""]
    made = []
    for place, point in enumerate(islice(product(*axes.values()), -(-one["new"] // len(seeds)))):
        first = one["first"] + place * len(seeds)
        trials = [n for n in range(first, first + len(seeds)) if n < one["first"] + one["new"]]
        found = [value for n in trials if (value := score(n)) is not None and not math.isnan(value)]
        made.append(Rung(number + place + 1, "", True, dict(zip(axes, point, strict=True)), trials, found))
    return made


def _best(rungs: Sequence[Rung], *, lower: bool) -> Rung | None:
    scored = [rung for rung in rungs if rung.scores]
    return (min if lower else max)(scored, key=lambda rung: rung.mean) if scored else None


def _noise(rung: Rung, before: Rung, groups: Sequence[list[float]], count: int) -> float:
    if not rung.scores:
        return math.nan
    if not math.isnan(noise := margin(groups, len(rung.scores), len(before.scores))):
        return noise
    return scores.noise(rung.mean, before.mean, count) if count and 0 <= rung.mean <= 1 else 0.0


def words(rung: Rung) -> str:
    """Return the values of a rung as they are typed."""
    return " ".join(f"{key}={value}" for key, value in rung.values.items())


def read(folder: Path, found: Trials) -> Climb | None:
    """Return the ladder of a sweep; None if it is none."""
    # a damaged or foreign file, or no ladder
    with suppress(UserError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        plan = sweep_folder.plan(folder)
        ladder = (plan.get("purpose") or {}).get("ladder")
        if ladder and found.entries and sum(one["new"] for one in plan["rounds"]) <= MOST:
            numbers = {entry.path.name: k for k, entry in enumerate(found.entries)}
            known = {int(n): found.scores[k] for n, k in numbers.items() if n.isdecimal()}
            count = scores.images(found.entries[0].result, "val") if found.metric == "val_acc" else 0
            made = climb(plan["rounds"], ladder["grow"], known.get, lower=found.lower, count=count)
            own = {*NAMED, found.metric, f"train_{found.metric.removeprefix('val_')}"}
            return None if any(own & rung.values.keys() for rung in made.rungs) else made
    return None


def rows(found: Climb, trials: Trials) -> list[dict[str, Any]]:
    """Return one row per rung: whether it was kept, validation and training score, parameters, seconds, its values.

    Scores and seconds are means over seeds, `std` the sample standard deviation of the validation score.
    """
    place = {int(e.path.name): k for k, e in enumerate(trials.entries) if e.path.name.isdecimal()}
    made = []
    for rung in found.rungs:
        results = [trials.entries[place[n]].result for n in rung.trials if n in place]
        made.append(
            {
                "rung": rung.number,
                "kept": _came(rung, found),
                trials.metric: rung.mean,
                "std": stdev(rung.scores) if len(rung.scores) > 1 else math.nan,
                f"train_{trials.metric.removeprefix('val_')}": _mean(
                    _trained(trials, place[n]) for n in rung.trials if n in place
                ),
                "parameters": next((r["parameters"] for r in results if r.get("parameters")), ""),
                "seconds": _mean(r.get("seconds") for r in results),
                **rung.values,
            }
        )
    return made


def _came(rung: Rung, found: Climb) -> str:
    if rung is found.chosen:
        return "chosen"
    return "largest kept" if rung is found.grown else "kept" if rung.kept else "no"


def _mean(values: Iterable[Any]) -> float:
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    return fmean(numbers) if numbers else math.nan


def _trained(trials: Trials, k: int) -> float:
    """The training score of the epoch that was tested: of the whole training split if it was evaluated."""
    entry, kind = trials.entries[k], trials.metric.removeprefix("val_")
    epoch = str(entry.result.get("tested_epoch") or entry.result.get("best_epoch") or "")
    with suppress(UserError, ValueError):
        row = next((r for r in reading.metrics(entry.path) if r.get("epoch") == epoch), {})
        return float(row.get(f"train_eval_{kind}") or row.get(f"train_{kind}") or math.nan)
    return math.nan


def sentences(found: Climb, table: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Return what the ladder found: whether its largest kept rung overfits, and what regularising brought."""
    if found.chosen is None or found.grown is None:
        return ["no rung has a score"]
    by = {row["rung"]: row for row in table}
    grown, said = by[found.grown.number], []
    train = grown.get(f"train_{metric.removeprefix('val_')}", math.nan)
    if metric == "val_acc" and not math.isnan(train):
        scored = (
            f"rung {found.grown.number} without regularisation: train {train:.4f}, validation {found.grown.mean:.4f}"
        )
        enough = train >= MEMORISED
        more = "it overfits" if enough else "it does not overfit: add capacity, or trainer.epochs"
        said.append(f"{scored}; {more}")
    stopped = {r.key for r in found.rungs if r.grows and not r.kept}
    for key in dict.fromkeys(r.key for r in found.rungs if r.grows and r.key and r.key not in stopped):
        said.append(f"{key}={found.grown.values[key]}, the last value, was still an improvement: add larger ones")
    if found.chosen is not found.grown:
        gain = abs(found.chosen.mean - found.grown.mean)
        said.append(f"regularised, rung {found.chosen.number} is better by {gain:.4f} in {metric}")
    elif any(not r.grows for r in found.rungs):
        said.append("no regularisation improved it by more than noise")
    return [*said, f"chosen: rung {found.chosen.number}, {words(found.chosen)}, {metric} {found.chosen.mean:.4f}"]
