"""O3, C9: what the schedule will do over the whole planned training, computed and not run; `dlrun check`.

Detects: a rate below a thousandth of its peak long before the end, a warm-up that outlasts the training, a rate that
rises again at the end, is negative or not finite, a schedule that changes nothing before the training ends (steps
taken for epochs), and a weight decay that halves the weights within a fraction of an epoch. `dlrun check -v` shows the
planned rates as a small picture. Cannot detect: a peak that is too high or too low, or what a plateau schedule will do.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from dlrun.checks.advice import advice
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["schedule"]

IDLE = 1e-3  # of the peak: weights hardly move; the last epochs of a schedule may be there
STILL = 0.1, 0.75  # shares of the epochs with an idle rate: a warning, and a failure
REACHED = 0.5  # of optimizer.lr: a warm-up that ends below has not ended
RISES = 0.3, 0.5  # of the peak: a rate that falls below the first in the last third, and ends above the second
POINTS = 10  # per epoch
SHORT = 5  # epochs below which a schedule that changes nothing is no surprise
HASTY = 200  # steps in which weight decay alone halves a weight; usual values take thousands
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 12  # of the picture


@check(order=35, depends_on=(*SETUP, "optimizer", "scheduler", "trainer"))
def schedule(exp: Experiment) -> Verdict:
    """Plan the rate of every epoch, and look for epochs in which it can do nothing."""
    epochs, steps = exp.cfg.trainer.epochs, len(exp.train)
    planned = exp.scheduler.plan(epochs, min(POINTS, max(1, steps)))
    rates = [rate for epoch in planned for rate in epoch]
    expected = "reaches its peak, falls at the end"
    bad = next((n for n, epoch in enumerate(planned, 1) for rate in epoch if not 0 <= rate < math.inf), None)
    if bad is not None:
        low = min(rates)
        message = f"the rate is {low:.3g} in epoch {bad}: a negative rate climbs the loss" + _fitting(exp, epochs)
        return Verdict(Outcome.FAIL, f"lr {low:.3g}", expected, message)
    peak = max(rates)
    shown = f"{_picture(rates)} {rates[0]:.2g} to {peak:.2g} to {rates[-1]:.2g}"
    if peak == 0:
        return Verdict(Outcome.SKIP, shown, expected, "a rate of 0 throughout: see `optimizer`")
    for found in (_idle(exp, planned), _unreached(exp, planned), _rising(exp, rates), _level(exp, rates)):
        if found is not None:
            return Verdict(found[0], shown, expected, found[1])
    if (decay := _decay(exp, rates, steps)) is not None:
        return Verdict(Outcome.WARN, shown, expected, decay)
    return Verdict(Outcome.PASS, shown, expected, f"the planned rate of {epochs} epochs of {steps:,} steps")


def _picture(rates: list[float]) -> str:
    """The rates as a row of blocks, each the mean of a part of the training."""
    count, peak = min(WIDTH, len(rates)), max(rates) or 1.0
    cuts = [round(k * len(rates) / count) for k in range(count + 1)]
    means = [sum(rates[a:b]) / (b - a) for a, b in pairwise(cuts)]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(mean / peak * len(BLOCKS)))] for mean in means)


Found = tuple[Outcome, str] | None


def _idle(exp: Experiment, planned: list[list[float]]) -> Found:
    peak = max(map(max, planned))
    idle = [number for number, epoch in enumerate(planned, 1) if max(epoch) < IDLE * peak]
    if len(idle) < max(2, STILL[0] * len(planned)):
        return None
    share = len(idle) / len(planned)
    where = f"from epoch {idle[0]}" if idle[-1] == len(planned) else f"in epochs {idle[0]} to {idle[-1]}"
    message = (
        f"the rate is below a thousandth of its peak {where}, in {len(idle)} of {len(planned)} epochs, in which "
        f"nothing is learned: schedules count in epochs, not in steps{_fitting(exp, len(planned))}"
    )
    return Outcome.FAIL if share > STILL[1] else Outcome.WARN, message


def _unreached(exp: Experiment, planned: list[list[float]]) -> Found:
    epochs, base = len(planned), max(exp.scheduler.state_dict()["base_lrs"])
    peak, last = max(map(max, planned)), planned[-1][-1]
    warmup = exp.scheduler.warmup
    if warmup >= epochs or (peak < REACHED * base and last >= 0.99 * peak and planned[0][0] < 0.5 * peak):
        long = f"a warm-up of {warmup:g} epochs" if warmup >= epochs else "its rise"
        message = f"the rate never reaches its peak: {long} outlasts the {epochs} epochs of the training"
        message += advice(exp, *_warmups(exp, max(1, epochs // 10) if epochs > 2 else 0), *_keys(epochs))
        return Outcome.FAIL if peak < REACHED * base else Outcome.WARN, message
    if warmup > epochs / 2:
        fix = advice(exp, *_warmups(exp, max(1, epochs // 10)))
        return Outcome.WARN, f"a warm-up of {warmup:g} epochs takes more than half of the {epochs} epochs{fix}"
    return None


def _warmups(exp: Experiment, epochs: int) -> tuple[str, ...]:
    """The override for a warm-up of so many epochs, by the key that is in use."""
    steps = bool(exp.cfg.scheduler.get("warmup_steps"))
    return (f"scheduler.warmup_steps={epochs * len(exp.train)}" if steps else f"scheduler.warmup={epochs}",)


def _rising(exp: Experiment, rates: list[float]) -> Found:
    peak, late = max(rates), rates[len(rates) * 2 // 3 :]
    if min(late) < RISES[0] * peak and rates[-1] > RISES[1] * peak:
        message = f"the rate rises again at the end of the training, from {min(late):.2g} to {rates[-1]:.2g}"
        message += ": the last period is cut short, and the weights end in the middle of it"
        return Outcome.WARN, message + _fitting(exp, exp.cfg.trainer.epochs)
    return None


def _level(exp: Experiment, rates: list[float]) -> Found:
    """A schedule that is meant to change the rate, and does not."""
    rule: Any = exp.scheduler._rule
    name = getattr(getattr(rule, "func", rule), "__name__", "")
    steady = name in ("constant", ReduceLROnPlateau.__name__, "ConstantLR")
    if steady or exp.cfg.trainer.epochs < SHORT or min(rates) < max(rates):
        return None
    message = f"{name} changes nothing in the {exp.cfg.trainer.epochs} planned epochs: schedules count in epochs"
    return Outcome.WARN, message + (_fitting(exp, exp.cfg.trainer.epochs) or "; or say scheduler=constant")


def _decay(exp: Experiment, rates: list[float], steps: int) -> str | None:
    """A sentence if weight decay alone halves the weights within an epoch and a few steps, else None."""
    name = type(exp.optimizer).__name__
    if name not in ("SGD", "AdamW"):
        return None  # Adam divides what it is given by its size
    for group in exp.optimizer.param_groups:
        momentum = float(group.get("momentum") or 0.0)
        lost = max(rates) * float(group.get("weight_decay") or 0.0) / (1 - min(momentum, 0.999))
        if lost > 0 and (half := math.log(2) / lost) < min(steps, HASTY):
            message = f"weight decay alone halves the weights in {half:.0f} steps at the peak rate, and an epoch has "
            return f"{message}{steps:,}" + advice(exp, "optimizer.weight_decay=1e-4")
    return None


def _fitting(exp: Experiment, epochs: int) -> str:
    """Overrides that stretch the schedule over the training; another schedule if it has no such key."""
    found = advice(exp, *_keys(epochs), f"scheduler.every={max(1, epochs / 4):g}", f"scheduler.k={3 / epochs:.1g}")
    return found or advice(exp, "scheduler=one_cycle", "scheduler=cosine")


def _keys(epochs: int) -> tuple[str, ...]:
    return f"scheduler.epochs={epochs}", f"scheduler.tau={epochs}", f"scheduler.period={epochs}"
