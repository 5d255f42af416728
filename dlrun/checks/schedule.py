"""O3, C9: what the schedule will do over the whole planned training, computed and not run; `dlrun check`.

Detects: a rate below a thousandth of its peak long before the end, a warm-up that outlasts the training, a rate that
rises again at the end, outgrows optimizer.lr, is negative or not finite, a schedule longer or shorter than the training
or one that hardly changes anything before it ends (steps taken for epochs), milestones behind the end, a plateau that
waits for the wrong direction, and a weight decay that halves the weights within a fraction of an epoch. `dlrun check
-v` shows the planned rates as a small picture. Cannot detect: a peak that is too high or too low, or when a plateau
schedule will lower the rate.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from dlrun.checks.advice import advice
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.errors import first_line
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome, lower_is_better

__all__ = ["schedule"]

IDLE = 1e-3  # of the peak: weights hardly move; the last epochs of a schedule may be there
STILL = 0.1, 0.75  # shares of the epochs with an idle rate: a warning, and a failure
REACHED = 0.5  # of optimizer.lr: a warm-up that ends below has not ended
RISES = 0.3, 0.5  # of the peak: a rate that falls below the first in the last third, and ends above the second
POINTS = 10  # per epoch
SHORT = 5  # epochs below which a schedule that changes nothing is no surprise
HASTY = 200  # steps in which weight decay alone halves a weight; usual values take thousands
HARDLY = 0.05  # of the peak that a schedule changes in all
LOW, MOST = (
    0.02,
    0.75,
)  # of the peak, and of the epochs that follow at it: the schedule is over long before the training
GROWN = 1.5, 100.0  # times optimizer.lr: a warning, and a failure
TWENTIETH = 0.05  # of optimizer.lr, which a schedule that returns factors comes nearer to
LONG = 1.4  # times the training
FAR = 3.0  # times the training: a milestone counted in steps
LATE = 0.7  # of the training, at which the peak is first reached
LENGTHS = ("epochs", "tau", "period", "T_max", "total_steps", "T_0")  # of schedules, in epochs
PEAKS = ("OneCycleLR", "CyclicLR")  # of torch, whose peak is max_lr
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 12  # of the picture


@check(order=35, depends_on=(*SETUP, "optimizer", "scheduler", "trainer"), labels=False)
def schedule(exp: Experiment) -> Verdict:
    """Plan the rate of every epoch, and look for epochs in which it can do nothing."""
    epochs, steps = exp.cfg.trainer.epochs, len(exp.train)
    try:
        planned = exp.scheduler.plan(epochs, min(POINTS, max(1, steps)))
    except ValueError as error:  # torch.optim.lr_scheduler.OneCycleLR after its last step
        message = f"the schedule ends before the {epochs} epochs of the training ({first_line(error)})"
        return Verdict(Outcome.FAIL, type(error).__name__, "a rate", message + _fitting(exp, epochs))
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
    tests = (_plateau, _turning, _grown, _idle, _unreached, _cut, _late, _rising, _level, _milestones)
    for test in tests:
        if (found := test(exp, planned)) is not None:
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


def _rule(exp: Experiment) -> tuple[str, dict[str, Any]]:
    """The name of the schedule and its settings."""
    rule: Any = exp.scheduler._rule
    return getattr(getattr(rule, "func", rule), "__name__", ""), dict(getattr(rule, "keywords", {}))


def _plateau(exp: Experiment, planned: list[list[float]]) -> Found:
    name, settings = _rule(exp)
    if name != ReduceLROnPlateau.__name__:
        return None
    monitor, mode = exp.cfg.trainer.monitor, settings.get("mode", "min")
    right = "min" if lower_is_better(monitor) else "max"
    if mode != right:
        message = f"the plateau waits for {monitor} in mode {mode}, so every improvement counts as none: "
        return Outcome.FAIL, message + f"omit scheduler.mode, or type scheduler.mode={right}"
    if len(planned) >= SHORT and settings.get("patience", 10) >= len(planned):
        message = f"scheduler.patience={settings['patience']} is as long as the training, so the rate never falls"
        return Outcome.WARN, message + advice(exp, f"scheduler.patience={max(1, len(planned) // 10)}")
    return None


def _turning(exp: Experiment, planned: list[list[float]]) -> Found:
    name, settings = _rule(exp)
    half, epochs = settings.get("T_max", math.inf), len(planned)
    if name != "CosineAnnealingLR" or not LONG * half < epochs:
        return None
    message = (
        f"CosineAnnealingLR rises again after T_max={half} epochs, and turns {math.ceil(epochs / half) - 1} times in "
    )
    return Outcome.WARN, f"{message}the {epochs} epochs of the training{_fitting(exp, epochs)}"


def _grown(exp: Experiment, planned: list[list[float]]) -> Found:
    name, _ = _rule(exp)
    base, peak = max(exp.scheduler.state_dict()["base_lrs"]), max(map(max, planned))
    if name in PEAKS or not base:
        return None
    if peak > GROWN[0] * base:
        message = f"the rate grows to {peak:.2g}, {peak / base:.2g} times optimizer.lr={base:g}: a factor above 1"
        message += advice(exp, "scheduler.gamma=0.1", "scheduler.final=0")
        return Outcome.FAIL if peak > GROWN[1] * base else Outcome.WARN, message
    if peak < TWENTIETH * base and max(map(max, planned[: len(planned) // 2 + 1])) == peak:
        message = (
            f"the rate never exceeds {peak:.2g}, though optimizer.lr={base:g}: does {name} return a rate? It must "
        )
        return Outcome.FAIL, message + "return the factor on optimizer.lr, 1 at the peak"
    return None


def _cut(exp: Experiment, planned: list[list[float]]) -> Found:
    """A schedule that is longer than the training, so its end, with the lowest rates, is missing."""
    name, settings = _rule(exp)
    epochs = len(planned)
    key = next((k for k in LENGTHS if isinstance(settings.get(k), (int, float)) and settings[k] > LONG * epochs), None)
    if key is None:
        return None
    message = f"{name} is planned for {key}={settings[key]:g} epochs, the training ends after {epochs}, at "
    message += f"{planned[-1][-1] / max(map(max, planned)):.0%} of the peak: schedules count in epochs, not in steps"
    return Outcome.WARN, message + _fitting(exp, epochs)


def _late(exp: Experiment, planned: list[list[float]]) -> Found:
    """A rate that reaches its peak near the end, or is over long before it."""
    rates = [rate for epoch in planned for rate in epoch]
    peak, epochs = max(rates), len(planned)
    if epochs < SHORT:
        return None
    first = next(i for i, rate in enumerate(rates) if rate >= 0.99 * peak) / len(rates)
    if first > LATE and rates[0] < 0.5 * peak:
        message = f"the rate rises during {first:.0%} of the training, and little is left to fall"
        return Outcome.WARN, message + advice(exp, "scheduler.warm_fraction=0.3", "scheduler.warmup=1")
    low = [number for number, epoch in enumerate(planned, 1) if max(epoch) <= LOW * peak]
    if len(low) > MOST * epochs and low[-1] == epochs:
        message = f"the rate is at or below {max(planned[-1]) / peak:.2g} of its peak from epoch {low[0]} to the end"
        return Outcome.WARN, message + f": schedules count in epochs{_fitting(exp, epochs)}"
    return None


def _milestones(exp: Experiment, planned: list[list[float]]) -> Found:
    name, settings = _rule(exp)
    epochs, milestones = len(planned), settings.get("milestones") or ()
    far = [m for m in milestones if m > FAR * epochs]
    if not far:
        return None
    message = (
        f"milestone {far[0]:g} of {name} lies far behind the {epochs} epochs of the training: milestones are epochs"
    )
    return Outcome.WARN, message + ", not steps"


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
    name, settings = _rule(exp)
    base = settings.get("max_lr", base) if name in PEAKS else base
    peak, last = max(map(max, planned)), planned[-1][-1]
    warmup = exp.scheduler.warmup
    if warmup >= epochs or (peak < REACHED * base and last >= 0.99 * peak and planned[0][0] < last):
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


def _rising(exp: Experiment, planned: list[list[float]]) -> Found:
    rates = [rate for epoch in planned for rate in epoch]
    peak, late = max(rates), rates[len(rates) * 2 // 3 :]
    if min(late) < RISES[0] * peak and rates[-1] > RISES[1] * peak:
        message = f"the rate rises again at the end of the training, from {min(late):.2g} to {rates[-1]:.2g}"
        message += ": the last period is cut short, and the weights end in the middle of it"
        return Outcome.WARN, message + _fitting(exp, exp.cfg.trainer.epochs)
    return None


def _level(exp: Experiment, planned: list[list[float]]) -> Found:
    """A schedule that is meant to change the rate, and hardly does."""
    name, _ = _rule(exp)
    low, high = min(map(min, planned)), max(map(max, planned))
    steady = name in ("constant", ReduceLROnPlateau.__name__, "ConstantLR")
    if steady or len(planned) < SHORT or high - low > HARDLY * high:
        return None
    what = f"the rate by {(high - low) / high:.1%} only" if high > low else "nothing"
    message = f"{name} changes {what} in the {len(planned)} planned epochs: schedules count in epochs"
    return Outcome.WARN, message + (_fitting(exp, len(planned)) or "; or type scheduler=constant")


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
    return tuple(f"scheduler.{key}={epochs}" for key in (*LENGTHS, "total_iters"))
