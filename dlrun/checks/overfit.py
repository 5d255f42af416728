"""C3: the network can memorise twenty examples.

Detects: anything that keeps gradients from training the network: a detached or frozen layer, a wrong sign, dead
units, too many saturating layers, a loss on the wrong output. Adam tries three fixed learning rates, so that a poor
rate drawn by a sweep does not make a sound network fail. Cannot detect: corrupted inputs or labels, which can be
memorised as well (C7 does), or a missing layer that the others compensate for (C9 does).

Near zero is a twentieth of chance here, which most sound networks reach in 3 to 100 steps. All twenty correct with a
loss above it, or near zero with one wrong, is a warning: it learns, but slowly, as networks of sigmoid do. Near zero
with more of them wrong is a failure: the loss is not one of these labels. Outputs that are means of ReLU outputs, as in
SqueezeNet, are at most a warning.
"""

from __future__ import annotations

from itertools import repeat
from time import perf_counter

from torch import Tensor

from dlrun.checks.advice import advice
from dlrun.checks.blame import blame
from dlrun.checks.causes import Attempt, unlearned
from dlrun.checks.check import check
from dlrun.checks.probabilities import pooled
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss, replica, training, uniform
from dlrun.checks.smaller import small_samples
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["overfit"]

EXAMPLES = 20
RATES = (1e-3, 1e-2, 1e-4)
# steps before a plateau counts, over which it is measured, and at most; most sound networks need 3 to 100 steps,
# deep ones of sigmoid or without norms may stay at chance for 400: they get more if there is time
HASTY, PATIENT = (150, 50, 450), (450, 400, 1500)


@check(order=170, needs_outputs=True, timed=True, share=3)
def overfit(exp: Experiment, seconds: float = float("inf")) -> Verdict:
    """Train a copy on 20 examples until all are correct and the loss is below a twentieth of chance."""
    started = perf_counter()
    deadline = started + seconds
    x, y = small_samples(exp, EXAMPLES)
    goal = float(data_loss(exp)(uniform(exp, len(y)), y)) / 20
    expected = f"accuracy 1.00, loss < {goal:.2g}"
    attempts: list[Attempt] = []
    for turn, rate in enumerate(RATES, 1):
        hurry = started + seconds * turn / (len(RATES) + 1)
        attempts.append(attempt := _learn(exp, x, y, rate, goal, hurry, deadline))
        accuracy, now, steps = (
            attempt.accuracy(y),
            attempt.losses[-1] if attempt.losses else float("inf"),
            len(attempt.losses),
        )
        if accuracy == 1.0 and now < goal:
            shown = f"accuracy 1.00, loss {now:.2g}"
            return Verdict(Outcome.PASS, shown, expected, f"memorised in {steps} steps")
        if perf_counter() > deadline:
            shown = f"accuracy {accuracy:.2f}, loss {now:.2g}"
            return Verdict(
                Outcome.SKIP, shown, expected, f"the time is used up after {steps} steps: raise check.budget"
            )
    best = max(attempts, key=lambda one: (one.accuracy(y), -one.losses[-1] if one.losses else 0.0))
    accuracy, now = best.accuracy(y), best.losses[-1] if best.losses else float("inf")
    wrong = round((1 - accuracy) * len(y))
    status = Outcome.WARN if wrong == 0 or (wrong == 1 and now < goal) else Outcome.FAIL
    if status == Outcome.WARN:
        why = f"{len(y)} examples are memorised slowly at each of three learning rates: saturated units, weak gradients"
    else:
        cause = unlearned(attempts, best, x, y, goal, exp.data.classes)
        cause += "" if best.model is None else blame(exp, best.model, x, y)
        why = f"{len(y)} examples cannot be memorised at any of three learning rates: {cause}"
        if pooled(exp, x):
            status = Outcome.WARN  # a published design that trains, if its last units stay alive
            why += "; its outputs are means of ReLU outputs, as in SqueezeNet: units of a class may be dead"
    message = why + advice(exp, "model.activation=relu", "model.norm=batch")
    return Verdict(status, f"accuracy {accuracy:.2f}, loss {now:.2g}", expected, message)


def _learn(exp: Experiment, x: Tensor, y: Tensor, rate: float, goal: float, hurry: float, deadline: float) -> Attempt:
    """Train to the goal, until the loss no longer falls, or until the time is used up."""
    losses = [float("inf")]
    last, connected = None, True
    model = replica(exp)
    for value, logits in training(exp, model, repeat((x, y)), rate):
        losses.append(now := float(value.detach()))
        last, connected = logits, value.requires_grad
        accuracy = float((logits.argmax(1) == y).float().mean())
        # a spike is no plateau: the loss of deep networks without norms rises at times, and then reaches a new best
        first, window, most = HASTY if perf_counter() > hurry else PATIENT
        flat = len(losses) > first and now > 0.9 * losses[-window]
        stuck = flat and min(losses[-window:]) > 0.9 * min(losses[:-window])
        right = accuracy == 1.0 and (now < goal or len(losses) > HASTY[2])  # all correct, but slowly
        if right or now != now or stuck or len(losses) > most or perf_counter() > deadline:
            break
    return Attempt(rate, losses[1:], last, connected, model)
