"""A search without axes, the most important keys first: `dlrun train -m search=default` (S7).

A first trial has the defaults. Then each step of `search.steps` searches one key on its own scale, and the learning
rate within a factor of 3 of its best again, since the best rate moves with the others (S8). What no step has searched
yet keeps its default, and what an earlier one searched the value of the best trial so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dlrun.config.schema import lookup
from dlrun.errors import UserError
from dlrun.search.plan import Plan, Round
from dlrun.search.sampling import draws
from dlrun.search.space import Axis
from dlrun.search.study import Trial

if TYPE_CHECKING:
    from dlrun.config.compose import Composer

__all__ = ["first", "following", "planned", "share"]

RATE = "optimizer.lr"
MOMENTA = (0.5, 0.9, 0.95, 0.99)  # O1
# trials of a step over a range, as many as are worth it: the rate decides most; a list has one per value
COUNTS = {RATE: 8, "regularizer.dropout": 4}
COUNT = 6
NEAR = 3.0  # factor by which the rate of a later step may differ from the best so far


def planned(
    composer: Composer, axes: Sequence[Axis], fixed: Sequence[str], plain: Mapping[str, Any] | None = None
) -> list[Axis]:
    """Return the axes of all steps, in their order: those that the config has, then other typed ones.

    A key that was typed with one value is omitted, one that was typed as an axis keeps its range. Seeds come first.
    Raises UserError for a word that does not compose, and if no axis is left.
    """
    ends = [a.ends()[0] for a in axes]
    plain = plain or composer.config(composer.parse([*fixed, *ends]))
    typed = {a.name: a for a in axes}
    said = {w.lstrip("+").partition("=")[0] for w in fixed}
    made = []
    for step in plain["search"]["steps"]:
        candidates = list(_STEPS[step](plain))
        if not any(a.name in said for a in candidates):
            fitting = (typed.get(a.name) or _composing(composer, a, [*fixed, *ends]) for a in candidates)
            made += [axis for axis in fitting if axis is not None][:1]
    seeds = [a for a in axes if a.name == "seed"]
    made += [a for a in axes if a.name not in {"seed", *(one.name for one in made)}]
    if not made:
        raise UserError(
            f"search.steps={plain['search']['steps']}: every key of these steps was typed; omit one of them"
        )
    return [*seeds, *made]


def _composing(composer: Composer, axis: Axis, words: Sequence[str]) -> Axis | None:
    """The axis without values that the config refuses; None if it lacks the key."""

    def fits(word: str) -> bool:
        try:
            composer.config(composer.parse([*words, word]))
        except UserError:
            return False
        return True

    if not axis.words:
        return axis if all(map(fits, axis.ends())) else None
    left = tuple(value for value in axis.words if fits(f"{axis.key}={value}"))
    return replace(axis, words=left) if len(left) > 1 else None


def _rates(plain: Mapping[str, Any]) -> Iterator[Axis]:
    if usual := lookup(plain, RATE):
        yield Axis(RATE, (), usual / 100, usual * 10, log=True)


def _momenta(plain: Mapping[str, Any]) -> Iterator[Axis]:
    optimizer = plain["optimizer"]
    if "momentum" in optimizer:
        yield Axis("optimizer.momentum", tuple(map(str, MOMENTA)))
    if betas := optimizer.get("betas"):
        more = "".join(f",{beta}" for beta in betas[1:])
        yield Axis("optimizer.betas", tuple(f"[{m}{more}]" for m in MOMENTA))


def _batches(plain: Mapping[str, Any]) -> Iterator[Axis]:
    usual = plain["trainer"]["batch_size"]
    yield Axis("trainer.batch_size", tuple(str(n) for n in (usual // 4, usual // 2, usual * 2, usual * 4) if n))


def _penalties(plain: Mapping[str, Any]) -> Iterator[Axis]:
    """One key: a penalty and the decay of an optimizer do nearly the same."""
    usual = plain["optimizer"].get("weight_decay")
    if usual:
        yield Axis("optimizer.weight_decay", (), usual / 100, min(usual * 100, 1.0), log=True)
    elif usual is not None:
        yield Axis("optimizer.weight_decay", (), 1e-6, 1e-1, log=True)
    yield Axis("regularizer.l2", (), 1e-6, 1e-1, log=True)


def _dropout(plain: Mapping[str, Any]) -> Iterator[Axis]:
    yield Axis("regularizer.dropout", (), 0.0, 0.6)


_STEPS = {
    "learning_rate": _rates,
    "momentum": _momenta,
    "batch_size": _batches,
    "penalty": _penalties,
    "dropout": _dropout,
}


def first(plan: Plan, plain: Mapping[str, Any]) -> Round:
    """Return the round of the defaults: one trial per seed. `plain` is the config without any axis."""
    seeds, axes = _split(plan)
    usual = str(plain["choices"][axes[0].name]) if axes[0].group else _text(lookup(plain, axes[0].name))
    return Round(0, 0, 0, _repeats(seeds), [*seeds, replace(axes[0], words=(usual,))])


def _text(value: Any) -> str:
    return repr(value).replace(" ", "") if isinstance(value, list) else repr(value) if value is not None else "null"


def following(plan: Plan, best: Sequence[Trial]) -> Round | None:
    """Return the round of the next step around the best trials so far, best first; None after the last step."""
    now, (seeds, axes) = plan.rounds[-1], _split(plan)
    if now.stage >= len(axes) or not best:
        return None
    own, values = axes[now.stage], best[0].values
    held = [_held(a, values) for a in axes[: now.stage] if a.key in values]
    count = _counts(plan)[now.stage]
    shape = [*held, own]
    new = draws(plan.search["sampler"], shape, count) * _repeats(seeds)
    return Round(now.stage + 1, 0, now.first + now.new, new, [*seeds, *shape], grown=now.grown)


def _held(axis: Axis, values: Mapping[str, Any]) -> Axis:
    """An axis of an earlier step at its best value; the learning rate near it."""
    value = values[axis.key]
    if axis.name == RATE:
        return Axis(axis.key, (), value / NEAR, value * NEAR, log=True)
    return replace(axis, words=(axis.word(value).partition("=")[2],))


def share(plan: Plan, stage: int) -> float:
    """Return the share of `search.hours` after which a step is over: that of its trials and of those before."""
    counts = [1, *_counts(plan)]
    return sum(counts[: stage + 1]) / sum(counts)


def _counts(plan: Plan) -> list[int]:
    """Trials of each step; with `search.trials` that many in all, the first with the defaults included."""
    axes = _split(plan)[1]
    usual = [len(a.words) or COUNTS.get(a.name, COUNT) for a in axes]
    if not (asked := plan.search["trials"]):
        return usual
    ends = [round((asked - 1) * sum(usual[:k]) / sum(usual)) for k in range(len(usual) + 1)]
    return [max(1, high - low) for low, high in pairwise(ends)]


def _split(plan: Plan) -> tuple[list[Axis], list[Axis]]:
    """The axis of seeds, if any, and those of the steps in their order."""
    return [a for a in plan.axes if a.name == "seed"], [a for a in plan.axes if a.name != "seed"]


def _repeats(seeds: Sequence[Axis]) -> int:
    return len(seeds[0].words) if seeds else 1
