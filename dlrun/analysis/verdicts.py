"""What the numbers of a run mean, in plain sentences, each with one override to try: `dlrun train` (B1–B4, D6).

A verdict follows from metrics.csv, layers.csv, the config and the class counts alone, so that tables and reports
can find it again from the files. Nothing here imports torch. A healthy run has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dlrun.analysis import fitting, learning, unlike, warned
from dlrun.analysis.evidence import Evidence
from dlrun.analysis.finding import Finding
from dlrun.vocabulary import Status, reads_labels

__all__ = ["judge", "urgent"]

# in the order in which they should be acted on: the first cause found is the verdict, since what follows from it would
# only repeat or contradict it
Rules = tuple[Callable[[Evidence], Finding | None], ...]
_FIRST: Rules = (
    learning.exploding,
    *(unlike.unlike_evaluation, unlike.affine, unlike.frozen, unlike.clipped, unlike.idle, unlike.warming),
    unlike.spent,
    *(learning.flat, learning.long_steps, learning.dead, learning.saturated, learning.offset),
)
_STEPS: Rules = (learning.slow, learning.short_steps, learning.noisy)
CAUSES: Rules = (
    *_FIRST,
    *(unlike.unlike_validation, fitting.confirmation, fitting.overfitting, fitting.gap, *_STEPS),
    *(fitting.unfinished, fitting.capacity),
)
# those that need no validation score: without one nothing tells when to stop
UNVALIDATED = (*_FIRST, *_STEPS)
FACTS = (fitting.imbalance,)  # what holds beside any cause


def judge(
    metrics: Iterable[Mapping[str, Any]],
    layers: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    status: str = Status.COMPLETED,
    train_acc_valid: bool = True,
    checks: Iterable[Mapping[str, Any]] = (),
    sparsity: float | None = None,
) -> list[Finding]:
    """Return the verdicts on a run: the first cause found, if any, then what holds beside it.

    metrics and layers are rows of the CSV files, as text or numbers; config is the resolved one; data is what
    result.json records of the splits, status its status. Without a valid train_acc no verdict is given that needs it.
    `checks` are the rows of checks.csv: what a check has warned of stands before the advice on what followed. Of a run
    without labels (M10) only a loss that explodes is judged. `sparsity` is the share of weights near 0 (R4).
    """
    run = Evidence(metrics, layers, config, data or {}, status, train_acc_valid)
    if not reads_labels(config):
        found = learning.exploding(run)
        return [] if found is None else [found]
    rules = UNVALIDATED if run.data.get("val") == 0 else CAUSES
    cause = next((f for rule in rules if (f := rule(run)) is not None), None)
    cause = cause and warned.before(cause, checks)
    facts = (*(rule(run) for rule in FACTS), fitting.sparse(run, sparsity))
    return [f for f in (cause, *facts) if f is not None]


def urgent(
    metrics: Iterable[Mapping[str, Any]],
    layers: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    train_acc_valid: bool = True,
) -> list[Finding]:
    """Return the findings after which training should stop; layers may be those of the last epoch alone."""
    run = Evidence(metrics, layers, config, data or {}, Status.RUNNING, train_acc_valid)
    warm = sum(lr >= 0.3 * run.peak for lr in run.lr) >= 3  # a warm-up may learn nothing
    warm = warm and reads_labels(config)
    rules = (learning.exploding, learning.flat, learning.dead) if warm else (learning.exploding,)
    found = next((f for rule in rules if (f := rule(run)) is not None), None)
    return [found] if found is not None and found.severity == "stop" else []
