"""A ladder of capacities as a sweep: which rung is trained next (`dlrun ladder model.depth=2,4 model.width=16,32`, M8).

The first rung has the first value of every key and no regularisation, so that the network can overfit. Each further
rung has the next value of one key, in turns. It is kept if validation improves by more than noise; a key that gains
nothing keeps its value. The last kept rung is then regularised by one key after the other. A round of the sweep is one
rung, or the values of one regularising key, each with every seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dlrun.analysis import scores
from dlrun.analysis.ladder import Climb, Rung, climb, words
from dlrun.config.schema import lookup
from dlrun.errors import UserError
from dlrun.search.plan import Plan, Round
from dlrun.search.results import Results
from dlrun.search.space import Axis, size

if TYPE_CHECKING:
    from dlrun.config.compose import Composer

__all__ = ["SEEDS", "asked", "first", "following", "sentence"]

SEEDS = "seed=1,2,3"  # unless some are typed
PENALTIES, DROPOUTS = ("0.0001", "0.001", "0.01"), ("0.2", "0.5")  # R1, R2
# what else regularises, off at 0
FURTHER = ("regularizer.l1", "regularizer.label_smoothing", "regularizer.max_norm", "model.stochastic_depth")
FORM = "expected keys with several values, the smallest first, such as model.depth=2,4,6"


def asked(
    composer: Composer, axes: Sequence[Axis], fixed: Sequence[str], plain: Mapping[str, Any]
) -> tuple[list[Axis], list[str], dict[str, Any]]:
    """Return the axes of a ladder, the words that its trials share, and its purpose for sweep.yaml.

    `plain` is the config as typed: what regularises in it is tried on the chosen rung. Raises UserError for axes that
    are no ladder.
    """
    grow = [a for a in axes if a.name != "seed"]
    if not grow:
        single = next((f"{w}: one value" for w in fixed if w.startswith("model.")), "no key of capacity")
        raise UserError(f"dlrun ladder: {single}; {FORM}")
    for axis in grow:
        if not axis.words:
            raise UserError(f"{axis.typed()}: a range has no rungs; {FORM}")
        if axis.numbers and any(b <= a for a, b in pairwise(map(float, axis.choices))):
            raise UserError(f"{axis.typed()}: the values do not rise; {FORM}")
    search = plain["search"]
    if search["steps"] or search["stages"] or search["sampler"] not in ("auto", "grid"):
        raise UserError("dlrun ladder: it chooses its trials by itself; omit search=")
    grown = {a.name for a in grow}
    regular = [a for a in _regularising(plain) if a.name not in grown]
    seeds = [a for a in axes if a.name == "seed"]
    taken = {a.name for a in regular if a.group}
    shared = [w for w in fixed if w.lstrip("+").partition("=")[0] not in taken]
    purpose = {"ladder": {"grow": [a.name for a in grow], "regularise": [a.name for a in regular]}}
    return [*grow, *regular, *seeds], shared, purpose


def _regularising(plain: Mapping[str, Any]) -> Iterator[Axis]:
    """The keys that regularise, each with its value without first: the config's own values, else the usual ones."""
    if (augment := plain["choices"].get("augment")) not in (None, "none"):
        yield Axis("augment", ("none", str(augment)), group=True)
    if (objective := plain["choices"].get("objective")) in ("mixup", "cutmix"):
        yield Axis("objective", ("supervised", str(objective)), group=True)
    decay, penalty = plain["optimizer"].get("weight_decay"), lookup(plain, "regularizer.l2")
    if penalty:
        yield Axis("regularizer.l2", ("0", str(penalty)))
    if decay:
        yield Axis("optimizer.weight_decay", ("0", str(decay)))
    elif not penalty:
        yield Axis("regularizer.l2" if decay is None else "optimizer.weight_decay", ("0", *PENALTIES))
    if "dropout" in plain["model"]:
        rate = lookup(plain, "regularizer.dropout")
        yield Axis("regularizer.dropout", ("0", str(rate)) if rate else ("0", *DROPOUTS))
    yield from (Axis(name, ("0", str(value))) for name in FURTHER if (value := lookup(plain, name)))


def first(plan: Plan) -> Round:
    """Return the round of the smallest rung, without regularisation."""
    return _round(plan, 1, 0, {a.name: (a.words[0],) for a in plan.axes if a.name != "seed"})


def _round(plan: Plan, stage: int, number: int, values: Mapping[str, tuple[str, ...]]) -> Round:
    axes = [replace(a, words=values[a.name]) if a.name != "seed" else a for a in plan.axes]
    return Round(stage, 0, number, size(axes), axes)


def following(plan: Plan, results: Results) -> tuple[Round | None, list[str]]:
    """Return the round of the next rung, None after the last, and what to say of the last round."""
    found = _climb(plan, results)
    said = [sentence(rung, results.metric) for rung in found.rungs if set(rung.trials) & set(plan.rounds[-1].numbers)]
    if found.chosen is None:
        return None, said
    tried = _next(plan, found)
    if tried is None:
        return None, said
    held = {name: (word,) for name, word in found.chosen.values.items()}
    now = plan.rounds[-1]
    return _round(plan, now.stage + 1, now.first + now.new, {**held, **tried}), said


def _climb(plan: Plan, results: Results) -> Climb:
    ladder, rounds = plan.purpose["ladder"], plan.record()["rounds"]
    count = 0
    if results.metric == "val_acc":
        count = max((scores.images(results.result(n), "val") for n in results.trials), default=0)

    def score(number: int) -> float | None:
        return results.score(number) if number in results.trials else None

    return climb(rounds, ladder["grow"], score, lower=results.minimise, count=count)


def _next(plan: Plan, found: Climb) -> dict[str, tuple[str, ...]] | None:
    """What the next round tries: the next value of one key of capacity, or all values of a regularising one."""
    axes = {a.name: a for a in plan.axes}
    ladder, chosen = plan.purpose["ladder"], found.chosen
    assert chosen is not None
    grow: list[str] = ladder["grow"]
    regularised = {r.key for r in found.rungs if not r.grows}
    if not regularised:
        over = {r.key for r in found.rungs if r.key and not r.kept}  # brought nothing
        last = next((r.key for r in found.rungs[::-1] if r.key), grow[-1])
        turns = grow[grow.index(last) + 1 :] + grow[: grow.index(last) + 1]
        for name in turns:
            place = axes[name].words.index(chosen.values[name]) + 1
            if name not in over and place < len(axes[name].words):
                return {name: (axes[name].words[place],)}
    for name in ladder["regularise"]:
        others = axes[name].words[1:]
        if others and name not in regularised:
            return {name: others}
    return None


def sentence(rung: Rung, metric: str) -> str:
    """Return what came of a rung, in one line."""
    said = f"rung {rung.number}, {words(rung)}: "
    if not rung.scores:
        return said + "no score"
    said += f"{metric} {rung.mean:.4f}"
    if not rung.key:
        return said
    change = "better by" if rung.gain > 0 else "worse by" if rung.gain < 0 else "different by"
    said += f", {change} {abs(rung.gain):.4f}, noise {rung.noise:.4f}"
    return said + (": kept" if rung.kept else ": not kept")
