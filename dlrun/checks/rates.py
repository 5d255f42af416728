"""C9, O7: the learning rates of the layers fit each other, read from the groups of the optimizer; `dlrun check`.

Compares the peak rate of the last layer with that of the others, and the lowest with the highest. Detects: rates of
head and backbone the wrong way round, a layer at a rate of 0, rates so far apart that some layers stand still. Cannot
detect: rates that are too high or too low together (O5).
"""

from __future__ import annotations

from statistics import median

from dlrun.checks.advice import advice
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, peak_rates
from dlrun.models.depths import classifiers
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["rates"]

SWAPPED = 0.1  # of the rate of the other layers: a last layer that starts anew needs theirs or more
APART = 1e-4  # of the highest rate: such layers stand still


@check(order=36, depends_on=(*SETUP, "optimizer", "scheduler"), labels=False)
def rates(exp: Experiment) -> Verdict:
    """Compare the learning rates of the layers."""
    expected = "one rate, or a higher one at the end"
    names = {id(p): n for n, p in exp.model.named_parameters() if p.requires_grad}
    found = {
        names[id(p)]: rate
        for group, rate in zip(exp.optimizer.param_groups, peak_rates(exp), strict=True)
        for p in group["params"]
        if id(p) in names
    }
    peak = max(found.values(), default=0.0)
    if not peak:
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: the rate is 0; see `optimizer`")
    low = min(found.values())
    shown = f"lr {peak:.3g}" if low == peak else f"lr {low:.3g} to {peak:.3g}"
    if zero := [n for n, rate in found.items() if not rate]:
        message = f"the rate of {named(zero)} is 0, so they never change: give them a rate in optimizer.per_layer, or "
        return Verdict(Outcome.FAIL, shown, expected, f"{message}freeze them with model.freeze")
    places = tuple(f"{place}." for place in classifiers(exp.model, exp.num_classes))
    head = {n: rate for n, rate in found.items() if places and n.startswith(places)}
    body = [rate for n, rate in found.items() if n not in head]
    if head and body and max(head.values()) <= SWAPPED * median(body):
        message = (
            f"the rate of the last layer, {named(list(head))}, is {max(head.values()):.2g}, and that of the layers "
            f"before it {median(body):.2g}: the wrong way round? The last layer starts anew, others may be pretrained"
        )
        return Verdict(Outcome.WARN, shown, expected, message + advice(exp, "optimizer.head_lr=10x"))
    if still := [n for n, rate in found.items() if rate <= APART * peak]:
        message = f"the rate of {named(still)} is {low / peak:.0e} of the highest, so they stand still"
        return Verdict(Outcome.WARN, shown, expected, message + advice(exp, "optimizer.layer_decay=0.75"))
    return Verdict(Outcome.PASS, shown, expected, "the rates of the layers fit each other")
