"""Runs the checks, cheap ones first, and reuses receipts of earlier passes (`dlrun check`, `dlrun train`, C1-C10).

`check.only=[gradient,overfit]`, `check.skip=[…]`, `check.budget=60` (seconds), `check.fresh=true`. Checks that do not
fit into the budget are `skip`, never `pass`; the last one that starts may take longer if it cannot stop early. A pass
is stored under a hash of everything that the check depends on (dlrun.checks.receipts), so a sweep checks a setup once.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from dlrun.checks import exempt, heads, receipts
from dlrun.checks.advice import raised_at
from dlrun.checks.check import Check, find_checks
from dlrun.checks.result import Result, Verdict
from dlrun.checks.sandbox import no_trace
from dlrun.errors import UserError, first_line
from dlrun.training.experiment import Experiment
from dlrun.training.objective import is_unsupervised
from dlrun.vocabulary import Outcome

__all__ = ["CHECKS", "run"]

CHECKS = find_checks()


def run(exp: Experiment) -> list[Result]:
    """Run the chosen checks on copies; the experiment and the random state are the same afterwards.

    Raises UserError if check.skip names a module that the model does not have.
    """
    options = exp.cfg.check
    exempt.verify(exp, CHECKS)
    chosen = [c for n, c in CHECKS.items() if (not options.only or n in options.only) and n not in options.skip]
    began = time.perf_counter()
    setup = receipts.setup(exp)
    results = []
    usable = True  # the outputs of the model, unless their check fails
    with no_trace():
        for check in chosen:
            started = time.perf_counter()
            if check.labels and is_unsupervised(exp.objective):
                verdict = Verdict(Outcome.SKIP, "off", "", "left out: the objective reads no labels")
            elif usable or not check.needs_outputs:
                left = options.budget - (started - began)
                verdict = _one(check, exp, receipts.key(check, setup), left * _share(check, chosen))
            else:
                verdict = Verdict(Outcome.SKIP, "not run", "", "skipped: fix the problem reported by `outputs` first")
            usable = usable and (check.name, verdict.status) != ("outputs", Outcome.FAIL)
            results.append(Result(**asdict(verdict), check=check.name, seconds=round(time.perf_counter() - started, 3)))
    return results


def _share(check: Check, chosen: list[Check]) -> float:
    """The share of the remaining time that a check gets, so that a slow one leaves time for the others."""
    shares = [one.share for one in chosen[chosen.index(check) :] if one.timed]
    return check.share / sum(shares) if check.timed else 1.0


def _one(check: Check, exp: Experiment, receipt: str, seconds_left: float) -> Verdict:
    if not exp.cfg.check.fresh and (known := receipts.find(receipt)) is not None:
        return known
    if seconds_left <= 0:
        message = f"check.budget={exp.cfg.check.budget:g} seconds are used up; raise it to run this check"
        return Verdict(Outcome.SKIP, "not run", "", message)
    try:
        verdict = heads.judged(check, exp, seconds_left)
    except UserError:
        raise
    except Exception as error:  # the model is user code: its error is the result of this check
        message = f"the setup raised an error in this check{raised_at(error)}: {first_line(error)}"
        verdict = Verdict(Outcome.FAIL, type(error).__name__, "no error", message)
    if check.keeps_receipt:
        receipts.keep(receipt, verdict)
    return verdict
