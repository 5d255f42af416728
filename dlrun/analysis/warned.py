"""What a check has warned of before training, put before the advice on what followed: `dlrun train` (B1-B4, C1-C10)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dlrun.analysis.finding import Finding
from dlrun.vocabulary import Outcome

__all__ = ["before"]

# checks whose warnings name a fault of the setup; lints and duplicates explain no bad run
CAUSES = {
    *("inputs", "splits", "numbering", "outputs", "loss", "loss_terms", "mixture", "objective", "probabilities"),
    *("state", "structure", "flow", "layout", "reach", "independence", "modes", "batch_norm", "parameters"),
    *("schedule", "optimizer", "updates", "descent", "rates", "trial_steps", "penalty"),
}
# verdicts that name the fault by themselves
OWN = {"unlike_evaluation", "unlike_validation", "clipped", "idle", "warming", "affine", "frozen", "spent", "imbalance"}
ADVICE = re.compile(r"; try (\S+=\S+(?: \S+=\S+)*)$")


def before(found: Finding, checks: Iterable[Mapping[str, Any]]) -> Finding:
    """Return the warning of a check as the cause of a verdict, if there is one; else the verdict as it is."""
    if found.name in OWN:
        return found
    rows = [row for row in checks if row.get("status") in (Outcome.WARN, Outcome.FAIL) and row.get("check") in CAUSES]
    if not rows:
        return found
    row = min(rows, key=lambda one: one.get("status") != Outcome.FAIL)
    message = str(row.get("message"))
    advice = ADVICE.search(message)
    sentence = f"{found.sentence}; the check {row['check']} names the likely cause: {ADVICE.sub('', message)}"
    return Finding(found.name, found.severity, sentence, found.number, advice[1] if advice else "")
