"""What the numbers of a run mean, in plain sentences, each with one override to try: `dlrun train` (B1–B4, D6).

A verdict follows from metrics.csv, layers.csv, the config and the class counts alone, so that tables and reports
can find it again from the files. Nothing here imports torch. A healthy run has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dlrun.analysis import fitting, learning
from dlrun.analysis.evidence import Evidence
from dlrun.analysis.finding import Finding
from dlrun.vocabulary import Status

__all__ = ["judge", "urgent"]

# in the order in which they should be acted on
RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    *(learning.exploding, learning.flat, learning.dead, learning.slow, learning.update_ratio),
    *(learning.saturated, learning.offset, learning.noisy),
    *(fitting.overfitting, fitting.gap, fitting.capacity, fitting.unfinished, fitting.imbalance),
)
# a verdict that only follows from another is omitted
_LEARNING = {"slow", "update_ratio", "noisy", "overfitting", "gap", "capacity", "unfinished"}
HIDES = {
    "exploding": _LEARNING | {"flat", "offset"},
    "flat": _LEARNING,
    "slow": {"update_ratio", "capacity", "unfinished"},
    "update_ratio": {"noisy"},
    "overfitting": {"unfinished"},
}


def judge(
    metrics: Iterable[Mapping[str, Any]],
    layers: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    status: str = Status.COMPLETED,
    train_acc_valid: bool = True,
) -> list[Finding]:
    """Return the verdicts on a run, worst first.

    metrics and layers are rows of the CSV files, as text or numbers; config is the resolved one; data is what
    result.json records of the splits, status its status. Without a valid train_acc no verdict is given that needs it.
    """
    run = Evidence(metrics, layers, config, data or {}, status, train_acc_valid)
    found = {f.name: f for rule in RULES if (f := rule(run)) is not None}
    for name, consequences in HIDES.items():
        if name in found:
            found = {n: f for n, f in found.items() if n not in consequences}
    return sorted(found.values(), key=lambda f: f.severity != "stop")


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
    rules = RULES[:3] if warm else RULES[:1]  # exploding, flat, dead
    found = [rule(run) for rule in rules]
    return [f for f in found if f is not None and f.severity == "stop"]
