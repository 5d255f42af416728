"""C8: an output depends on its own input, on nothing else, and is the same in two evaluations.

Detects: a view or permute that mixes samples, batch norm that stays in training mode, dropout left on in
evaluation, a squeeze that breaks a batch of one, a network whose outputs ignore the input. It changes the
other samples of a batch, reorders them, removes them, and evaluates twice; differences are compared with
the spread of the logits between samples. Cannot detect: pixels or channels mixed inside one sample, which is a
fixed reordering and can be learned.
"""

from __future__ import annotations

from itertools import repeat
from time import perf_counter

import torch
from torch import Tensor, nn

from dlrun.checks.advice import advice, limited
from dlrun.checks.blame import blame
from dlrun.checks.check import check
from dlrun.checks.mixed_samples import mixing
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import settle, training
from dlrun.checks.smaller import small_samples
from dlrun.errors import first_line
from dlrun.models.outputs import logits_of
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["independence"]

COUNT = 16
SAME = 1e-2  # share of the spread: mixing moves logits by about the spread, rounding by 1e-5 of it
ROUNDING = {"cpu": 1e-5}  # relative to the largest logit; TF32 and atomics elsewhere leave three digits
CONSTANT = 1e-6  # relative to the largest logit: the last digit of a float
BURN_IN, EVERY = 150, 10  # steps at most, and between two evaluations


@check(order=110, needs_outputs=True, timed=True, labels=False)
def independence(exp: Experiment, seconds: float = float("inf")) -> Verdict:
    """Evaluate a batch again, shuffled, among other samples and one by one, and compare the logits."""
    deadline = perf_counter() + seconds
    x, y = small_samples(exp, COUNT)
    expected = f"difference < {SAME:g} of the spread"
    if len(x) < 4:
        return Verdict(
            Outcome.SKIP, f"{len(x)} samples", expected, f"too few samples to mix; add samples{limited(exp)}"
        )
    model = copied(exp.model)  # not a replica: dropout that stays on must be detected
    with torch.no_grad():
        model.train()(x)  # layers may initialise themselves from the first batch
    settle(model, x)
    model.eval()
    if _constant(model, x):
        _burn_in(exp, model, x, y, deadline)
        if _constant(model, x) and perf_counter() > deadline:
            message = "all samples have the same output so far, and the time is used up: raise check.budget"
            return Verdict(Outcome.SKIP, "", expected, message)
    base = _logits(model, x)
    spread, floor = float(base.std(0).max()), ROUNDING.get(exp.device.type, 2e-3) * float(base.abs().max())
    allowed = SAME * spread + floor
    again = float((_logits(model, x) - base).abs().max())
    if not again <= allowed:
        message = f"two evaluations of the same batch differ: {_why_not_twice(model, x, allowed)}"
        return Verdict(Outcome.FAIL, f"twice: {again / (spread + 1e-12):.2g} of the spread", expected, message)
    mixed = {kind: float(d) for kind, d in _differences(model, x, base).items()}
    worst = max(mixed, key=lambda kind: mixed[kind])
    shown = f"{worst}: {mixed[worst] / (spread + 1e-12):.2g} of the spread"
    if not mixed[worst] <= allowed:
        message = (
            f"the output of a sample depends on others in its batch{mixing(model, x)}: a view or permute mixes "
            "samples, or batch norm stays in training mode; keep the batch axis first in every view, "
            "and pass training=self.training or call super().train(mode)"
        )
        return Verdict(Outcome.FAIL, shown, expected, message)
    alone = _alone(model, x)
    if isinstance(alone, str):
        message = f"a batch of one {alone}: name the axis in squeeze(), or use flatten(1)"
        return Verdict(Outcome.FAIL, "batch of one", expected, message)
    if not float((alone - base[:1]).abs().max()) <= allowed + 1e-4 * float(base.abs().max()):
        message = "a sample alone has another output than in its batch: do not average over the batch axis"
        return Verdict(Outcome.FAIL, "batch of one differs", expected, message)
    if _constant(model, x) or _constant(model.train(), x):
        message = (
            "all samples have the same output, whatever the input: dead or saturated units, weights that "
            f"are all zero, or a forward() that ignores x{blame(exp, model, x, y)}"
            + advice(exp, "model.init=he_normal", "model.activation=relu")
        )
        return Verdict(Outcome.FAIL, f"spread {spread:.2g}", "logits that differ between samples", message)
    return Verdict(Outcome.PASS, shown, expected, "each output depends on its own input alone")


def _why_not_twice(model: nn.Module, x: Tensor, allowed: float) -> str:
    before = x.clone()
    seeded = []
    for _ in range(2):
        torch.manual_seed(0)
        seeded.append(_logits(model, before.clone()))
    _logits(model, x)
    if not torch.equal(x, before):
        return "forward() changes its input in place; work on a copy: x = x * 2 instead of x.mul_(2)"
    if float((seeded[0] - seeded[1]).abs().max()) <= allowed:
        return (
            "dropout or noise is left on, or forward() creates new weights; "
            "pass training=self.training to F.dropout, and create layers in __init__()"
        )
    return "forward() keeps state between batches; reset it at the start of every batch"


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = logits_of(model(x))
    return logits.float()


def _constant(model: nn.Module, x: Tensor) -> bool:
    logits = _logits(model, x)
    return not float((logits - logits[:1]).abs().max()) > CONSTANT * float(logits.abs().max())


def _burn_in(exp: Experiment, model: nn.Module, x: Tensor, y: Tensor, deadline: float) -> None:
    """Train until outputs differ: a head that starts at zero, as in vision transformers, moves at once."""
    for step, _ in enumerate(training(exp, model.train(), repeat((x, y), BURN_IN), 1e-3), 1):
        if step % EVERY == 0:
            settle(model, x)
            if not _constant(model.eval(), x):
                return
            model.train()
        if perf_counter() > deadline:
            break
    model.eval()


def _differences(model: nn.Module, x: Tensor, base: Tensor) -> dict[str, Tensor]:
    """Largest change of a logit when other samples of the batch change, and when their order does."""
    half = len(x) // 2
    others = x.clone()
    others[half:] = 1 - 3 * x[half:].flip(0)
    order = torch.arange(len(x), device=x.device).roll(3).flip(0)
    return {
        "others changed": (_logits(model, others)[:half] - base[:half]).abs().max(),
        "order changed": (_logits(model, x[order]) - base[order]).abs().max(),
    }


def _alone(model: nn.Module, x: Tensor) -> Tensor | str:
    try:
        logits = _logits(model, x[:1])
    except Exception as error:  # the user's own forward
        return f"raises an error ({first_line(error)})"
    return logits if logits.ndim == 2 else f"has outputs of shape {tuple(logits.shape)}"
