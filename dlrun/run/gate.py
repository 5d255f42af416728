"""The gate before training: the checks, shown and written beside the run (`dlrun train`, `dlrun check`; C1-C10)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from dlrun.config.settings import Settings
from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.folders.run import Run
from dlrun.training.unselected import note
from dlrun.vocabulary import Exit, Outcome, worst

if TYPE_CHECKING:
    from dlrun.checks.result import Result
    from dlrun.data.audit import Audit
    from dlrun.data.splits import Bad
    from dlrun.training.experiment import Experiment

__all__ = ["Omitted", "accounted", "check_only", "headline", "passed"]

AUDITS = {"data_audit", "data_duplicates"}  # the checks that compare the test split with the others (D4)


class Omitted:
    """Reports each sample that dataset.on_bad=drop omits, on screen and in dropped.csv of the run, once (D1)."""

    def __init__(self, run: Run | None, screen: Screen, known: Iterable[Bad] = ()) -> None:
        self._run, self._screen, self._known = run, screen, [*known]

    def report(self, dropped: Iterable[Bad]) -> None:
        """Report the samples that were not reported before."""
        known = set(self._known)
        new = [item for item in dropped if item not in known]
        if not new:
            return
        self._known += new
        where, most = "", None
        if self._run is not None:
            file = self._run.write_dropped([asdict(item) for item in self._known])
            where, most = f"; all are listed in {file}", 10
        self._screen.say(_sentence(new, where, most), style="yellow")


def _sentence(dropped: Sequence[Bad], where: str = "", most: int | None = None) -> str:
    shown = ", ".join(item.id for item in dropped[:most]) + (" …" if most is not None and len(dropped) > most else "")
    return f"{len(dropped)} bad samples omitted (dataset.on_bad=drop): {shown}{where}"


def accounted(exp: Experiment, run: Run, screen: Screen) -> Omitted:
    """Report bad samples and list what was left out, before an epoch is trained.

    Images of a user that are for the test are decoded as well: the file that cannot be read is named now, not after
    training. Raises UserError for them.
    """
    from dlrun.data.audit import left_out

    omitted = Omitted(run, screen)
    omitted.report(exp.data.dropped)
    if exp.data.notes:
        run.update_result(data_notes=list(exp.data.notes))  # for the end of a sweep
    if exp.data.train.digests is not None:
        omitted.report(exp.data.test().dropped)
    if not run.last.exists() and (rows := [one.row() for one in left_out(exp.data)]):
        run.write_audit(rows)  # the checks write what they find besides
    return omitted


def passed(exp: Experiment, run: Run | None, screen: Screen, omitted: Omitted) -> bool:
    """Run the checks, show and store their results, and return whether training may begin."""
    from dlrun import checks
    from dlrun.data.audit import left_out

    screen.wait("checking …")
    results = checks.run(exp)
    audit = _audit(exp, results)
    if audit is not None:
        omitted.report(exp.data.test().dropped)
    if run is not None:
        run.write_checks([r.row() for r in results])
        if audit is not None and audit.findings:
            file = run.write_audit([one.row() for one in [*audit.findings, *left_out(exp.data)]])
            screen.say(f"{len(audit.findings)} findings about the data are listed in {file}")
        run.update_result(checks=worst(r.status for r in results) or Outcome.PASS)
    _show(results, screen)
    failed = _failed(results)
    if not failed:
        return True
    if exp.cfg.check.warn_only:
        screen.say(f"failed: {', '.join(failed)}; training anyway, since check.warn_only=true", style="bold yellow")
        return True
    hint = "check.warn_only=true trains anyway, check=none disables every check"
    screen.say(f"failed: {', '.join(failed)}; {hint}", style="bold red")
    return False


def _show(results: list[Result], screen: Screen) -> None:
    """Print the count of the results, and in full those with a warning or a failure; with `-v` and in the log all."""
    from dlrun import checks

    for line in checks.lines(results):
        screen.note(line)
    shown = results if screen.verbose else checks.noteworthy(results)
    if shown and screen.live:
        screen.print(checks.table(shown, screen.console.width))
    elif shown:
        screen.print("\n".join(checks.lines(shown)))
    screen.say(checks.summary(results))


def _failed(results: Sequence[Result]) -> list[str]:
    return [r.check for r in results if r.status == Outcome.FAIL]


def _audit(exp: Experiment, results: Iterable[Result]) -> Audit | None:
    """The audit of the data, if one of these checks made it: it is not made for the screen alone (D4)."""
    return exp.data.audited if any(r.check in AUDITS and r.status != Outcome.SKIP for r in results) else None


def check_only(cfg: Settings, *, as_json: bool = False) -> int:
    """Run the checks alone, in no folder, and return the exit code."""
    if not cfg.check.enabled:
        raise UserError("check=none disables every check; omit it, or use check=default check.only=[gradient]")
    screen = Screen(verbose=True)
    from dlrun import checks
    from dlrun.training.experiment import build

    screen.wait("reading the data …")
    exp = build(cfg)
    if as_json:
        results = checks.run(exp)
        dropped = [*exp.data.dropped, *(exp.data.test().dropped if _audit(exp, results) is not None else ())]
        for line in (*exp.data.notes, *([_sentence(dropped)] if dropped else [])):
            print(line, file=sys.stderr)
        print(json.dumps([r.row() for r in results], indent=1))
        return Exit.CHECK_FAILED if _failed(results) and not cfg.check.warn_only else Exit.FINE
    screen.say(headline(exp))
    omitted = Omitted(None, screen)
    omitted.report(exp.data.dropped)
    return Exit.FINE if passed(exp, None, screen, omitted) else Exit.CHECK_FAILED


def _classes(exp: Experiment) -> str:
    tasks = exp.data.tasks
    if tasks is None:
        return f"{exp.num_classes} classes"
    if tasks.sets:
        return f"sets of {exp.num_classes} classes"
    return "targets " + ", ".join(
        f"{name} ({size} classes)" for name, size in zip(tasks.names, tasks.sizes, strict=True)
    )


def headline(exp: Experiment) -> str:
    """Return one line about what will be trained, and one for each note on how its data were read."""
    cfg, names = exp.cfg, exp.cfg.choices
    weights = sum(p.numel() for p in exp.model.parameters())
    parts = [
        f"{names.get('dataset', 'data')}: {len(exp.data.train):,} train and {len(exp.data.val):,} val images",
        _classes(exp),
        f"{names.get('model', 'model')} with {weights:,} parameters",
        f"{names.get('optimizer', 'optimizer')} at lr {cfg.optimizer['lr']:g}, {names.get('scheduler', 'schedule')}",
        f"{exp.device.type} {str(exp.dtype).removeprefix('torch.')}",
        f"seed {cfg.seed}",
    ]
    start = exp.start.lines() if exp.start is not None else ()
    unselected = [] if len(exp.data.val) else [note(cfg)]
    return "\n".join(["; ".join(parts), *unselected, *exp.data.notes, *exp.notes, *start])
