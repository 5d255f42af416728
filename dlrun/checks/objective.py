"""M3, R3: an objective of another package computes a loss, and leaves the model and its gradients alone; `dlrun check`.

Calls a copy with a batch, as the training loop does, and compares the model before and after. Detects: eval() that is
not undone, weights that it freezes or changes, a backward() or zero_grad() of its own, gradients that stay switched
off, a seed that is set for every batch, a loss that is no single number. Cannot detect: a loss that is well formed and
wrong (`mixture` compares it with the labels). What dlrun brings along is not looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.checks.advice import line_now
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, samples, twin
from dlrun.data.batches import Batch
from dlrun.training.experiment import Experiment
from dlrun.training.objective import prepared
from dlrun.vocabulary import Outcome

__all__ = ["objective"]

COUNT = 8
MARK = 0.125  # a gradient that is there before the call, and has to be there afterwards
Found = tuple[Outcome, str, str] | None


@check(order=63, needs_outputs=True, depends_on=(*SETUP, "optimizer", "trainer"), labels=False)
def objective(exp: Experiment) -> Verdict:
    """Call the objective once, and look for what it leaves behind in the model."""
    expected = "a loss, and a model as it was"
    inner = getattr(exp.objective, "inner", exp.objective)
    name = type(inner).__name__ if not hasattr(inner, "__name__") else str(inner.__name__)
    if type(inner).__module__.startswith("dlrun."):
        return Verdict(Outcome.PASS, name, expected, "an objective of dlrun")
    called = _Called(exp)
    for test in (_scalar, _grad_mode, _switched, _frozen, _changed, _cleared, _backward, _seeded):
        if (found := test(exp, called)) is not None:
            status, shown, message = found
            return Verdict(status, shown, expected, f"objective {name} {message}")
    return Verdict(Outcome.PASS, name, expected, "it computes a loss, and changes nothing that it should not")


class _Called:
    """What one call of the objective left in a copy of the model."""

    def __init__(self, exp: Experiment) -> None:
        trial = twin(exp)
        self.model = model = trial.model.train()
        x, y = samples(exp, COUNT)
        batch = prepared(trial.objective, Batch(x, y))
        with torch.no_grad():
            model(x.clone())  # layers may get their sizes, or their first weights, from a batch
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.before = {n: p.detach().clone() for n, p in self.weights.items()}
        for p in self.weights.values():
            p.grad = torch.full_like(p, MARK)
        self.modes = {n: m.training for n, m in model.named_modules()}
        self.lines: dict[str, str] = {}
        states = []
        try:
            with _watched(model, self.lines), trial.autocast():
                torch.manual_seed(1)
                self.value, _ = trial.objective(model, trial.loss, batch)
                states.append(torch.get_rng_state())
            self.enabled = torch.is_grad_enabled()
            self.after = {n: m.training for n, m in model.named_modules()}
            self.stays = {n: p.requires_grad for n, p in self.weights.items()}
            self.gradients = {n: None if p.grad is None else p.grad.clone() for n, p in self.weights.items()}
            self.moved = [n for n, p in self.weights.items() if not torch.equal(p, self.before[n])]
            torch.set_grad_enabled(True)
            torch.manual_seed(2)
            trial.objective(model.train(), trial.loss, batch)
            states.append(torch.get_rng_state())
        finally:
            torch.set_grad_enabled(True)
        self.seeded = torch.equal(*states)

    def line(self, *names: str) -> str:
        """Where the user's code called one of these methods, or ""."""
        return next((self.lines[n] for n in names if n in self.lines), "")


@contextmanager
def _watched(model: nn.Module, lines: dict[str, str]) -> Iterator[None]:
    """Note the lines of the user's code that switch the mode, clear gradients, compute them or set a seed."""
    places: list[tuple[Any, str]] = [(model, "train"), (model, "zero_grad"), (model, "requires_grad_")]
    places += [(torch.optim.Optimizer, "zero_grad"), (torch.Tensor, "backward"), (torch.autograd, "backward")]
    places += [(torch, "manual_seed"), (torch, "set_grad_enabled")]
    kept = [(owner, name, getattr(owner, name), name in vars(owner)) for owner, name in places]

    def wrapped(name: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            if where := line_now():
                lines[name] = where  # the last one counts: eval(), and no train() after it
            return method(*args, **options)

        return call

    for owner, name, method, _ in kept:
        if name != "set_grad_enabled":  # a class, which is used in `with`
            setattr(owner, name, wrapped(name, method))
    try:
        yield
    finally:
        for owner, name, method, own in kept:
            if own:
                setattr(owner, name, method)
            elif name in vars(owner):
                delattr(owner, name)


def _scalar(exp: Experiment, called: _Called) -> Found:
    value = called.value
    if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return Outcome.FAIL, kind, f"returns {kind} as its loss: return one number, the mean over the batch, and logits"
    if not called.stays or not all(called.stays.values()) or called.enabled is False:
        return None  # told below
    message = "returns a loss without a gradient: remove item(), detach() or no_grad() on its way from the logits"
    return Outcome.FAIL, "no gradient", message


def _grad_mode(exp: Experiment, called: _Called) -> Found:
    if called.enabled:
        return None
    message = "leaves gradients switched off for all that follows: use `with torch.no_grad():` in place of "
    return Outcome.FAIL, "gradients off", f"{message}torch.set_grad_enabled(False)"


def _switched(exp: Experiment, called: _Called) -> Found:
    changed = [n or "the model" for n, mode in called.after.items() if mode != called.modes.get(n, mode)]
    if not changed:
        return None
    message = (
        f"leaves {named(changed)} in evaluation mode{called.line('train')}: the mode is set once per epoch, so from "
        "its second step on dropout is off and batch norm uses running statistics; call model.train() before the "
        "forward pass whose loss is returned"
    )
    return Outcome.FAIL, f"{len(changed)} modules switched", message


def _frozen(exp: Experiment, called: _Called) -> Found:
    frozen = [n for n, trains in called.stays.items() if not trains]
    if not frozen:
        return None
    message = f"leaves {named(frozen)} frozen{called.line('requires_grad_')}: the weights get no gradient from the "
    message += "second step on; set requires_grad_(True) again, or use torch.autograd.grad(loss, x)"
    return Outcome.FAIL, f"{len(frozen)} frozen", message


def _changed(exp: Experiment, called: _Called) -> Found:
    if not called.moved:
        return None
    message = (
        f"changes the weights itself ({named(called.moved)}): the training loop takes the step, with clipping and "
        "schedule; return the loss, and remove optimizer.step() or what is added to the weights, or restore them"
    )
    return Outcome.FAIL, f"{len(called.moved)} weights changed", message


def _cleared(exp: Experiment, called: _Called) -> Found:
    gone = [n for n, g in called.gradients.items() if g is None or not bool(g.any())]
    if len(gone) < len(called.gradients) or not gone:
        return None
    parts = exp.cfg.trainer.accumulate
    message = f"clears the gradients{called.line('zero_grad')}, so of trainer.accumulate parts "
    message += f"{'(here ' + str(parts) + ') ' if parts > 1 else ''}the last one alone counts: remove zero_grad(), "
    return (
        Outcome.FAIL if parts > 1 else Outcome.WARN,
        "zero_grad()",
        f"{message}the training loop calls it once per step",
    )


def _backward(exp: Experiment, called: _Called) -> Found:
    more = [n for n, g in called.gradients.items() if g is not None and bool((g != MARK).any())]
    if not more:
        return None
    message = (
        f"leaves gradients in {named(more)}{called.line('backward')}, which are added to those of the step: return the "
        "loss without backward(); for the gradient of images use torch.autograd.grad(loss, x)"
    )
    return Outcome.FAIL, "backward() of its own", message


def _seeded(exp: Experiment, called: _Called) -> Found:
    if not called.seeded:
        return None
    message = f"sets the random seed{called.line('manual_seed')}, so all that is drawn after it is the same in every "
    message += "step: remove manual_seed(); batch.generator is seeded by epoch and step"
    return Outcome.WARN, "a seed", message
