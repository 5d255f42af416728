"""Checks of a network with several targets: each head judged like a network of one (`dlrun check`, C1-C10, M11).

With `dataset.targets=[species,age_group]` a check of EACH runs once per task, on the experiment that has the logits,
the labels and the loss of that task alone, and its verdict is the worst of them. Checks of ONCE need no labels, or pass
them to the loss, and judge the whole. Those of neither are undecided; a new check is, until it is named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.checks.check import Check
from dlrun.checks.garbage import CLASSES
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss
from dlrun.data.splits import Split
from dlrun.data.tasks import Tasks
from dlrun.models.loading import loaded, record
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.training.loss import ByTask
from dlrun.vocabulary import Outcome

__all__ = ["EACH", "ONCE", "judged", "of_task"]

EACH = """
labels class_balance numbering loss loss_terms augmented initial_loss probabilities reach overfit modes garbage
"""
ONCE = """
data_audit data_duplicates schedule rates splits inputs outputs state objective layers batch_norm running layout
structure flow penalty independence parameters optimizer updates descent lint_bias lint_activation lint_width
trial_steps gradient
"""
SLICE, LEFT = 300, 3  # images that `garbage` trains on, and of the rarest class the fewest to hold out
RANK = (Outcome.FAIL, Outcome.WARN, Outcome.SKIP, Outcome.PASS)  # the worst first


def judged(check: Check, exp: Experiment, seconds: float) -> Verdict:
    """Return the verdict of a check, with several targets that of the worst head; each has its share of the seconds."""
    tasks = exp.data.tasks
    if tasks is None or check.name in ONCE.split():
        return check(exp, seconds)
    if check.name not in EACH.split():
        message = f"undecided: it needs one label per image, and there are {len(tasks.names)} targets"
        return Verdict(Outcome.SKIP, "several targets", "", message)
    if check.name == "class_balance" and tasks.sets:
        return Verdict(Outcome.SKIP, "off", "", "most images lack most classes of a set")
    found = [_of_head(check, exp, number, seconds / len(tasks.names)) for number in range(len(tasks.names))]
    if check.name == "reach":
        found = [_without_a_trunk(one) for one in found]
    worst = min(found, key=lambda one: RANK.index(one.status))
    number = found.index(worst)
    if worst.status != Outcome.PASS:
        # balanced batches and weights of classes need one label per image
        said = worst.message.partition("; try ")[0] if check.name == "class_balance" else worst.message
        return replace(worst, message=f"{tasks.names[number]}: {said}")
    named = [*zip(tasks.names, found, strict=True)]
    shown, expected = ("; ".join(f"{n} {getattr(one, key)}" for n, one in named) for key in ("value", "expected"))
    message = f"every head: {worst.message}"
    if check.name == "initial_loss":
        expected += f"; {_sum(exp)}"
    return Verdict(Outcome.PASS, shown, expected, message)


def _of_head(check: Check, exp: Experiment, number: int, seconds: float) -> Verdict:
    """The verdict on one head."""
    tasks = exp.data.tasks
    assert tasks is not None
    if check.name == "garbage":
        # `garbage` trains on so many images of the largest classes in turn: of the rarest none may be left to hold out
        counts = sorted(tasks.counts(exp.data.train.labels)[number], reverse=True)[:CLASSES]
        if min(counts) < min(SLICE, sum(counts) * 2 // 3) / len(counts) + LEFT:
            message = "undecided: too few images of its rarest class to hold some out"
            return Verdict(Outcome.SKIP, f"{min(counts)} images", "", message)
    return check(of_task(exp, number), seconds)


def _without_a_trunk(verdict: Verdict) -> Verdict:
    """A failure for a head whose logits have no gradient by the images: it would learn its own bias."""
    if verdict.status != Outcome.SKIP:
        return verdict
    message = "this head does not reach the images, so the trunk learns nothing from it: look for detach() or no_grad()"
    return replace(verdict, status=Outcome.FAIL, message=message)


def of_task(exp: Experiment, number: int) -> Experiment:
    """Return the experiment that has the logits, the labels and the loss of one task alone."""
    tasks, loss = exp.data.tasks, exp.loss
    assert tasks is not None
    assert isinstance(loss, ByTask)
    model = copied(exp.model)
    if (made := loaded(exp.model)) is not None:
        record(model, made)
    model.register_forward_hook(_Only(tasks, number))

    def only(split: Split) -> Split:
        return replace(split, labels=tasks.columns(split.labels)[:, number])

    data = replace(
        exp.data,
        train=only(exp.data.train),
        val=only(exp.data.val),
        classes=list(tasks.classes[number]),
        tasks=None,
    )
    return replace(exp, model=model, loss=loss.losses[number], data=data, compiled=None)


class _Only:
    """A hook that leaves the logits of one task of what a model returns."""

    def __init__(self, tasks: Tasks, number: int) -> None:
        self.tasks, self.number = tasks, number

    def __call__(self, _module: nn.Module, _args: Any, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            fits = outputs.ndim == 2 and outputs.shape[1] == len(self.tasks.outputs)
            return self.tasks.split(outputs)[self.number] if fits else outputs
        if isinstance(outputs, Mapping):
            return {name: self(_module, _args, one) for name, one in outputs.items()}
        return (
            type(outputs)(self(_module, _args, one) for one in outputs) if type(outputs) in (tuple, list) else outputs
        )


def _sum(exp: Experiment) -> str:
    """The loss of uniform logits for all heads together, in words."""
    tasks, loss = exp.data.tasks, data_loss(exp)
    assert tasks is not None
    assert isinstance(loss, ByTask)
    with torch.no_grad():
        labels = exp.data.train.labels[:1].to(exp.device)
        value = float(loss(torch.zeros(1, len(tasks.outputs), device=exp.device), labels))
    terms = " + ".join(f"{share:g} × {name}" for share, name in zip(loss.shares, tasks.names, strict=True))
    return f"{value:.3f} ({terms})"
