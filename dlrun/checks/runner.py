"""Runs the checks and words their results (`dlrun check`, the gate of `dlrun train`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dlrun.checks.chance import initial_loss
from dlrun.checks.overfit import overfit
from dlrun.checks.penalty import penalty
from dlrun.checks.sandbox import no_trace
from dlrun.checks.verdict import Verdict
from dlrun.experiment import Experiment

__all__ = ["CHECKS", "Result", "run", "table"]

CHECKS: dict[str, Callable[[Experiment], Verdict]] = {
    "initial_loss": initial_loss,
    "penalty": penalty,
    "overfit": overfit,
}
STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True)
class Result(Verdict):
    """A verdict with the name of its check and the seconds it took: a row of checks.csv."""

    check: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """The columns of checks.csv in their order."""
        found = asdict(self)
        return {c: found[c] for c in ("check", "status", "value", "expected", "message", "seconds")}


def run(exp: Experiment) -> list[Result]:
    """Run every check on copies; the experiment and the random state are as before."""
    results = []
    with no_trace():
        for name, check in CHECKS.items():
            started = time.perf_counter()
            verdict = check(exp)
            results.append(Result(**asdict(verdict), check=name, seconds=round(time.perf_counter() - started, 3)))
    return results


def table(results: list[Result]) -> Any:
    """Return the rich table of the results."""
    from rich.table import Table

    shown = Table(title="checks before training", title_justify="left", box=None, pad_edge=False)
    for column in ("check", "", "measured", "expected", "what it means"):
        shown.add_column(column, overflow="fold")
    for r in results:
        shown.add_row(r.check, f"[{STYLES[r.status]}]{r.status}[/]", r.value, r.expected, r.message)
    return shown
