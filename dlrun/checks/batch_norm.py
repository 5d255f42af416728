"""M5: batch norm sees enough samples, and its running statistics follow the data; `dlrun check`.

Computed from the planned batches and steps, not measured in a training: detects batches, or parts of batches
(trainer.accumulate), of fewer than eight samples; running statistics that still hold their start at the end of the
planned training, that forget all but one batch, or that are frozen at 0 and 1. Parts of eight samples or more are
named: "ghost batches" (Hoffer et al. 2017, Train longer, generalize better), which regularise and are no error.
Cannot detect: norms that one forward pass does not run, or that are called through torch.nn.functional.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dlrun.checks.advice import advice
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, replica, samples
from dlrun.training import norms
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["batch_norm"]

FEW = 8  # samples per normalised part: below, the error of a variance is 50 % and more
START = 0.1  # of the start that is left in a running statistic at the end of the training
HASTY = 0.5  # momentum above which one batch outweighs all before it
COUNT = 4


@check(order=66, needs_outputs=True, depends_on=(*SETUP, "trainer"), labels=False)
def batch_norm(exp: Experiment) -> Verdict:
    """Compare samples per normalised part, and the momentum of running statistics, with the planned training."""
    model = replica(exp)
    share = _seen(model, samples(exp, COUNT)[0])
    trainer, found = exp.cfg.trainer, norms.running(model)
    batch = min(trainer.batch_size, len(exp.data.train))
    count = norms.parts(batch, trainer.accumulate)
    size, steps = batch // count, norms.planned(trainer, len(exp.data.train))
    expected = f"{FEW} samples or more, statistics of the data"
    if not share:
        return Verdict(Outcome.PASS, "no batch norm", expected, "nothing to judge")
    few = [n for n, rows in share.items() if size * rows < FEW]
    shown = f"{len(share)} norms, {size} samples each time, {steps:,} times"
    if few:
        return _small(exp, few, size, count, (shown, expected))
    frozen = [n for n, m in found.items() if not m.training and _untouched(m) and n in share]
    if frozen:
        message = (
            f"{named(frozen)} stays in evaluation mode during training, with the statistics that it was built with, "
            "0 and 1, so it normalises nothing: "
        )
        asked = exp.frozen is not None
        message += (
            "model.freeze and model.hold_norms need pretrained weights, such as model.weights=FILE"
            if asked
            else ("remove eval() from train() and forward(), or use pretrained weights")
        )
        return Verdict(Outcome.FAIL, f"{len(frozen)} frozen at 0 and 1", expected, message)
    following = {n: m for n, m in found.items() if m.training and n in share}
    return _momentum(exp, following, steps, shown, expected) or Verdict(
        Outcome.PASS, shown, expected, _ghosts(count, size)
    )


def _seen(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The batch norms that a forward pass runs, and how many of their samples come from one image."""
    found: dict[str, float] = {}

    def look(_module: nn.Module, args: Any, name: str) -> None:
        if args and isinstance(args[0], Tensor):
            found[name] = len(args[0]) / len(x)

    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(partial(look, name=name))
    with torch.no_grad():
        model(x)
    return found


def _small(exp: Experiment, few: list[str], size: int, count: int, shown: tuple[str, str]) -> Verdict:
    batch = exp.cfg.trainer.batch_size
    where = f"{named(few)} normalises {size} sample{'s' * (size != 1)} at a time"
    if count > 1:
        where += f": trainer.accumulate={count} divides batches of {batch}, and batch norm sees each part by itself"
        fixes = [f"trainer.accumulate={max(1, batch // (4 * FEW))}", "model.norm=group"]
    else:
        fixes = ["model.norm=group", f"trainer.batch_size={4 * FEW}"]
    message = f"{where}; training then differs from evaluation, which uses running statistics"
    words = [f"try {word}" for word in fixes if advice(exp, word)]
    message += f"; {' or '.join(words)}" if words else ""
    return Verdict(Outcome.FAIL if size < 2 else Outcome.WARN, *shown, message)


def _untouched(norm: _BatchNorm) -> bool:
    """Whether the running statistics are still 0 and 1."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())


def _momentum(exp: Experiment, found: dict[str, _BatchNorm], steps: int, shown: str, expected: str) -> Verdict | None:
    """A verdict if running statistics forget too little or too much of what was before, else None."""
    hasty = [n for n, m in found.items() if m.momentum is not None and m.momentum > HASTY]
    if hasty:
        value = found[hasty[0]].momentum
        message = (
            f"momentum {value:g} of {named(hasty)} is the share of the new batch in PyTorch, so running statistics are "
            f"those of the last batch or two: build the norm with momentum={max(1 - (value or 1), 0.1):.2g}"
        )
        return Verdict(Outcome.WARN, f"momentum {value:g}", expected, message)
    fresh = {n for n, m in norms.running(exp.model).items() if _untouched(m)}  # others were loaded with their weights
    slow = {n: norms.left(norms.was(m), steps) for n, m in found.items() if norms.was(m) and n in fresh}
    slow = {n: share for n, share in slow.items() if share > START}
    if not slow:
        return None
    name = max(slow, key=lambda n: slow[n])
    norm, first = found[name], norms.was(found[name])
    message = (
        f"with momentum {first:g} the running statistics of {named(list(slow))} still hold {slow[name]:.0%} of their "
        f"start, 0 and 1, after {steps:,} steps, the whole training"
    )
    if norm.momentum != first and norms.left(norm.momentum, steps) <= START:
        message += f"; dlrun has raised it to {norm.momentum:.2g}, which fits this training"
    else:
        needed = 1 - 0.01 ** (5 / steps)
        fix = f"build the norm with momentum={needed:.1g}" if norm.momentum != 0.1 and needed <= HASTY else ""
        more = advice(exp, f"trainer.epochs={exp.cfg.trainer.epochs * -(-25 // steps)}") if not fix else ""
        message += f", so evaluation is unlike training: {fix or 'train for more steps'}{more}"
    return Verdict(Outcome.WARN, f"{slow[name]:.0%} of the start left", expected, message)


def _ghosts(count: int, size: int) -> str:
    if count == 1:
        return "running statistics follow the data"
    return (
        f"ghost batches of {size} samples: batch norm normalises each of trainer.accumulate={count} parts by itself, "
        "so the gradient is not quite that of the whole batch"
    )
