"""C8, R2: evaluation answers like training, for the same samples after the same steps; `dlrun check`.

Trains a copy, with its dropout, on a few samples, sets the running statistics of batch norm to theirs, and compares
both modes. Detects: a flag the wrong way round, dropout that is not scaled, custom norms and noise that act differently
in evaluation, one batch norm in several places. Cannot detect: running statistics that lag (`batch_norm`
computes that), or a difference that leaves the scale of the logits and the right answers.
"""

from __future__ import annotations

from itertools import repeat
from time import perf_counter

import torch
from torch import Tensor, nn

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import samples, settle, training
from dlrun.checks.smaller import shown as shown_side
from dlrun.checks.smaller import shrunk, smaller_side
from dlrun.models.outputs import logits_of
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["modes"]

COUNT, STEPS, EVERY = 32, 120, 10
RATES = (1e-3, 1e-2)
LEARNED = 0.8  # accuracy in training mode that makes the comparison tell something
LOST = 0.5  # of accuracy; deep networks of batch norm over few values lose a quarter by its unbiased variance
SECONDS = 10.0  # at most
SCALE = 0.55, 1.8  # logits in evaluation over their mean in training: dropout of 0.5 that is not scaled gives 2
PASSES = 16


@check(order=175, needs_outputs=True, timed=True, share=2)
def modes(exp: Experiment, seconds: float = float("inf")) -> Verdict:
    """Train a copy on a few samples, and compare accuracy and scale of the logits in both modes."""
    deadline = perf_counter() + min(seconds, SECONDS)
    x, y = samples(exp, COUNT)
    x = shrunk(x, side := smaller_side(exp))
    expected = "evaluation like training"
    if _same(copied(exp.model), x):
        return Verdict(Outcome.PASS, "the same logits", expected, "nothing in the network depends on the mode")
    right = 0.0
    for rate in RATES:
        model = copied(exp.model).train()
        right = _learn(exp, model, (x, y), rate, deadline)
        if right >= LEARNED or perf_counter() > deadline:
            break
    if right < LEARNED:
        message = "undecided: the network does not learn a few samples quickly; see `overfit`"
        if seconds < SECONDS and perf_counter() > deadline:
            message = "undecided: a few samples are not yet learned, and the time is used up: raise check.budget"
        return Verdict(Outcome.SKIP, f"accuracy {right:.2f}", expected, message)
    settle(model, x)
    with torch.no_grad():
        model.train()
        passes = [logits_of(model(x)).float() for _ in range(2)]
        if not _settled(*passes):
            passes += [logits_of(model(x)).float() for _ in range(PASSES - 2)]
        many = torch.stack(passes)
        settle(model, x)
        evaluated = model.eval()(x).float()
    there = float((many.argmax(2) == y).float().mean())
    here = float((evaluated.argmax(1) == y).float().mean())
    shown = f"accuracy {there:.2f} in training mode, {here:.2f} in evaluation mode{shown_side(side)}"
    if there - here > LOST:
        message = (
            f"evaluation forgets what training has learned, on the same {len(y)} samples: look for `self.training` the "
            "wrong way round, a norm that uses other statistics, or one batch norm in several places"
        )
        return Verdict(Outcome.FAIL, shown, expected, message)
    ratio = _scale(many, evaluated)
    if ratio is not None and not SCALE[0] < ratio < SCALE[1]:
        message = (
            f"logits are {ratio:.2g} times as large in evaluation mode as on average in training mode: divide what "
            "dropout keeps by the share that is kept, as nn.Dropout does"
        )
        return Verdict(Outcome.WARN, shown, expected, message)
    return Verdict(Outcome.PASS, shown, expected, "both modes give the same answers")


def _same(model: nn.Module, x: Tensor) -> bool:
    """Whether both modes compute the same logits, twice, so that no training is needed to compare them."""
    with torch.no_grad():
        first, again, evaluated = (logits_of(model.train(mode)(x)).float() for mode in (True, True, False))
    spread = float(evaluated.std())
    return all(float((one - evaluated).abs().max()) <= 1e-4 * spread for one in (first, again))


def _learn(exp: Experiment, model: nn.Module, batch: tuple[Tensor, Tensor], rate: float, deadline: float) -> float:
    """Train on one batch until it is known; return the accuracy in training mode, a mean over a few steps."""
    hits: list[float] = []
    for _, logits in training(exp, model, repeat(batch, STEPS), rate):
        hits.append(float((logits.argmax(1) == batch[1]).float().mean()))
        if perf_counter() > deadline or (len(hits) >= EVERY and min(hits[-3:]) > 0.97):
            break
    return sum(hits[-5:]) / max(1, len(hits[-5:]))


def _settled(one: Tensor, again: Tensor) -> bool:
    """Whether nothing is random in training mode: two passes give the same logits, within rounding."""
    return float((one - again).abs().max()) <= 1e-5 * float(one.std())


def _scale(many: Tensor, evaluated: Tensor) -> float | None:
    """By how much larger logits are in evaluation than their mean in training mode; None if nothing is random there."""
    mean = many.mean(0)
    if float(many.std(0).max()) <= 1e-3 * float(mean.std()):
        return None
    mean, evaluated = (logits - logits.mean(1, keepdim=True) for logits in (mean, evaluated))
    return float((mean * evaluated).sum() / mean.square().sum().clamp_min(1e-12))
