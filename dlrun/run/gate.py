"""The gate before training: the checks, told to people and written beside the run (`dlrun train`, `dlrun check`)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from dlrun.config.settings import Settings
from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.folders.run import Run
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.training.experiment import Experiment

__all__ = ["check_only", "headline", "passed", "tell_dropped"]


def passed(exp: Experiment, run: Run | None, screen: Screen) -> bool:
    """Run the checks, show and keep what they say, and say whether training may begin."""
    from dlrun import checks

    told = len(exp.data.dropped)
    results = checks.run(exp)
    tell_dropped(exp, run, screen, told)  # the audit has read the test split
    if run is not None:
        run.write_checks([r.row() for r in results])
        _write_audit(exp, run, screen, {r.check for r in results if r.status != "skip"})
        run.update_result(checks=checks.worst(results))
    screen.show(lambda: checks.table(results), checks.lines(results))
    failed = [r.check for r in results if r.status == "fail"]
    if not failed:
        return True
    if exp.cfg.check.warn_only:
        screen.say(f"failed: {', '.join(failed)}; going on, since check.warn_only=true", style="bold yellow")
        return True
    screen.say(
        f"failed: {', '.join(failed)}; check.warn_only=true trains all the same, check=none without checks",
        style="bold red",
    )
    return False


def _write_audit(exp: Experiment, run: Run, screen: Screen, checked: set[str]) -> None:
    from dlrun.data.audit import audit

    # after these the test split has been read and compared; nothing else may read it so early (D4)
    if checked & {"data_audit", "data_duplicates"} and (found := audit(exp.data).findings):
        file = run.write_audit([one.row() for one in found])
        screen.say(f"all {len(found)} findings about the data are listed in {file}")


def check_only(cfg: Settings, *, as_json: bool = False) -> int:
    """Run the checks alone, in no folder, and return the exit code."""
    from dlrun import checks
    from dlrun.training.experiment import build

    if not cfg.check.enabled:
        raise UserError(
            "check=none leaves nothing to check; leave it away, or choose: check=default check.only=[gradient]"
        )
    screen = Screen()
    exp = build(cfg)
    if as_json:
        results = checks.run(exp)
        if exp.data.dropped:
            print(_dropped([item.id for item in exp.data.dropped], "", most=None), file=sys.stderr)
        print(json.dumps([r.row() for r in results], indent=1))
        return Exit.CHECK_FAILED if checks.worst(results) == "fail" and not cfg.check.warn_only else Exit.FINE
    screen.say(headline(exp))
    tell_dropped(exp, None, screen)
    return Exit.FINE if passed(exp, None, screen) else Exit.CHECK_FAILED


def headline(exp: Experiment) -> str:
    """Say in one line what is about to be trained."""
    cfg, names = exp.cfg, exp.cfg.choices
    weights = sum(p.numel() for p in exp.model.parameters())
    parts = [
        f"{names.get('dataset', 'data')}: {len(exp.data.train):,} train and {len(exp.data.val):,} val images",
        f"{exp.num_classes} classes",
        f"{names.get('model', 'model')} with {weights:,} parameters",
        f"{names.get('optimizer', 'optimizer')} at lr {cfg.optimizer['lr']:g}, {names.get('scheduler', 'schedule')}",
        f"{exp.device.type} {str(exp.dtype).removeprefix('torch.')}",
        f"seed {cfg.seed}",
    ]
    return "; ".join(parts)


def tell_dropped(exp: Experiment, run: Run | None, screen: Screen, told: int = 0) -> None:
    """Say and list what dataset.on_bad=drop left out (D1), after the first `told`, which were said before."""
    dropped = exp.data.dropped
    new = [item.id for item in dropped[told:]]
    if not new:
        return
    where = f"; all are listed in {run.write_dropped([asdict(item) for item in dropped])}" if run is not None else ""
    screen.say(_dropped(new, where, most=None if run is None else 10), style="yellow")


def _dropped(ids: list[str], where: str, most: int | None) -> str:
    """One line; all of them where no folder lists them."""
    shown = ", ".join(ids[:most]) + (" …" if most is not None and len(ids) > most else "")
    return f"left out as bad (dataset.on_bad=drop), {len(ids)} in number: {shown}{where}"
