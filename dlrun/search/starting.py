"""The start of a sweep: its words become a plan, and a folder is locked (`dlrun train -m …`, `dlrun resume SWEEP`)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config import extras
from dlrun.config.trust import allowed
from dlrun.errors import UserError
from dlrun.folders import sweep as sweep_folder
from dlrun.search import ladder, steps, storage
from dlrun.search.plan import Plan
from dlrun.search.space import Axis, check, grid, plain_words, read, size
from dlrun.search.sweeper import Sweep

if TYPE_CHECKING:
    from dlrun.config.compose import Composed, Composer

__all__ = ["again", "points", "sweep"]

Asked = Callable[
    ["Composer", Sequence[Axis], Sequence[str], Mapping[str, Any]], tuple[list[Axis], list[str], dict[str, Any]]
]


def sweep(
    composer: Composer,
    overrides: Sequence[str],
    flags: dict[str, Any] | None = None,
    begun: Callable[[Path], object] | None = None,
    asked: Asked | None = None,
) -> int:
    """Search over the axes in the overrides; returns 0, 5 when trials failed, 130 when interrupted.

    `begun` gets the folder before the first trial starts. `asked` turns what was typed into the axes, the shared words
    and the purpose of a ladder or a study.
    """
    axes, fixed = read(composer, overrides)
    first = composer.compose(composer.parse([*fixed, *(a.ends()[0] for a in axes)]))
    url, fixed = storage.typed(fixed, first.config)
    purpose: dict[str, Any] = {}
    if asked is not None:
        axes, fixed, purpose = asked(composer, axes, fixed, first.config)
        first = composer.compose(composer.parse([*fixed, *(a.ends()[0] for a in axes)]))
    first.config["search"]["storage"] = storage.public(url) or None
    if first.config["search"]["steps"]:
        axes = steps.planned(composer, axes, fixed, first.config)
    plan = Plan.asked(fixed, axes, first.config["search"], flags or {})
    if plan.search["steps"]:
        plan.rounds = [steps.first(plan, first.config)]
    plan.purpose = purpose
    if "ladder" in purpose:
        plan.rounds = [ladder.first(plan)]
    extras.require_launcher(first.launcher)
    check(composer, axes, fixed, plan.search["sampler"] == "grid")
    with sweep_folder.open_sweep(first.config["sweep"]["dir"], str(first.config["run"]["name"] or "")) as folder:
        if begun is not None:
            begun(folder)
        if sweep_folder.is_sweep(folder):
            old = Plan.recorded(sweep_folder.plan(folder))
            old.renew(plan, str(folder))
            plan = old
        return _run(composer, plan, folder, first, url)


def again(composer: Composer, folder: Path, typed: Sequence[str]) -> int:
    """Continue a sweep as it was planned; `typed` words allow what its files may not. Raises UserError if some lack."""
    plan = Plan.recorded(sweep_folder.plan(folder))
    stored = [w for w in plan.fixed if w.lstrip("+").split("=")[0] not in ("trust", "sweep.dir")]
    plan.fixed = [w for w in stored if allowed(w, ())] + list(typed)
    keys = [w.lstrip("+").split("=")[0] for w in typed]
    lacking = [w for w in stored if not allowed(w, ()) and w.lstrip("+").split("=")[0] not in keys]
    if (url := plan.search.get("storage")) and storage.KEY not in keys:
        lacking.append(storage.word(url))
    if lacking:
        again = shlex.join(["dlrun", "resume", str(folder), *typed, *lacking])
        raise UserError(f"{folder}: {lacking[0]}: found in its sweep.yaml, allowed only if it is typed: {again}")
    first = composer.compose(composer.parse([*plan.fixed, *(a.ends()[0] for a in plan.axes)]))
    url, plan.fixed = storage.typed(plan.fixed, first.config)
    plan.search["storage"] = first.config["search"]["storage"]
    extras.require_launcher(first.launcher)
    check(composer, plan.axes, plan.fixed, False)
    with sweep_folder.open_sweep(str(folder)) as held:
        return _run(composer, plan, held, first, url)


def _run(composer: Composer, plan: Plan, folder: Path, first: Composed, url: str) -> int:
    if url and not plan.study:
        plan.study = storage.named(folder)
    return Sweep(composer, plan, folder, first.config, first.launcher, url).run()


def points(composer: Composer, overrides: Sequence[str]) -> list[list[str]]:
    """Return the swept words of every point of a grid, in order. Raises UserError for the first invalid one."""
    axes, fixed = read(composer, plain_words(overrides))
    check(composer, axes, fixed, True)
    return [[a.word(grid(axes, n)[a.key]) for a in axes] for n in range(size(axes))]
