"""What a sweep prints and tabulates: table.csv, one line per trial, the bar, the best trials and the next commands.

`dlrun train -m`; practices S3, S7, S10.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.analysis import finding, ladder, scores, steps, study
from dlrun.analysis.importance import Importance
from dlrun.analysis.ladder import Climb
from dlrun.analysis.ranking import FOLD
from dlrun.analysis.sweeps import Trials
from dlrun.analysis.warnings import noise
from dlrun.reports.tables import aligned
from dlrun.search.plan import Plan
from dlrun.search.results import Results
from dlrun.search.space import Axis
from dlrun.search.study import Trial
from dlrun.vocabulary import FAILED, SCORES, Status, is_loss

if TYPE_CHECKING:
    from dlrun.console import Screen

__all__ = ["bar", "ending", "line", "page", "rows"]

# of table.csv: validation before test, and of each the loss first
COLUMNS = tuple(sorted(SCORES, key=lambda column: (not column.startswith("val_"), not is_loss(column))))


def rows(results: Results, plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of table.csv by number, one per trial (S10)."""
    stages = {n: r.stage for r in plan.rounds for n in r.numbers}
    columns = COLUMNS if results.metric in COLUMNS else (*COLUMNS, results.metric)
    sparse = any(results.result(number).get("sparsity") is not None for number in results.trials)  # with L1 (R4)
    made = []
    for number, trial in sorted(results.trials.items()):
        result, status = results.result(number), results.status(number)
        row: dict[str, Any] = {"trial": number, "stage": stages.get(number, 1), "status": status}
        row |= {a.name: trial.values.get(a.key, "") for a in plan.axes}
        row |= {c: result.get(c, "") for c in columns}
        if results.metric not in COLUMNS:
            row[results.metric] = _blank(results.score(number))
        row |= {"epochs": result.get("epochs", 0), "seconds": result.get("seconds", "")}
        row |= {"sparsity": _blank(result.get("sparsity"))} if sparse else {}
        row["checks"] = result.get("checks", "")
        row["verdicts"] = finding.summary(result["verdicts"]) if "verdicts" in result else ""
        row["reason"] = trial.reason if status in FAILED else result.get("reason", "")
        row["attempts"] = trial.attempts + (status not in FAILED)
        row["folder"] = results.path(number).name
        made.append(row)
    return made


def _blank(value: float | None) -> Any:
    return "" if value is None else value


def line(results: Results, plan: Plan, number: int, *, again: bool) -> str:
    """Return the line that is printed when a trial has ended."""
    trial, status, score = results.trials[number], results.status(number), results.score(number)
    text = f"{number:04d}  {status:<9}  {_point(plan, trial)}"
    if score is not None and status not in FAILED:
        text += f"  {results.metric} {scores.counted(results.metric, score, results.result(number))}"
    if status in FAILED:
        text += f"  {trial.reason}" + ("; retrying" if again else "")
    elif status in (Status.DIVERGED, Status.PRUNED):
        text += f"  {results.result(number).get('reason', '')}"
    return text + ("  best" if (best := results.leader()) and best.number == number else "")


def _point(plan: Plan, trial: Trial) -> str:
    return " ".join(_word(a, trial.values[a.key]) for a in plan.axes if a.key in trial.values)


def _word(axis: Axis, value: Any) -> str:
    return f"{axis.name}={value:.4g}" if isinstance(value, float) else f"{axis.name}={value}"


def bar(screen: Screen, results: Results, plan: Plan, epochs: int) -> None:
    """Draw how far the last round is, the best so far, and the epochs of the trials that run, of `epochs` each."""
    if not screen.live:
        return
    total, numbers = (plan.rounds[-1].epochs or epochs) or 1, plan.stage
    done = {n: len(results.rows(n)) for n in results.running}
    over = sum(n in results.trials and n not in results.running and results.status(n) != "" for n in numbers)
    best = results.leader()
    text = ""
    if best:
        score = scores.counted(results.metric, results.score(best.number), results.result(best.number))
        text = f"best {best.number:04d} {results.metric} {score}  "
    text += " ".join(f"{n:04d}:{e}/{total}" for n, e in list(done.items())[:6])
    share = sum(min(e / total, 1) for e in done.values())
    screen.count(over + share, len(numbers), f"{over}/{len(numbers)}", text)


def ending(results: Results, plan: Plan, found: Trials, importance: str, table: Path) -> list[str]:
    """Return the last lines: the three best as on the page, the importance, noise, failures, next commands.

    `found` are the trials as the page shows them, so that both name the same best.
    """
    best = [results.trials[n] for k in found.best if (n := int(found.entries[k].path.name)) in results.trials]
    best = best or results.ranked(plan.stage) or results.ranked()  # nothing has completed: as far as they came
    status = {n: results.status(n) for n in results.trials}
    kinds = (Status.COMPLETED, Status.PAUSED, Status.PRUNED, Status.DIVERGED, *FAILED)
    counts = {kind: list(status.values()).count(kind) for kind in kinds}
    counted = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    lines = [f"\n{len(status)} trials: {counted}; table: {table}"]
    for trial in best[:3]:
        lines.append(f"  {trial.number:04d}  {_scores(results, trial.number)}  {_point(plan, trial)}")
    if len(found.best) < len(found.done):
        lines.append("  ranked by the mean over seeds; each setting with its best seed")
    if climbed := ladder.read(results.folder, found):
        made = ladder.rows(climbed, found)
        return [
            lines[0],
            *aligned(made),
            *ladder.sentences(climbed, made, found.metric),
            *_after(results, plan, climbed),
        ]
    studied = study.read(results.folder, found)
    if isinstance(studied, study.Found):
        made = study.rows(studied)
        compared = shlex.join(["dlrun", "compare", str(results.folder), "--group-seeds"])
        return [lines[0], *aligned(made), *study.sentences(studied, made), "next:", f"  {compared}"]
    lines += [studied] if studied else []
    lines += steps.sentences(steps.gains(results.folder, found), found.metric)
    lines += [importance] if importance else []
    lines += noise(found)
    lines += _notes(results)
    lines += [f"{n:04d} {word}: {results.trials[n].reason}" for n, word in status.items() if word in FAILED][:5]
    if not best:
        return lines
    return [*lines, "next:", *(f"  {command}" for command in _next(results.folder, plan, best))]


def _notes(results: Results) -> list[str]:
    """What the trials noted on how their data were read, each once."""
    found = [results.result(n).get("data_notes") for n in sorted(results.trials)]
    return [*dict.fromkeys(str(note) for notes in found if isinstance(notes, list) for note in notes)][:3]


def _scores(results: Results, number: int) -> str:
    """The score of a trial and its test accuracy, with counts on few images."""
    result, value = results.result(number), results.score(number)
    shown = f"{results.metric} {scores.counted(results.metric, value, result)}"
    test = result.get("test_acc")
    return shown + (f", test_acc {scores.counted('test_acc', test, result)}" if isinstance(test, float) else "")


def _after(results: Results, plan: Plan, found: Climb) -> list[str]:
    """The commands after a ladder: the chosen rung trained once, and its table of runs."""
    if found.chosen is None:
        return []
    keys = {a.name: a.key for a in plan.axes}
    chosen = [f"{keys[name]}={word}" for name, word in found.chosen.values.items()]
    commands = [["train", *_plain(plan), *chosen], ["compare", str(results.folder), "--group-seeds"]]
    return ["next:", *(f"  {shlex.join(['dlrun', *words])}" for words in commands)]


def _plain(plan: Plan) -> list[str]:
    """The words that all trials share, without those of the search itself."""
    return [w for w in plan.fixed if not w.startswith(("search", "sweep.dir", "hydra"))]


def _next(folder: Path, plan: Plan, best: Sequence[Trial]) -> list[str]:
    plain = _plain(plan)
    if (average := plan.search.get("average")) and not any(w.startswith("trainer.ema=") for w in plain):
        plain.append(f"trainer.ema={average:g}")  # as in the trials
    point = [a.word(best[0].values[a.key]) for a in plan.axes if a.name != "seed" and a.key in best[0].values]
    commands = []
    axes = plan.rounds[-1].axes
    few = best[: max(2, len(best) // 3)]
    fine = []
    for axis in axes if all(a.key in best[0].values for a in axes) else ():
        held = [t.values[axis.key] for t in few if axis.key in t.values and axis.holds(t.values[axis.key])]
        fine.append(axis.narrowed(held, best[0].values[axis.key], 3))
    if any(not a.words for a in axes) and fine:
        commands.append(["train", "-m", *plain, *(a.typed() for a in fine)])
    folds = any(a.name == FOLD for a in axes)
    if all(a.name != "seed" for a in axes) and not folds:
        commands.append(["train", "-m", *plain, *point, "seed=1,2,3,4,5"])
    commands += [["compare", str(folder), "--group-folds" if folds else "--group-seeds"], ["ensemble", str(folder)]]
    return [shlex.join(["dlrun", *words]) for words in commands]


def page(screen: Screen, folder: Path, found: Trials, shares: Importance | str) -> None:
    """Write the page of a sweep. The search is done and stored: a picture that fails must not undo that."""
    from dlrun.reports import sweep_report

    try:
        screen.say(f"report: {sweep_report.write(folder, found, shares)}")
    except Exception as error:
        again = f"`dlrun report {shlex.quote(str(folder))}` retries"
        screen.say(f"no report: {type(error).__name__}: {error}; {again}")
