"""What a person reads of a sweep: its table, a line a trial, the bar, the border, the best and what to type next.

Practices S3, S7, S10.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlrun.analysis import verdicts
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.search.plan import Round
from dlrun.search.space import Axis
from dlrun.vocabulary import FAILED, SCORES, Status, is_loss

if TYPE_CHECKING:
    from dlrun.search.study import Trial
    from dlrun.search.sweeper import Sweep

__all__ = ["bar", "ending", "line", "ranked", "rows"]

# of table.csv: validation before test, and of each the loss first
COLUMNS = tuple(sorted(SCORES, key=lambda column: (not column.startswith("val_"), not is_loss(column))))


def ranked(sweep: Sweep, numbers: Sequence[int] | None = None) -> list[Trial]:
    """Return the trials that have a score, best first."""
    found = [(sweep.score(n), n) for n in (sweep.trials if numbers is None else numbers) if n in sweep.trials]
    good = [(s, n) for s, n in found if s is not None and sweep.status(n) not in FAILED]
    return [sweep.trials[n] for _, n in sorted(good, key=lambda one: (one[0] * (1 if sweep.minimise else -1), one[1]))]


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the rows of table.csv, a trial each, by number (S10)."""
    stages = {n: r.stage for r in sweep.plan.rounds for n in r.numbers}
    scores = COLUMNS if sweep.metric in COLUMNS else (*COLUMNS, sweep.metric)
    made = []
    for number, trial in sorted(sweep.trials.items()):
        result, status = sweep.result(number), sweep.status(number)
        row: dict[str, Any] = {"trial": number, "stage": stages.get(number, 1), "status": status}
        row |= {a.name: trial.values.get(a.key, "") for a in sweep.plan.axes}
        row |= {c: result.get(c, "") for c in scores}
        if sweep.metric not in COLUMNS:
            row[sweep.metric] = _blank(sweep.score(number))
        row |= {"epochs": result.get("epochs", 0), "seconds": result.get("seconds", "")}
        row["checks"] = result.get("checks", "")
        row["verdicts"] = verdicts.summary(result["verdicts"]) if "verdicts" in result else ""
        row["reason"] = trial.reason if status in FAILED else result.get("reason", "")
        row["attempts"] = trial.failures + (status not in FAILED)
        row["folder"] = sweep_folder.run_folder(sweep.folder, number).name
        made.append(row)
    return made


def _blank(value: float | None) -> Any:
    return "" if value is None else value


def line(sweep: Sweep, number: int, *, again: bool) -> str:
    """Return what one trial came to."""
    trial, status, score = sweep.trials[number], sweep.status(number), sweep.score(number)
    words = " ".join(_word(a, trial.values[a.key]) for a in sweep.plan.axes if a.key in trial.values)
    text = f"{number:04d}  {status:<9}  {words}"
    if score is not None and status not in FAILED:
        text += f"  {sweep.metric} {score:.4f}"
    if status in FAILED:
        text += f"  {trial.reason}" + ("; trying again" if again else "")
    elif status in (Status.DIVERGED, Status.PRUNED):
        text += f"  {sweep.result(number).get('reason', '')}"
    best = ranked(sweep)
    return text + ("  best" if best and best[0].number == number else "")


def _word(axis: Axis, value: Any) -> str:
    return f"{axis.name}={value:.4g}" if isinstance(value, float) else f"{axis.name}={value}"


def bar(sweep: Sweep, now: Round) -> None:
    """Draw how far a round is, the best so far, the epochs of the trials that run."""
    if not sweep.screen.live:
        return
    total, numbers = (now.epochs or sweep.epochs) or 1, sweep.plan.stage
    epochs = {n: len(reading.metrics(sweep_folder.run_folder(sweep.folder, n))) for n in sweep.running}
    over = sum(n in sweep.trials and n not in sweep.running and sweep.status(n) != "" for n in numbers)
    best = ranked(sweep)
    text = f"best {sweep.metric} {sweep.score(best[0].number):.4f} ({best[0].number:04d})  " if best else ""
    text += " ".join(f"{n:04d}:{e}/{total}" for n, e in list(epochs.items())[:6])
    share = sum(min(e / total, 1) for e in epochs.values())
    sweep.screen.count(over + share, len(numbers), f"{over}/{len(numbers)}", text)


def ending(sweep: Sweep) -> list[str]:
    """Return the last words: the three best and what distinguishes them, warnings, what to type next."""
    numbers = list(sweep.trials)
    best = ranked(sweep, sweep.plan.stage) or ranked(sweep)  # of a staged search those that were trained to the end
    table = sweep_folder.write_table(sweep.folder, rows(sweep))
    count = {
        s: sum(sweep.status(n) == s for n in numbers)
        for s in (Status.COMPLETED, Status.PAUSED, Status.PRUNED, Status.DIVERGED, *FAILED)
    }
    told = ", ".join(f"{c} {s}" for s, c in count.items() if c)
    lines = [f"\n{len(numbers)} trials: {told}; the table is {table}"]
    for trial in best[:3]:
        words = " ".join(_word(a, trial.values[a.key]) for a in sweep.plan.axes if a.key in trial.values)
        test = sweep.result(trial.number).get("test_acc")
        tested = f", test_acc {test:.4f}" if isinstance(test, float) else ""
        lines.append(f"  {trial.number:04d}  {sweep.metric} {sweep.score(trial.number):.4f}{tested}  {words}")
    if shares := sweep.study.importance():
        parts = sorted(shares.items(), key=lambda one: -one[1])
        lines.append("what mattered: " + ", ".join(f"{k.lstrip('+')} {v:.0%}" for k, v in parts))
    lines += [f"{n:04d} {sweep.status(n)}: {sweep.trials[n].reason}" for n in numbers if sweep.status(n) in FAILED][:5]
    if not best:
        return lines
    return [*lines, "next:", *(f"  {command}" for command in _next(sweep, best))]


def _next(sweep: Sweep, best: Sequence[Trial]) -> list[str]:
    plain = [w for w in sweep.plan.fixed if not w.startswith(("search", "sweep.dir", "hydra"))]
    if (average := sweep.plan.search.get("average")) and not any(w.startswith("trainer.ema=") for w in plain):
        plain.append(f"trainer.ema={average:g}")  # as the trials had it
    point = [a.word(best[0].values[a.key]) for a in sweep.plan.axes if a.name != "seed"]
    commands = []
    axes = sweep.plan.rounds[-1].axes
    few = best[: max(2, len(best) // 3)]
    fine = []
    for axis in axes:
        held = [t.values[axis.key] for t in few if axis.holds(t.values[axis.key])]
        fine.append(axis.narrowed(held, best[0].values[axis.key], 3))
    if any(not a.words for a in axes):
        commands.append(["train", "-m", *plain, *(a.typed() for a in fine)])
    if all(a.name != "seed" for a in axes):
        commands.append(["train", "-m", *plain, *point, "seed=1,2,3,4,5"])
    commands += [["compare", str(sweep.folder), "--group-seeds"], ["ensemble", str(sweep.folder)]]
    return [shlex.join(["dlrun", *words]) for words in commands]
