"""The plan of a sweep and its rounds so far: sweep.yaml, from which `dlrun resume SWEEP` continues.

A round trains new trials over some axes, and trials of earlier rounds, up to an epoch. A plain search has one round, a
staged search one per stage (S4), and each growth of a range adds one to its stage (S3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dlrun.errors import UserError
from dlrun.search.sampling import draws, pick
from dlrun.search.space import Axis, refuse_shared, size
from dlrun.search.study import Trial

__all__ = ["Plan", "Round"]

# may differ between two calls of one sweep: how it runs, not what it searches
FREE: tuple[str, ...] = (
    "search.retries",
    "search.timeout",
    "search.extend",
    "search.max_extend",
    "search.trials",
    "search.prune",
    "search.hours",
    "search.storage",
)
FREE += ("run.name", "run.tags", "run.note")  # say what the sweep is for
FREE += ("sweep.dir", "trust", "hydra/launcher", "hydra.launcher", "trainer.report")
FACTORS = (10.0, 3.0)  # width of the ranges of the second stage, and of those after it (S4)


@dataclass
class Round:
    """New trials `first` to first + new - 1 over `axes`, and `kept` ones, trained up to `epochs` (0: all)."""

    stage: int
    epochs: int
    first: int
    new: int
    axes: list[Axis]
    kept: list[int] = field(default_factory=list)
    grown: int = 0  # how often ranges were grown before it, in this stage and earlier ones
    said: list[str] | None = None  # edge warnings, once the round is over; the page repeats them

    @property
    def numbers(self) -> list[int]:
        """The trials of the round."""
        return [*self.kept, *range(self.first, self.first + self.new)]


@dataclass
class Plan:
    """A sweep: what all trials share as overrides, the axes, the settings under `search`, the rounds so far."""

    fixed: list[str]
    axes: list[Axis]
    search: dict[str, Any]
    flags: dict[str, Any]
    rounds: list[Round]
    spent: float = 0.0  # seconds that the sweep ran, before this process
    purpose: dict[str, Any] = field(default_factory=dict)  # of a ladder or a study: what it asks
    study: str = ""  # its name in a database

    @classmethod
    def asked(cls, fixed: list[str], axes: list[Axis], search: dict[str, Any], flags: dict[str, Any]) -> Plan:
        """Return a new plan with its first round. Raises UserError for an unsuitable sampler or malformed stages."""
        search = {**search, "sampler": pick(search["sampler"], axes)}
        ranges = [a.name for a in axes if not a.words]
        if search["sampler"] == "grid" and ranges:
            raise UserError(f"search=grid: {ranges[0]} is a range; list its values, or choose search=grid_jitter")
        stages = search["stages"] or [{"epochs": 0}]
        for stage in stages:
            if not isinstance(stage, dict) or set(stage) - {"epochs", "keep"} or type(stage.get("epochs")) is not int:
                raise UserError(f"search.stages: {stage}: expected {{epochs: 5, keep: 0.3}}")
        first = Round(1, stages[0]["epochs"], 0, draws(search["sampler"], axes, search["trials"]), axes)
        return cls(fixed, axes, search, flags, [first])

    def record(self) -> dict[str, Any]:
        """Return plain values for sweep.yaml."""
        rounds = [{**asdict(r), "axes": [a.record() for a in r.axes]} for r in self.rounds]
        shared = {"fixed": self.fixed, "search": self.search, "flags": self.flags}
        own: dict[str, Any] = {"purpose": self.purpose} if self.purpose else {}
        own |= {"study": self.study} if self.study else {}
        return {**shared, "axes": [a.record() for a in self.axes], "rounds": rounds, "spent": self.spent, **own}

    @classmethod
    def recorded(cls, found: dict[str, Any]) -> Plan:
        """Return the plan that `record` wrote. Raises UserError for anything else."""
        try:
            rounds = [Round(**{**r, "axes": [Axis.recorded(a) for a in r["axes"]]}) for r in found["rounds"]]
            axes = [Axis.recorded(a) for a in found["axes"]]
            refuse_shared(a.name for a in [*axes, *(a for r in rounds for a in r.axes)])
            if not axes or not rounds or not all(r.axes for r in rounds):
                raise UserError("sweep.yaml: expected axes and rounds, found none")
            shared = list(found["fixed"]), axes, dict(found["search"]), dict(found["flags"]), rounds
            last = float(found.get("spent") or 0.0), dict(found.get("purpose") or {}), str(found.get("study") or "")
            return cls(*shared, *last)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"sweep.yaml: not a sweep of this dlrun: {error}") from error

    def renew(self, other: Plan, where: str) -> None:
        """Take over the settings that may change. Raises UserError that names one that may not."""
        if self.purpose != other.purpose:
            kinds = [next(iter(one.purpose), "search") for one in (self, other)]
            raise UserError(f"{where} contains a {kinds[0]}, not this {kinds[1]}; choose another sweep.dir=")
        for was, now in ((_words(self), _words(other)), (_settings(self), _settings(other))):
            if gone := [w for w in was if w not in now] or [w for w in now if w not in was]:
                kind = "has" if gone[0] in was else "lacks"
                raise UserError(
                    f"{where} contains a sweep that {kind} {gone[0]}; type the same words, or another sweep.dir="
                )
        for key in ("retries", "timeout", "extend", "max_extend", "prune", "trials", "hours", "storage"):
            self.search[key] = other.search.get(key)
        self.fixed, self.flags = other.fixed, other.flags
        more = other.rounds[0].new
        if more > self.rounds[0].new:
            if len(self.rounds) > 1:
                raise UserError(f"search.trials={more}: {where} is past its first round; choose another sweep.dir=")
            self.rounds[0].new = more

    @property
    def stage(self) -> list[int]:
        """The trials of the current stage, of all its rounds."""
        return sorted({n for r in self.rounds if r.stage == self.rounds[-1].stage for n in r.numbers})

    def values(self, key: str, default: str) -> tuple[str, ...]:
        """Return the values of a key over all trials: those of its list, else the `default` that they share."""
        return next((axis.words for axis in self.axes if axis.name == key and axis.words), (default,))

    def searched(self, axis: Axis) -> Axis:
        """Return an axis over everything that all rounds searched."""
        ranges = [a for r in self.rounds for a in r.axes if a.key == axis.key]
        low, high = min(a.low for a in ranges), max(a.high for a in ranges)
        return axis if axis.words else replace(axis, low=low, high=high)

    def wider(self, axes: list[Axis]) -> Round:
        """Return another round of this stage over wider ranges: all new points of lists, else as many trials as now."""
        now = self.rounds[-1]
        new = size(axes) - size(now.axes) if all(a.words for a in axes) else len(now.numbers)
        return Round(now.stage, now.epochs, now.first + now.new, new, axes, grown=now.grown + 1)

    def next_stage(self, best: Sequence[Trial]) -> Round | None:
        """Return the round of the next stage from the trials of this one, best first; None after the last (S4)."""
        now, stages = self.rounds[-1], self.search["stages"]
        if now.stage >= len(stages) or not best:
            return None
        asked = stages[now.stage]
        kept = best[: max(1, math.ceil(asked.get("keep", 0.3) * len(best)))]
        factor = FACTORS[min(now.stage - 1, len(FACTORS) - 1)]
        axes = [
            a.narrowed([t.values[a.key] for t in kept if a.holds(t.values[a.key])], kept[0].values[a.key], factor)
            for a in now.axes
        ]
        fresh = math.floor(self.search["fresh"] * len(kept)) if any(not a.words for a in axes) else 0
        return Round(
            now.stage + 1, asked["epochs"], now.first + now.new, fresh, axes, [t.number for t in kept], now.grown
        )


def _words(plan: Plan) -> list[str]:
    free = [w for w in plan.fixed if w.lstrip("+").split("=")[0].startswith(FREE)]
    # the keys below search are compared in `_settings`
    fixed = [w for w in plan.fixed if w not in free and not w.startswith("search")]
    return [a.typed() for a in plan.axes] + fixed


def _settings(plan: Plan) -> list[str]:
    # older sweeps lack the key of steps
    found = {"steps": [], **plan.search}
    return [f"search.{k}={v}" for k, v in sorted(found.items()) if f"search.{k}" not in FREE]
