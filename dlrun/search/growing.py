"""Beyond the edge of a range: whether the best value of a round lies near one, and the wider range (S3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.analysis.edges import near_edge
from dlrun.errors import UserError
from dlrun.search.plan import Plan, Round
from dlrun.search.space import Axis
from dlrun.search.study import Trial

if TYPE_CHECKING:
    from dlrun.config.compose import Composer

__all__ = ["beyond"]


def beyond(composer: Composer, plan: Plan, now: Round, best: Sequence[Trial], only: str | None = None) -> Round | None:
    """Warn in `now.said` of each edge near the best value; with search.extend return the round beyond it (S3).

    The edge may be that of the stage's range or that of everything searched so far. `only` names the single axis whose
    edges matter.
    """
    said: list[str] = []
    grown = list(now.axes)
    for place, axis in enumerate(now.axes if best else ()):
        value = best[0].values.get(axis.key)
        if (axis.words and not axis.holds(value)) or axis.key != (only or axis.key):
            continue
        axis = axis if axis.words else axis.reaching(value)  # a trial of an earlier stage may lie outside this one's
        near = axis if axis.edge(value) else plan.searched(axis)
        if (side := near.edge(value)) is None:
            continue
        wider = axis.grown(side)
        if value is None or wider is None or not _composes(composer, plan, best[0], wider, side):
            continue  # nothing lies beyond
        ends = near.numbers[0], near.numbers[-1]
        said.append(near_edge(axis.name, value, *ends, side, _advice(plan.search, now, wider)))
        grown[place] = wider
    now.said = said
    if grown == now.axes or not _may_grow(plan.search, now):
        return None
    return plan.wider(grown)


def _may_grow(search: Mapping[str, Any], now: Round) -> bool:
    return bool(search["extend"]) and now.grown < search["max_extend"]


def _advice(search: Mapping[str, Any], now: Round, wider: Axis) -> str:
    if _may_grow(search, now):
        return f"searching {wider.typed()}"
    if search["extend"]:
        return f"the range grew search.max_extend={search['max_extend']} times already; try {wider.typed()}"
    return f"search.extend=true searches there; try {wider.typed()}"


def _composes(composer: Composer, plan: Plan, trial: Trial, axis: Axis, side: str) -> bool:
    """Whether the key takes the far end of a grown range."""
    value = (min if side == "low" else max)(axis.numbers)
    number = int(value) if axis.whole or all(isinstance(c, int) for c in axis.choices or [0.5]) else value
    others = [a.word(trial.values[a.key]) for a in plan.rounds[-1].axes if a.key != axis.key]
    try:
        composer.config(composer.parse([*plan.fixed, *others, f"{axis.key}={number!r}"]))
    except UserError:
        return False
    return True
