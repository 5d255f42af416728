"""Runs the checks in order of their price, remembers what passed, and words the results (`dlrun check`, `dlrun train`).

`check.only=[gradient,overfit]`, `check.skip=[…]`, `check.budget=60` (seconds), `check.fresh=true`. What did not
fit the budget is `skip`, never `pass`; the last one that fits may take longer where it asks the model only a few
times. A check that passed is remembered under a hash of all it depends on (dlrun.checks.receipts), so a sweep
proves a setup once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from dlrun.checks import receipts
from dlrun.checks.advice import raised_at
from dlrun.checks.audit import class_balance, data_audit, data_duplicates
from dlrun.checks.chance import initial_loss, loss
from dlrun.checks.garbage import garbage
from dlrun.checks.gradient.check import gradient
from dlrun.checks.independence import independence
from dlrun.checks.inputs import inputs, labels, outputs
from dlrun.checks.lints import lint_activation, lint_bias, lint_width
from dlrun.checks.overfit import overfit
from dlrun.checks.parameters import optimizer, parameters
from dlrun.checks.penalty import penalty
from dlrun.checks.probabilities import probabilities
from dlrun.checks.result import Result, Verdict
from dlrun.checks.sandbox import no_trace
from dlrun.errors import UserError, first_line
from dlrun.training.experiment import Experiment

__all__ = ["CHECKS", "run"]

# what goes in, what comes out, what learns; the dear ones last, so that a budget buys as many as it can
CHECKS: dict[str, Callable[..., Verdict]] = {
    check.__name__: check
    for check in (
        *(data_audit, data_duplicates, class_balance, labels, inputs),
        *(outputs, loss, initial_loss, penalty, probabilities, independence, parameters, optimizer),
        *(lint_bias, lint_activation, lint_width),
        *(overfit, garbage, gradient),
    )
}
# one mistake, one row: these would only repeat what `outputs` has failed for
NEED_OUTPUTS: tuple[str, ...] = (
    "loss",
    "initial_loss",
    "penalty",
    "probabilities",
    "independence",
    "parameters",
    "optimizer",
)
# those that train, and end when the time is up
TIMED = ("independence", "overfit", "garbage", "gradient")
NEED_OUTPUTS += ("lint_activation", "lint_bias", "overfit", "garbage", "gradient")


def run(exp: Experiment) -> list[Result]:
    """Run the chosen checks on copies; the experiment and the random state are as before."""
    options = exp.cfg.check
    names = [n for n in CHECKS if (not options.only or n in options.only) and n not in options.skip]
    began = time.perf_counter()
    setup = receipts.setup(exp)
    results = []
    speaks = True
    with no_trace():
        for name in names:
            started = time.perf_counter()
            if speaks or name not in NEED_OUTPUTS:
                verdict = _one(name, exp, receipts.key(name, setup), options.budget - (started - began))
            else:
                verdict = Verdict("skip", "not run", "", "no usable logits: mend what `outputs` says first")
            speaks = speaks and (name, verdict.status) != ("outputs", "fail")
            results.append(Result(**asdict(verdict), check=name, seconds=round(time.perf_counter() - started, 3)))
    return results


def _one(name: str, exp: Experiment, receipt: str, seconds_left: float) -> Verdict:
    if not exp.cfg.check.fresh and (known := receipts.find(receipt)) is not None:
        return known
    if seconds_left <= 0:
        return Verdict(
            "skip",
            "not run",
            "",
            f"check.budget={exp.cfg.check.budget:g} seconds were used up; raise it to run this",
        )
    try:
        verdict = CHECKS[name](exp, seconds_left) if name in TIMED else CHECKS[name](exp)
    except UserError:
        raise
    except Exception as error:  # the user's own model is code we have not seen: its error is a finding of this check
        message = f"the setup raised an error in this check{raised_at(error)}: {first_line(error)}"
        verdict = Verdict("fail", type(error).__name__, "no error", message)
    receipts.keep(name, receipt, verdict)
    return verdict
