"""C3, O4, O10: the first steps of this very training, taken on a few samples again and again; `dlrun check`.

Real steps of a copy (dlrun.training.loop.step) with the configured optimizer at its peak rate, loss, objective,
penalty, clipping and SAM: on the same samples the loss must fall. If it does not, other rates are tried, no penalty,
and then Adam, which tells a rate that is too high from an optimizer that does not work. Detects: updates that leave the
descent after a few steps, rates far too high, a penalty that outweighs the loss, clipping by norm or value that decides
the length of every step, and an average of weights (trainer.ema) that no planned training fills. Cannot detect: a rate
that is merely poor (O5), or what goes wrong after many steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from dlrun.checks.advice import advice
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import peak_rates, replica, training, twin
from dlrun.checks.small import Small, length
from dlrun.checks.smaller import small_samples
from dlrun.data.batches import Batch
from dlrun.training import loop, norms
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["trial_steps"]

COUNT, STEPS = 16, 16
SECONDS = 4.0  # at most, for the first steps
FALLS = 0.01  # of the loss: noise of dropout explains less on the mean of a third of the steps
LOWER, HIGHER = (0.1, 0.01), (10.0, 1000.0)  # times the rate, tried if the loss rises, and if it stays
LITTLE = 0.9, 0.7  # of the first loss: what is left with a penalty that outweighs it at least, and without at most
LEAST = 5  # steps, to judge a loss that does not fall
ENOUGH = 6, 0.5  # steps, and a share of the loss, after which no further step is needed
ADAM = 1e-3
CUT = 30.0  # times shorter than the gradient: usual limits cut to a tenth at the start
OFTEN, RARE = 0.9, 0.1  # of the steps, or of the entries of the gradient
SHORT = 5  # steps: an average over fewer is the last model
LAG = 2.0  # times the whole training
Found = tuple[Outcome, str] | None


@check(
    order=172, needs_outputs=True, timed=True, depends_on=(*SETUP, "optimizer", "scheduler", "trainer"), labels=False
)
def trial_steps(exp: Experiment, seconds: float = float("inf")) -> Verdict:
    """Take a few steps of a copy on the same samples, and look at its loss and at what clipping leaves."""
    expected = "a loss that falls"
    if not any(rate > 0 for rate in peak_rates(exp)):
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: the rate is 0; see `optimizer`")
    deadline = perf_counter() + seconds
    x, y = small_samples(exp, min(COUNT, exp.cfg.trainer.batch_size))
    try:
        losses, sizes = _run(exp, (x, y), 1.0, min(deadline, perf_counter() + SECONDS))
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: no gradient; see `parameters`")
    if len(losses) < LEAST and math.isfinite(losses[-1]) and not _fell(losses):
        return Verdict(Outcome.SKIP, "not run", expected, "the time is used up: raise check.budget")
    cut, words = _clipping(exp, sizes)
    shown = f"loss {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps{words}"
    found = _outweighed(exp, (x, y), losses, deadline)
    if found is None and not _fell(losses):
        found = _why(exp, (x, y), losses, deadline)
    for verdict in (found, cut, _values(exp, (x, y)), _average(exp)):
        if verdict is not None:
            return Verdict(verdict[0], shown, expected, verdict[1])
    return Verdict(Outcome.PASS, shown, expected, "real steps lower the loss" if _fell(losses) else "steps are small")


def _run(
    exp: Experiment, batch: tuple[Tensor, Tensor], factor: float, deadline: float
) -> tuple[list[float], list[float]]:
    """The loss before every step and the norm of its gradient before clipping, at `factor` times the peak rate."""
    trial = twin(exp)
    trial.model.train()
    for group, rate in zip(trial.optimizer.param_groups, peak_rates(exp), strict=True):
        group["lr"] = factor * rate
    losses, sizes = [], []
    if isinstance(trial.optimizer, torch.optim.LBFGS):  # whose steps have many, and tell the loss of the last alone
        with torch.no_grad(), trial.autocast():
            losses.append(float(trial.objective(trial.stepped, trial.loss, Batch(*batch))[0]))
    for _ in range(STEPS):
        step = loop.step(trial, Batch(*batch))
        losses.append(float(step.loss) / len(batch[1]))
        sizes.append(float(step.grad_norm) / len(batch[1]))
        done = len(losses) >= ENOUGH[0] and max(losses[-2:]) < ENOUGH[1] * losses[0]
        if done or not math.isfinite(losses[-1]) or perf_counter() > deadline:
            break
    return losses, sizes


def _fell(losses: list[float]) -> bool:
    """Whether the last third is below the start, or the loss is next to nothing."""
    last = losses[-max(1, len(losses) // 3) :]
    return all(map(math.isfinite, last)) and sum(last) / len(last) <= losses[0] - FALLS * abs(losses[0])


def _why(exp: Experiment, batch: tuple[Tensor, Tensor], losses: list[float], deadline: float) -> Found:
    """Why the loss does not fall; None if the steps are only small, or nothing lowers it."""
    rose = not losses[-1] <= losses[0] + FALLS * abs(losses[0])
    run = f"from {losses[0]:.3g} to {losses[-1]:.3g}"
    for factor in LOWER if rose else HIGHER:
        if perf_counter() > deadline:
            return None
        if not _fell(_run(exp, batch, factor, deadline)[0]):
            continue
        if not rose:
            return None  # a low rate; how far the whole training can go, `descent` computes
        rate = max(peak_rates(exp))
        message = f"the loss rises {run} on the same samples at lr {rate:g}, and falls at {factor:g} times the rate"
        return Outcome.WARN, message + advice(exp, f"optimizer.lr={rate * factor:.2g}")
    usual = [float(v.detach()) for v, _ in _adam(exp, batch)]
    if not usual or not _fell(usual):
        return None  # no fault of the optimizer; see `overfit`
    message = f"{type(exp.optimizer).__name__} does not lower the loss of {len(batch[1])} samples, {run}, nor at other "
    message += f"rates, but torch.optim.Adam does, to {usual[-1]:.3g}: look at step()"
    return (Outcome.FAIL if rose else Outcome.WARN), message + advice(exp, "optimizer=adam")


def _outweighed(exp: Experiment, batch: tuple[Tensor, Tensor], losses: list[float], deadline: float) -> Found:
    """Whether a penalty or decay keeps the loss from falling."""
    if losses[-1] < LITTLE[0] * losses[0]:
        return None
    for name, fix, other in _others(exp):
        alone = _run(other, batch, 1.0, deadline)[0][-1]
        if alone < LITTLE[1] * losses[0]:
            message = f"the data loss goes from {losses[0]:.3g} to {losses[-1]:.3g}, and without {name}, which "
            return Outcome.WARN, f"{message}outweighs it, to {alone:.3g}{advice(exp, fix)}"
    return None


def _others(exp: Experiment) -> Iterator[tuple[str, str, Experiment]]:
    """The experiment without each of what is added to its data loss: the name, what to type, and the rest."""
    if exp.penalty.active:
        yield "the penalty", "regularizer=none", replace(exp, penalty=exp.penalty.scaled(0.0))
    if any(float(group.get("weight_decay") or 0.0) for group in exp.optimizer.param_groups):
        without = twin(exp)
        for group in without.optimizer.param_groups:
            group["weight_decay"] = 0.0
        yield "weight decay", "optimizer.weight_decay=1e-4", without


def _adam(exp: Experiment, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return training(exp, replica(exp), repeat(batch, STEPS), ADAM, exp.loss)


def _clipping(exp: Experiment, sizes: list[float]) -> tuple[Found, str]:
    """A verdict if clipping by norm decides the length of every step, and how often and by how much it clips."""
    limit = exp.cfg.trainer.clip_norm
    times = [size / limit for size in sizes if size > limit] if limit else []
    if not times:
        return None, ""
    share, middle = len(times) / len(sizes), median(times)
    words = f"; {share:.0%} of the steps clipped, by {middle:.2g} times"
    if share < OFTEN or middle < CUT or not _scaled(exp):
        return None, words
    message = f"trainer.clip_norm={limit:g} cuts {share:.0%} of the gradients, to a {middle:.0f}th of their norm, so "
    message += "every step is as long as the limit says, whatever the gradient"
    return (
        Outcome.WARN,
        message + advice(exp, f"trainer.clip_norm={max(1.0, float(f'{median(sizes):.0e}')):g}"),
    ), words


def _scaled(exp: Experiment) -> bool:
    """Whether a smaller gradient makes smaller steps: those of Adam do not depend on its size."""
    try:
        small = Small(exp)
        less = small.walk(lambda i, t: small.slope[i] / 10, 1)
        return length(small.moves(less, 0)) < small.lengths[0] / 3
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError):
        return False


def _values(exp: Experiment, batch: tuple[Tensor, Tensor]) -> Found:
    """Whether clipping by value leaves little but the signs."""
    limit = exp.cfg.trainer.clip_value
    if not limit or not _scaled(exp):
        return None
    trial = twin(exp)
    with trial.autocast():
        value, _ = trial.objective(trial.model.train(), trial.loss, Batch(*batch))
    torch.autograd.backward(value)
    sizes = torch.cat([p.grad.abs().flatten() for p in trial.model.parameters() if p.grad is not None])
    sizes = sizes[sizes > 0].sort().values
    if (
        not len(sizes)
        or not float(sizes[int(RARE * len(sizes))]) > limit
        or not float(sizes[len(sizes) // 2]) > CUT * limit
    ):
        return None
    message = (
        f"trainer.clip_value={limit:g} cuts more than {1 - RARE:.0%} of the entries of the gradient, the middle one "
    )
    message += f"from {float(sizes[len(sizes) // 2]):.2g}, so little but their signs is left"
    return Outcome.WARN, message + advice(exp, f"trainer.clip_value={float(sizes[int(OFTEN * len(sizes))]):.0e}")


def _average(exp: Experiment) -> Found:
    """Whether the running average of weights spans a useful part of the planned steps."""
    decay = exp.cfg.trainer.ema
    if not decay:
        return None
    steps = norms.planned(exp.cfg.trainer, len(exp.data.train))
    span = 1 / (1 - decay)
    if span < SHORT:
        message = f"trainer.ema={decay:g} averages over {span:.1g} steps, which is hardly an average"
        return Outcome.WARN, message + advice(exp, "trainer.ema=0.99")
    if span <= LAG * steps:
        return None
    message = f"trainer.ema={decay:g} averages over {span:,.0f} steps, and the whole training has {steps:,}, so the "
    message += "average would lag behind the weights; the warm-up shortens it, and the number has no effect"
    return Outcome.WARN, message + advice(exp, f"trainer.ema={max(0.9, 1 - 10 / steps):.2g}")
