"""Learning-rate schedules, warm-up and the momentum ramp.

Reached by `scheduler=cosine`, `scheduler.warmup=2`, `scheduler.momentum_end=0.99` (practices O2, O3).
Every schedule is a pure function of t, the epochs trained so far (0.0 at the first step, fractions
allowed), and returns the factor on the base rate, so that a resumed run needs nothing but its step count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dlrun.errors import UserError

__all__ = [
    "WARMUP_START",
    "Scheduler",
    "constant",
    "cosine",
    "exponential",
    "flat_cosine",
    "halve",
    "inverse_sqrt",
    "inverse_time",
    "linear",
    "multi_step",
    "one_cycle",
    "step",
    "warm_restarts",
]

WARMUP_START = 0.01
"""Factor of the very first step of a warm-up; at zero that step, and its batch, would be wasted."""

_ROUNDING = 1e-9  # 0.3 / 0.1 is 2.9999999999999996: a boundary counts as reached this early, in epochs


def constant(t: float) -> float:
    """1."""
    return 1.0


def step(t: float, *, every: float, gamma: float) -> float:
    """gamma^⌊t/every⌋; as StepLR."""
    _positive(every=every)
    return float(gamma ** math.floor(t / every + _ROUNDING))


def multi_step(t: float, *, milestones: Sequence[float], gamma: float) -> float:
    """gamma^(number of milestones reached); as MultiStepLR."""
    return float(gamma ** sum(t + _ROUNDING >= milestone for milestone in milestones))


def exponential(t: float, *, k: float) -> float:
    """e^(−kt); as ExponentialLR with gamma = e^(−k)."""
    return math.exp(-k * t)


def inverse_time(t: float, *, k: float) -> float:
    """1/(1 + kt); raises UserError for a negative k, which would divide by zero at t = −1/k."""
    if k < 0:
        raise UserError(f"scheduler.k={k:g} must not be negative")
    return 1.0 / (1.0 + k * t)


def inverse_sqrt(t: float) -> float:
    """1/√n with n = 1 + t, the one-based number of the epoch."""
    return 1.0 / math.sqrt(1.0 + t)


def linear(t: float, *, tau: float, final: float = 0.01) -> float:
    """(1 − t/τ) + (t/τ)·final until τ epochs, then final (Goodfellow et al. 2016, eq. 8.14)."""
    _positive(tau=tau)
    done = min(1.0, t / tau)
    return (1.0 - done) + done * final


def halve(t: float, *, epochs: float = 10.0, every: float = 0.0) -> float:
    """½^⌊t/every⌋; 0 is a tenth of `epochs`, at least one: after ten halvings nothing is learned any more."""
    return step(t, every=every or max(1.0, epochs / 10), gamma=0.5)


def cosine(t: float, *, epochs: float, final: float = 0.0) -> float:
    """From 1 to final along half a cosine, then final (Loshchilov & Hutter 2017); as CosineAnnealingLR."""
    _positive(epochs=epochs)
    return _cosine_between(1.0, final, min(1.0, t / epochs))


def flat_cosine(t: float, *, epochs: float, flat_fraction: float = 0.72, final: float = 0.0) -> float:
    """1 for flat_fraction of the epochs, then along half a cosine to final (Wright & Demeure 2021, Ranger21)."""
    _positive(epochs=epochs)
    if not 0.0 <= flat_fraction < 1.0:
        raise UserError(f"scheduler.flat_fraction={flat_fraction:g} must be at least 0 and below 1, such as 0.72")
    done = min(1.0, t / epochs)
    return _cosine_between(1.0, final, max(0.0, done - flat_fraction) / (1.0 - flat_fraction))


def one_cycle(
    t: float,
    *,
    epochs: float,
    warm_fraction: float = 0.3,
    start: float = 0.04,
    final: float = 4e-6,
) -> float:
    """From start up to 1 over warm_fraction of the epochs, then down to final, both along half a cosine.

    As OneCycleLR (Smith & Topin 2018), whose div_factor is 1/start and final_div_factor start/final.
    The base rate is the peak; momentum stays unchanged.
    """
    _positive(epochs=epochs)
    if not 0.0 < warm_fraction < 1.0:
        raise UserError(f"scheduler.warm_fraction={warm_fraction:g} must lie between 0 and 1, such as 0.3")
    done = min(1.0, t / epochs)
    if done < warm_fraction:
        return _cosine_between(start, 1.0, done / warm_fraction)
    return _cosine_between(1.0, final, (done - warm_fraction) / (1.0 - warm_fraction))


def warm_restarts(t: float, *, period: float, mult: float = 1.0, final: float = 0.0) -> float:
    """Cosine from 1 to final, repeated; each period is mult times as long as the last.

    Loshchilov & Hutter 2017 (SGDR); as CosineAnnealingWarmRestarts.
    """
    _positive(period=period)
    if mult < 1.0:
        raise UserError(f"scheduler.mult={mult:g} must be at least 1: periods must not shrink")
    if mult == 1.0:
        t -= period * math.floor(t / period + _ROUNDING)
    else:
        while t + _ROUNDING >= period:
            t, period = t - period, period * mult
    return _cosine_between(1.0, final, max(0.0, t) / period)


def _cosine_between(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * done)) / 2.0


def _positive(**keys: float) -> None:
    for key, value in keys.items():
        if not value > 0:
            raise UserError(f"scheduler.{key}={value:g} must be above 0 (epochs)")


class _Rates(Optimizer):
    """The groups of another optimizer without its parameters, for a torch scheduler to change.

    Torch schedulers compute the next rate from the current one, so warm-up must not be in it; and they require
    `optimizer.step` to have been called before theirs, which costs nothing here.
    """

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__([{**group, "params": [torch.zeros(())]} for group in groups], dict(defaults))

    def step(self, closure: Any = None) -> Any:
        """Nothing to update."""


class Scheduler:
    """Sets the learning rates, and optionally the momentum, of an optimizer before each of its steps.

    `rule` is a function of t (epochs) that returns a factor, or a `functools.partial` of a class of
    torch.optim.lr_scheduler, which is stepped once per epoch. For `warmup` epochs, or `warmup_steps` of the
    `steps` of an epoch, the rate is multiplied by a factor that rises linearly from WARMUP_START to 1.
    Momentum (Adam: the first beta) moves linearly from `momentum_start` to `momentum_end` within
    `momentum_epochs`; `momentum_end` 0 leaves it unchanged. The tensors of a group that has `epochs` are frozen
    after that many, those of one that has `starts` before so many.

    Raises UserError if the rule lacks an argument, the optimizer has no momentum to move, or both warm-ups are given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rule: Callable[..., Any],
        steps: int = 1,
        *,
        warmup: float = 0.0,
        warmup_steps: int = 0,
        momentum_start: float = 0.0,
        momentum_end: float = 0.0,
        momentum_epochs: float = 0.0,
    ) -> None:
        if warmup and warmup_steps:
            raise UserError(f"scheduler.warmup={warmup:g} and scheduler.warmup_steps={warmup_steps}: give one of them")
        for key, value in (("momentum_start", momentum_start), ("momentum_end", momentum_end)):
            if not 0.0 <= value < 1.0:
                raise UserError(f"scheduler.{key}={value:g} must be at least 0 and below 1, such as 0.9")
        if momentum_end and not {"momentum", "betas"} & optimizer.defaults.keys():
            name = type(optimizer).__name__
            raise UserError(
                f"scheduler.momentum_end={momentum_end:g}: {name} has no momentum; use optimizer=sgd or adam"
            )
        self.optimizer = optimizer
        self._rule = rule
        self._warmup = warmup or warmup_steps / steps
        self._momentum = (momentum_start, momentum_end, momentum_epochs)
        self._first_groups = [_options(group) for group in optimizer.param_groups]
        self._base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._values: list[float] = []
        self._start()
        self.set(0.0)

    @property
    def warmup(self) -> float:
        """Length of the warm-up in epochs."""
        return self._warmup

    @property
    def lr(self) -> float:
        """Current learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set(self, t: float) -> None:
        """Set rate and momentum of every group for the step that begins after t epochs."""
        warmup = 1.0
        if t < self._warmup:
            warmup = WARMUP_START + (1.0 - WARMUP_START) * t / self._warmup
        factor = 1.0 if self._torch else self._rule(t)
        for index, group in enumerate(self.optimizer.param_groups):
            lr = self._base_lrs[index] * factor
            if self._torch:
                scheduled = self._rates.param_groups[index]
                lr = float(scheduled["lr"])
                group.update({key: scheduled[key] for key in ("momentum", "betas") if key in scheduled})
            group["lr"] = lr * warmup
            if {"starts", "epochs"} & group.keys():
                learns = group.get("starts", 0.0) <= t + _ROUNDING < group.get("epochs", math.inf)
                for parameter in group["params"]:
                    parameter.requires_grad_(learns)
            self._set_momentum(group, t)

    def plan(self, epochs: int, points: int) -> list[list[float]]:
        """Return the rates of the first group at so many points of each epoch; changes nothing.

        A plateau schedule is planned as if the monitored value improved in every epoch.
        """
        groups = [{**g, "lr": lr} for g, lr in zip(self._first_groups, self._base_lrs, strict=True)]
        twin = Scheduler(_Rates(groups, self.optimizer.defaults), self._rule, warmup=self._warmup)
        sign = -1.0 if getattr(twin._torch, "mode", "max") == "min" else 1.0
        planned = []
        for epoch in range(epochs):
            rates = []
            for point in range(points):
                twin.set(epoch + point / points)
                rates.append(twin.lr)
            planned.append(rates)
            twin.end_epoch(sign * (epoch + 1))
        return planned

    def end_epoch(self, value: float | None) -> None:
        """End an epoch with this monitored value, None if nothing was measured (plateau)."""
        number = math.nan if value is None else float(value)
        self._values.append(number)
        self._advance(number)

    def state_dict(self) -> dict[str, list[float]]:
        """Base rates and the monitored value of every epoch: plain numbers, whatever the schedule."""
        return {"base_lrs": list(self._base_lrs), "values": list(self._values)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore a saved state; a torch scheduler is rebuilt and replays the saved epochs."""
        if len(state["base_lrs"]) != len(self._base_lrs):
            raise UserError(
                f"checkpoint: scheduler has {len(state['base_lrs'])} parameter groups, "
                f"expected {len(self._base_lrs)}; is it from another config?"
            )
        self._base_lrs = list(state["base_lrs"])
        self._values = list(state["values"])
        self._start()
        for value in self._values:
            self._advance(value)

    def _start(self) -> None:
        made = self._rule.func if isinstance(self._rule, partial) else self._rule
        self._torch: LRScheduler | None = None
        try:
            if isinstance(made, type):
                groups = [{**g, "lr": lr} for g, lr in zip(self._first_groups, self._base_lrs, strict=True)]
                self._rates = _Rates(groups, self.optimizer.defaults)
                self._torch = self._rule(self._rates)
                if not isinstance(self._torch, LRScheduler):
                    raise TypeError("expected a class of torch.optim.lr_scheduler or a function of epochs")
                if isinstance(self._torch, ReduceLROnPlateau) and len(set(self._torch.min_lrs)) == 1:
                    # the limits of torch are the same for all groups, and would change the ratio of their rates
                    most = max(self._base_lrs) or 1.0
                    self._torch.min_lrs = [self._torch.min_lrs[0] * lr / most for lr in self._base_lrs]
                    self._torch.eps = 0.0
            else:
                float(self._rule(0.0))
        except (TypeError, ValueError) as error:
            name = getattr(made, "__name__", repr(made))
            raise UserError(f"scheduler: cannot build {name}: {error}") from error

    def _advance(self, value: float) -> None:
        if self._torch is None:
            return
        self._rates.step()
        if isinstance(self._torch, ReduceLROnPlateau):
            self._torch.step(value)
        else:
            self._torch.step()

    def _set_momentum(self, group: dict[str, Any], t: float) -> None:
        start, end, epochs = self._momentum
        if not end:
            return
        done = min(1.0, t / epochs) if epochs > 0 else 1.0
        # RMSprop creates its buffer at the first step, and only if momentum is not zero then
        momentum = max(start + (end - start) * done, 1e-12)
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, *group["betas"][1:])


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
