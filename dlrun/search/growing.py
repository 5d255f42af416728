"""Beyond the edge of a range: whether the best value lies near one, and the wider range (S3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.errors import UserError
from dlrun.search.plan import Round
from dlrun.search.space import Axis

__all__ = ["beyond"]
if TYPE_CHECKING:
    from dlrun.search.study import Trial
    from dlrun.search.sweeper import Sweep


def beyond(sweep: Sweep, now: Round, best: Sequence[Trial]) -> Round | None:
    """Say where the best value of a stage is near an edge; with search.extend return the round beyond it (S3).

    Of the stage's range or of all that was searched: what a stage narrows away from an edge does not end there. The
    page says the last words again.
    """
    search, said = sweep.plan.search, []
    grown = list(now.axes)
    for place, axis in enumerate(now.axes if best else ()):
        value = best[0].values.get(axis.key)
        if axis.words and not axis.holds(value):
            continue
        axis = axis if axis.words else axis.reaching(value)  # one that went on may lie beyond what a stage drew from
        near = axis if axis.edge(value) else sweep.plan.searched(axis)
        if (side := near.edge(value)) is None:
            continue
        wider = axis.grown(side)
        if wider is None or not _composes(sweep, best[0], wider, side):
            continue  # nothing lies beyond
        low, high = near.numbers[0], near.numbers[-1]
        said.append(
            f"border: the best {axis.name}, {value:.4g}, is within a tenth of the {side} edge of "
            f"{low:.4g} to {high:.4g}: better ones may lie beyond it; {_advice(search, now, wider)}"
        )
        grown[place] = wider
    now.said = said
    for words in said:
        sweep.screen.say(words, style="yellow")
    if grown == now.axes or not _may_grow(search, now):
        return None
    return sweep.plan.wider(grown)


def _may_grow(search: Mapping[str, Any], now: Round) -> bool:
    return bool(search["extend"]) and now.grown < search["max_extend"]


def _advice(search: Mapping[str, Any], now: Round, wider: Axis) -> str:
    if _may_grow(search, now):
        return f"searching {wider.typed()}"
    if search["extend"]:
        return f"it grew search.max_extend={search['max_extend']} times; try {wider.typed()}"
    return f"search.extend=true searches there; try {wider.typed()}"


def _composes(sweep: Sweep, trial: Trial, axis: Axis, side: str) -> bool:
    """Say whether the far end of a grown range is a value that the key takes."""
    value = (min if side == "low" else max)(axis.numbers)
    number = int(value) if axis.whole or all(isinstance(c, int) for c in axis.choices or [0.5]) else value
    others = [a.word(trial.values[a.key]) for a in sweep.plan.rounds[-1].axes if a.key != axis.key]
    try:
        sweep.composer.config(sweep.composer.parse([*sweep.plan.fixed, *others, f"{axis.key}={number!r}"]))
    except UserError:
        return False
    return True
