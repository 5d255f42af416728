"""The rules of a study: whether a claim holds, from the settings and their spread over seeds (`dlrun study NAME`).

A rule has one of three outcomes: agrees, does not agree, not decidable, which means within the noise of the seeds, or
that a value was not run. A setting whose runs all diverged is worse than any other. If some diverged, the others decide
only what the lost ones could not change. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from dlrun.analysis.spread import margin
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.vocabulary import Status, lower_is_better

__all__ = ["AGREES", "DOES_NOT", "UNDECIDED", "Judged", "Setting", "judge", "overall"]

AGREES, DOES_NOT, UNDECIDED = "agrees", "does not agree", "not decidable"
CHANCE = "chance_loss"


@dataclass
class Setting:
    """A setting of a study: its words without the key if one key is varied, and its runs by seed."""

    name: str
    runs: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)
    ensembles: list[dict[str, float]] = field(default_factory=list)  # scores of votes, in place of runs
    voters: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)  # the runs whose votes these are

    @property
    def lost(self) -> int:
        """How many runs diverged."""
        return sum(result.get("status") == Status.DIVERGED for _, result in self.runs or self.voters)

    @property
    def diverged(self) -> bool:
        """Whether every run diverged."""
        return bool(self.runs) and self.lost == len(self.runs)

    @property
    def torn(self) -> bool:
        """Whether some runs diverged, so that the mean of the others is too good for the setting."""
        return 0 < self.lost < len(self.runs or self.voters)

    def measured(self, of: str) -> list[float]:
        """Return a column of each completed run, `@first`, `@last`, `@best` or `@mean` over its epochs.

        Without @ that of result.json, or of the epoch that was tested.
        """
        if self.ensembles:
            return [scores[of] for scores in self.ensembles if of in scores]
        done = [(path, r) for path, r in self.runs if r.get("status") == Status.COMPLETED]
        values = [_measure(path, result, of) for path, result in done]
        return [value for value in values if math.isfinite(value)]


@dataclass
class Judged:
    """A rule with its outcome and the numbers behind it, in one sentence."""

    rule: Mapping[str, Any]
    outcome: str
    said: str


def _measure(path: Path, result: Mapping[str, Any], of: str) -> float:
    name, _, at = of.partition("@")
    with suppress(UserError, ValueError, TypeError):
        if not at and isinstance(result.get(name), (int, float)):
            return float(result[name])
        rows = reading.metrics(path)
        values = [float(row[name]) for row in rows if row.get(name)]
        if not values:
            return math.nan
        if at == "first":
            return values[0]
        if at == "best":
            return (min if lower_is_better(name) else max)(values)
        if at == "mean":  # the first epoch warms caches up
            return fmean(values[1:] or values)
        epoch = str(result.get("tested_epoch") or "") if not at else ""
        return next((float(row[name]) for row in rows if row.get("epoch") == epoch and row.get(name)), values[-1])
    return math.nan


def overall(judged: Sequence[Judged]) -> str:
    """Return the outcome of a study: it agrees if all its rules do, and does not if one does not."""
    outcomes = [one.outcome for one in judged]
    if DOES_NOT in outcomes:
        return DOES_NOT
    return UNDECIDED if UNDECIDED in outcomes or not outcomes else AGREES


def judge(rule: Mapping[str, Any], settings: Sequence[Setting], classes: int = 0) -> Judged:
    """Return the outcome of one rule on the settings of a study, with `classes` for the loss of chance."""
    kind, of = str(rule["kind"]), str(rule["of"])
    by_name = {setting.name: setting for setting in settings}
    names = [str(rule[key]) for key in ("value", "than") if key in rule]
    if absent := [name for name in names if name not in by_name]:
        return Judged(rule, UNDECIDED, f"{kind} of {of}: {absent[0]} was not run")
    chosen = [by_name[name] for name in names]
    outcome, said = _JUDGES[kind](rule, chosen or list(settings), classes)
    if torn := [setting for setting in chosen if setting.torn]:
        said += "".join(map(_torn, torn))
        # to lose seeds is to be worse: it can only confirm that the first value is worse, or that the second is better
        sure = {AGREES: chosen[0]} | ({DOES_NOT: chosen[1]} if len(chosen) > 1 else {})
        if kind != "worse_than" or torn != [sure.get(outcome)]:
            outcome = UNDECIDED
    return Judged(rule, outcome, said)


Outcome = tuple[str, str]


def _gain(one: Setting, other: Setting, of: str, than_of: str) -> float:
    """By how much `one` is worse than `other`, positive for worse; infinite if all its runs diverged."""
    if one.diverged and other.measured(than_of):
        return math.inf
    mine, others = one.measured(of), other.measured(than_of)
    if not mine or not others:
        return math.nan
    worse = fmean(mine) - fmean(others)
    return worse if lower_is_better(of.partition("@")[0]) else -worse


def _worse_than(rule: Mapping[str, Any], chosen: Sequence[Setting], _: int) -> Outcome:
    (one, other), of = chosen, str(rule["of"])
    than_of, by = str(rule.get("than_of", of)), float(rule.get("by", 0.0))
    gain = _gain(one, other, of, than_of)
    near = _noise(one.measured(of), other.measured(than_of))
    than = f"{than_of} of {other.name}" if than_of != of else other.name
    said = f"{of} of {one.name} is {_by(gain, 'worse', 'better')} than {than}; claimed: worse by more than {by:g}"
    return _decided(gain > by and gain > near, gain < by and gain + near < max(by, 1e-12), gain, near), said + _plus(
        near
    )


def _gain_between(rule: Mapping[str, Any], chosen: Sequence[Setting], _: int) -> Outcome:
    (one, other), of = chosen, str(rule["of"])
    low, high = float(rule["low"]), float(rule["high"])
    gain, near = -_gain(one, other, of, of), _noise(one.measured(of), other.measured(of))
    said = f"{of} of {one.name} is {_by(gain, 'better', 'worse')} than {other.name}"
    said += f"; claimed: better by {low:g} to {high:g}"
    holds = low <= gain - near and gain + near <= high
    return _decided(holds, gain + near < low or gain - near > high, gain, near), said + _plus(near)


def _ratio(rule: Mapping[str, Any], chosen: Sequence[Setting], least: bool) -> Outcome:
    (one, other), of, bound = chosen, str(rule["of"]), float(rule["ratio"])
    mine, others = one.measured(of), other.measured(of)
    if not mine or not others or not fmean(others):
        return UNDECIDED, f"{of}: no number for {one.name} or {other.name}"
    ratio = fmean(mine) / fmean(others)
    near = abs(_noise(mine, others) / fmean(others))
    claimed = f"at {'least' if least else 'most'} {bound:g}"
    said = f"{of} of {one.name} is {ratio:.3g} times that of {other.name}; claimed: {claimed}"
    holds, sure = ratio >= bound if least else ratio <= bound, abs(ratio - bound) > near
    return _decided(holds and sure, not holds and sure, ratio, near), said + _plus(near)


def _no_difference(rule: Mapping[str, Any], chosen: Sequence[Setting], _: int) -> Outcome:
    (one, other), of, within = chosen, str(rule["of"]), float(rule["within"])
    apart = abs(_gain(one, other, of, of))
    near = _noise(one.measured(of), other.measured(of))
    said = f"{of} of {one.name} and {other.name} differ by {apart:.4g}; claimed: at most {within:g}"
    return _decided(max(apart, near) <= within, apart - near > within, apart, near), said + _plus(near)


def _near(rule: Mapping[str, Any], chosen: Sequence[Setting], classes: int) -> Outcome:
    of, within, number = str(rule["of"]), float(rule["within"]), rule["number"]
    target = (math.log(classes) if classes else math.nan) if number == CHANCE else float(number)
    values = chosen[0].measured(of)
    mean = fmean(values) if values else math.nan
    near = margin([values], len(values), len(values)) / math.sqrt(2)
    apart = abs(mean - target)
    said = f"{of} of {chosen[0].name} is {mean:.4g}; claimed: {target:.4g} within {within:g}"
    return _decided(max(apart, near) <= within, apart - near > within, apart, near), said + _plus(near)


def _best_inside(rule: Mapping[str, Any], settings: Sequence[Setting], _: int) -> Outcome:
    """Whether both ends are worse than the best value between them; an end whose runs all diverged is worse."""
    of, claimed = str(rule["of"]), "; claimed: best inside"
    ends, between = [*settings[:1], *settings[1:][-1:]], settings[1:-1]
    scored = [s for s in between if s.measured(of)]
    if len(ends) < 2 or not between or not all(s.measured(of) or s.diverged for s in ends):
        return UNDECIDED, f"{of}: fewer than three values, or an end without a score{claimed}"
    if not scored:
        only = all(s.diverged for s in between) and not all(s.diverged for s in ends)
        return DOES_NOT if only else UNDECIDED, f"{of}: no value between the ends has a score{claimed}"
    best = min(scored, key=lambda s: (s.torn, _gain(s, scored[0], of, of)))
    gains = [_gain(end, best, of, of) for end in ends]
    noises = [_noise(best.measured(of), end.measured(of)) for end in ends]
    holds = all(gain > noise for gain, noise in zip(gains, noises, strict=True)) and not best.torn
    fails = any(
        gain < -noise and not any(s.torn for s in (end, *between))
        for end, gain, noise in zip(ends, gains, noises, strict=True)
    )
    said = f"{of} of {ends[0].name} is {_by(gains[0], 'worse', 'better')}, and of {ends[1].name} "
    said += f"{_by(gains[1], 'worse', 'better')}, than of {best.name}, the best between them{claimed}"
    near = math.nan if any(map(math.isnan, noises)) else max(noises)
    return _decided(holds, fails, sum(gains), near), said + _plus(near) + "".join(map(_torn, settings))


def _torn(setting: Setting) -> str:
    count = len(setting.runs or setting.voters)
    return f"; {setting.lost} of {count} seeds of {setting.name} diverged" if setting.torn else ""


_JUDGES: dict[str, Callable[[Mapping[str, Any], Sequence[Setting], int], Outcome]] = {
    "best_inside": _best_inside,
    "worse_than": _worse_than,
    "gain_between": _gain_between,
    "ratio_at_least": lambda rule, chosen, _: _ratio(rule, chosen, True),
    "ratio_at_most": lambda rule, chosen, _: _ratio(rule, chosen, False),
    "no_difference": _no_difference,
    "near": _near,
}


def _noise(one: Sequence[float], other: Sequence[float]) -> float:
    """The difference of the means of two settings that chance makes; of a single one if the other has no score."""
    return margin((one, other), len(one) or len(other), len(other) or len(one))


def _decided(holds: bool, fails: bool, number: float, noise: float) -> str:
    """The outcome; without a number or an estimate of the noise nothing is decided."""
    if math.isnan(number) or math.isnan(noise):
        return UNDECIDED
    return AGREES if holds else DOES_NOT if fails else UNDECIDED


def _by(gain: float, one: str, other: str) -> str:
    if math.isinf(gain):
        return "diverged, so worse"
    return f"{abs(gain):.4g} {one if gain >= 0 else other}"


def _plus(noise: float) -> str:
    return f" (noise {noise:.2g})" if math.isfinite(noise) else " (one seed: no estimate of the noise)"
