"""What follows a round of a sweep: beyond an edge, the next stage, the next step (S3, S4, S7): `dlrun train -m`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlrun.search import growing, ladder, steps
from dlrun.search.plan import Plan, Round
from dlrun.search.results import Results
from dlrun.vocabulary import Status

if TYPE_CHECKING:
    from dlrun.config.compose import Composer

__all__ = ["following", "heading"]


def following(composer: Composer, plan: Plan, results: Results) -> tuple[Round | None, list[str]]:
    """Return the round after the last one, None after the end, and what to say of the last one.

    Edge warnings are kept in it, for the page.
    """
    if plan.purpose:
        plan.rounds[-1].said = []
        return ladder.following(plan, results) if "ladder" in plan.purpose else (None, [])
    made = _following(composer, plan, results)
    return made, plan.rounds[-1].said or []


def _following(composer: Composer, plan: Plan, results: Results) -> Round | None:
    now, best = plan.rounds[-1], results.ranked(plan.stage)
    if not plan.search.get("steps"):
        fit = [
            t for t in best if results.status(t.number) in (Status.COMPLETED, Status.PAUSED)
        ]  # others cannot continue
        return growing.beyond(composer, plan, now, best) or plan.next_stage(fit)
    overall = results.ranked([n for n in results.trials if results.status(n) == Status.COMPLETED])
    led = best if overall and overall[0].number in plan.stage else []  # else the edge is not that of the best
    own = now.axes[-1].key  # the rate is searched near its best, so that it may always be near an edge
    return growing.beyond(composer, plan, now, led, own) or steps.following(plan, overall)


def heading(plan: Plan) -> str:
    """Return what the last round is, as the start of the line that announces it; empty for a plain search."""
    now = plan.rounds[-1]
    if "ladder" in plan.purpose:
        return f"round {now.stage}: "
    if plan.search.get("steps"):
        return f"step {now.stage}, {now.axes[-1].name}: " if now.stage else "the defaults: "
    return f"stage {now.stage}, " if plan.search["stages"] else ""
