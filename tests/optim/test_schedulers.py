"""Schedules by number and against torch, warm-up, momentum and exact resume (O2, O3)."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import lr_scheduler

from dlrun.config.compose import builtin_conf
from dlrun.errors import UserError
from dlrun.optim import Scheduler, schedulers

CONF = builtin_conf()
EPOCHS = 12


def make_optimizer(lr: float = 0.1, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr, **options)


def build_rule(option: str) -> partial[Any]:
    """The rule of conf/scheduler/<option>.yaml, as dlrun instantiates it."""
    cfg = OmegaConf.create({"trainer": {"epochs": EPOCHS}, "rule": OmegaConf.load(CONF / f"scheduler/{option}.yaml")})
    keys = OmegaConf.to_container(cfg.rule, resolve=True)
    assert isinstance(keys, dict)
    assert keys.pop("_partial_") is True
    return partial(resolve(keys.pop("_target_")), **keys)


def resolve(target: str) -> Any:
    module, name = target.rsplit(".", 1)
    return getattr(__import__(module, fromlist=[name]), name)


OPTIONS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))


# ---- formulas

s = schedulers
FORMULAS = [
    (s.constant, {}, {0: 1, 7.3: 1}),
    (s.step, {"every": 5, "gamma": 0.5}, {0: 1, 4.999: 1, 5: 0.5, 9.9: 0.5, 10: 0.25}),
    (s.step, {"every": 20, "gamma": 0.1}, {19.99: 1, 20: 0.1, 40: 0.01}),
    (s.step, {"every": 0.1, "gamma": 0.5}, {0.3: 0.125}),  # 0.3 / 0.1 is below 3 in floating point
    (s.multi_step, {"milestones": [2, 4.5], "gamma": 0.1}, {1.99: 1, 2: 0.1, 4.4: 0.1, 4.5: 0.01}),
    (s.exponential, {"k": 0.1}, {0: 1, 10: math.exp(-1), 2.5: math.exp(-0.25)}),
    (s.inverse_time, {"k": 0.5}, {0: 1, 2: 0.5, 3: 0.4}),
    (s.inverse_sqrt, {}, {0: 1, 3: 0.5, 8: 1 / 3}),
    (s.linear, {"tau": 10}, {0: 1, 5: 0.505, 10: 0.01, 99: 0.01}),
    (s.linear, {"tau": 4, "final": 0.2}, {1: 0.8, 4: 0.2}),
    (s.halve, {}, {0: 1, 0.99: 1, 1: 0.5, 3.5: 0.125}),
    (s.halve, {"epochs": 30.0}, {0: 1, 2.99: 1, 3: 0.5, 29: 2**-9}),
    (s.halve, {"epochs": 30.0, "every": 1.0}, {1: 0.5, 29: 2**-29}),
    (s.halve, {"epochs": 5.0}, {1: 0.5, 4: 2**-4}),
    (s.cosine, {"epochs": 10}, {0: 1, 5: 0.5, 2.5: (1 + math.sqrt(0.5)) / 2, 10: 0, 11: 0}),
    (s.cosine, {"epochs": 10, "final": 0.1}, {0: 1, 5: 0.55, 10: 0.1}),
    (s.flat_cosine, {"epochs": 10, "flat_fraction": 0.6}, {0: 1, 6: 1, 8: 0.5, 10: 0, 11: 0}),
    (s.flat_cosine, {"epochs": 10, "flat_fraction": 0.0, "final": 0.2}, {0: 1, 5: 0.6, 10: 0.2}),
    (s.one_cycle, {"epochs": 10}, {0: 0.04, 1.5: 0.52, 3: 1, 6.5: 0.500002, 10: 4e-6, 11: 4e-6}),
    (s.warm_restarts, {"period": 4}, {0: 1, 2: 0.5, 4: 1, 6: 0.5, 40: 1}),
    (s.warm_restarts, {"period": 1, "mult": 2, "final": 0.2}, {0.5: 0.6, 1: 1, 2: 0.6, 3: 1, 5: 0.6, 7: 1}),
]


@pytest.mark.parametrize(("rule", "keys", "values"), FORMULAS)
def test_formula(rule: Callable[..., float], keys: dict[str, Any], values: dict[float, float]) -> None:
    assert [rule(t, **keys) for t in values] == pytest.approx(list(values.values()), rel=1e-12, abs=1e-15)


TORCH = [
    (partial(s.step, every=5, gamma=0.5), partial(lr_scheduler.StepLR, step_size=5, gamma=0.5)),
    (
        partial(s.multi_step, milestones=[3, 7], gamma=0.1),
        partial(lr_scheduler.MultiStepLR, milestones=[3, 7], gamma=0.1),
    ),
    (partial(s.exponential, k=0.3), partial(lr_scheduler.ExponentialLR, gamma=math.exp(-0.3))),
    (
        partial(s.cosine, epochs=EPOCHS, final=0.1),
        partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS, eta_min=0.01),
    ),
    (
        partial(s.linear, tau=5, final=0.01),
        partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.01, total_iters=5),
    ),
    (
        # torch counts steps 0 … total−1 and puts the peak at pct·total − 1: the same curve, one step longer
        partial(s.one_cycle, epochs=EPOCHS),
        partial(
            lr_scheduler.OneCycleLR,
            max_lr=0.1,
            total_steps=EPOCHS + 1,
            pct_start=(0.3 * EPOCHS + 1) / (EPOCHS + 1),
            cycle_momentum=False,
        ),
    ),
    (
        partial(s.warm_restarts, period=3, mult=2, final=0.1),
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3, T_mult=2, eta_min=0.01),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), TORCH, ids=lambda rule: rule.func.__name__)
def test_schedule_equals_torchs(ours: partial[float], theirs: partial[Any]) -> None:
    optimizer = make_optimizer(lr=0.1)
    reference = theirs(optimizer)
    rates = []
    for _ in range(EPOCHS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) <= EPOCHS:
            reference.step()
    assert [0.1 * ours(float(t)) for t in range(EPOCHS + 1)] == pytest.approx(rates, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_warm_restarts_equal_torchs_at_fractions(mult: int) -> None:
    optimizer = make_optimizer(lr=0.1)
    reference = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=mult)
    optimizer.step()
    for t in (0.25, 1.75, 2.5, 5.5, 7.125, 13.75, 25.25):
        reference.step(t)
        assert 0.1 * s.warm_restarts(t, period=2, mult=mult) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (partial(s.step, every=0.0, gamma=0.5), r"scheduler\.every=0\b.*\babove 0\b"),
        (partial(s.cosine, epochs=-1), r"scheduler\.epochs=-1\b.*\babove 0\b"),
        (partial(s.inverse_time, k=-1.0), r"scheduler\.k=-1\b"),
        (partial(s.one_cycle, epochs=3, warm_fraction=1.0), r"scheduler\.warm_fraction=1\b.*\b0 and 1\b"),
        (partial(s.warm_restarts, period=3, mult=0.5), r"scheduler\.mult=0\.5\b.*\b1\b"),
        (partial(s.step, gamma=0.5), r"scheduler: .*\bstep\b.*'every'"),
        (partial(lr_scheduler.StepLR), r"scheduler: .*\bStepLR\b.*'step_size'"),
        (partial(lr_scheduler.ReduceLROnPlateau, factor=1.5), r"scheduler: .*\bReduceLROnPlateau\b.*[Ff]actor"),
        (partial(nn.ReLU), r"scheduler: .*\bReLU\b.*torch\.optim\.lr_scheduler"),
    ],
)
def test_bad_keys_are_user_errors_before_training(rule: partial[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scheduler(make_optimizer(), rule)


# ---- driver


def test_every_group_keeps_its_own_base_rate() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.02)]
    optimizer = torch.optim.SGD(groups)
    for rule in (s.halve, partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)):
        scheduler = Scheduler(optimizer, rule, warmup=2.0)
        scheduler.set(1.0)
        scheduler.end_epoch(1.0)
        scheduler.set(1.0)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05 * 0.505, 0.01 * 0.505])
        scheduler.set(0.0)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1, 0.02


def test_warm_up_rises_linearly_from_a_hundredth() -> None:
    scheduler = Scheduler(make_optimizer(lr=1.0), s.constant, warmup=2.0)
    assert scheduler.lr == 0.01  # set from the start, before the first step
    rates = {}
    for t in (0.0, 0.5, 1.0, 2.0, 5.0):
        scheduler.set(t)
        rates[t] = scheduler.lr
    assert rates == pytest.approx({0.0: 0.01, 0.5: 0.2575, 1.0: 0.505, 2.0: 1.0, 5.0: 1.0})


def test_warm_up_counts_steps_too_but_not_both() -> None:
    scheduler = Scheduler(make_optimizer(lr=1.0), s.constant, warmup_steps=25, steps=10)
    assert scheduler.warmup == 2.5
    rates = {}
    for step in (0, 5, 20, 24, 25):
        scheduler.set(step / 10)
        rates[step] = scheduler.lr
    assert rates == pytest.approx({step: min(1.0, 0.01 + 0.99 * step / 25) for step in rates})
    assert Scheduler(make_optimizer(lr=1.0), s.constant).warmup == 0
    with pytest.raises(UserError, match=r"scheduler\.warmup=1\b.*\bscheduler\.warmup_steps=5\b"):
        Scheduler(make_optimizer(), s.constant, warmup=1.0, warmup_steps=5)


def test_plateau_halves_when_the_monitor_stalls() -> None:
    rule = partial(lr_scheduler.ReduceLROnPlateau, mode="max", factor=0.5, patience=1)
    scheduler = Scheduler(make_optimizer(lr=0.8), rule, warmup=2.0)
    rates = []
    for epoch, accuracy in enumerate([0.5, 0.6, 0.6, 0.6, 0.7, 0.6, 0.6]):
        scheduler.set(float(epoch))
        rates.append(scheduler.lr)
        scheduler.end_epoch(accuracy)
    scheduler.set(7.0)
    # warm-up scales what is set, and never leaks into the rate that plateau halves
    assert [*rates, scheduler.lr] == pytest.approx([0.008, 0.404, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2])


def test_torch_scheduler_may_cycle_the_momentum() -> None:
    rule = partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=10, base_momentum=0.8, max_momentum=0.9)
    optimizer = make_optimizer(momentum=0.5)
    scheduler = Scheduler(optimizer, rule)
    momenta = []
    for epoch in range(4):
        scheduler.set(float(epoch))
        momenta.append(optimizer.param_groups[0]["momentum"])
        scheduler.end_epoch(0.0)
    assert momenta[0] == pytest.approx(0.9)
    assert momenta[2] == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_momentum_ramp(name: str) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = getattr(torch.optim, name)([weight], lr=1e-3)
    scheduler = Scheduler(optimizer, s.constant, momentum_start=0.5, momentum_end=0.99, momentum_epochs=7.0)
    seen = []
    for t in (0.0, 3.5, 7.0, 9.0):
        scheduler.set(t)
        weight.grad = torch.ones(3)
        optimizer.step()
        group = optimizer.param_groups[0]
        seen.append(group["momentum"] if name != "Adam" else group["betas"][0])
    assert seen == pytest.approx([0.5, 0.745, 0.99, 0.99])
    assert name != "Adam" or optimizer.param_groups[0]["betas"][1] == 0.999


def test_momentum_may_start_at_zero_and_is_left_alone_by_default() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.RMSprop([weight], lr=1e-3)
    scheduler = Scheduler(optimizer, s.constant, momentum_end=0.9, momentum_epochs=1.0)
    for t in (0.0, 0.5, 1.0):
        scheduler.set(t)
        weight.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9)
    plain = make_optimizer(momentum=0.7)
    Scheduler(plain, s.constant).set(3.0)
    assert plain.param_groups[0]["momentum"] == 0.7


def test_momentum_ramp_needs_an_optimizer_with_momentum() -> None:
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"scheduler\.momentum_end=0\.9: Adagrad has no momentum"):
        Scheduler(optimizer, s.constant, momentum_end=0.9)
    with pytest.raises(UserError, match=r"scheduler\.momentum_end=1 "):
        Scheduler(make_optimizer(), s.constant, momentum_end=1.0)


RESUMED = {option: build_rule(option) for option in OPTIONS} | {
    "torch StepLR": partial(lr_scheduler.StepLR, step_size=2),
    "torch MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 6]),
    "torch CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS),
    "torch LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "torch OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=EPOCHS),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_restored_schedule_has_the_same_future_bit_for_bit(name: str, stop: int) -> None:
    values = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8]

    def make() -> tuple[Scheduler, torch.optim.SGD]:
        optimizer = make_optimizer(momentum=0.9)
        return Scheduler(optimizer, RESUMED[name], warmup=1.5, momentum_start=0.5, momentum_end=0.9), optimizer

    def go(scheduler: Scheduler, optimizer: torch.optim.SGD, first: int) -> list[tuple[float, float]]:
        seen = []
        for epoch in range(first, len(values)):
            for step in range(3):
                scheduler.set(epoch + step / 3)
                optimizer.step()
                seen.append((scheduler.lr, optimizer.param_groups[0]["momentum"]))
            scheduler.end_epoch(values[epoch])
        return seen

    whole = go(*make(), 0)
    scheduler, optimizer = make()
    for epoch in range(stop):
        scheduler.set(float(epoch))
        scheduler.end_epoch(values[epoch])
    saved = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    scheduler, optimizer = make()
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert go(scheduler, optimizer, stop) == whole[3 * stop :]


def test_a_state_of_another_config_is_refused() -> None:
    scheduler = Scheduler(make_optimizer(), s.constant)
    with pytest.raises(UserError, match="2 parameter groups, expected 1"):
        scheduler.load_state_dict({"base_lrs": [0.1, 0.2], "values": []})


# ---- options


@pytest.mark.parametrize("option", OPTIONS)
def test_scheduler_option_names_only_keys_that_exist_and_starts_at_a_usable_rate(option: str) -> None:
    rule = build_rule(option)
    signature = inspect.signature(rule.func)
    assert set(rule.keywords) <= set(signature.parameters)
    for key, value in rule.keywords.items():
        default = signature.parameters[key].default
        if (
            rule.func.__module__ == "dlrun.optim.schedulers"
            and default is not inspect.Parameter.empty
            and option != "warm_restarts"
            and (option, key) != ("halve", "epochs")  # older runs have none
        ):
            assert value == default, f"{option}.{key}"
    optimizer = make_optimizer()
    scheduler = Scheduler(optimizer, rule)
    assert 0.0 < scheduler.lr <= 0.1


@pytest.mark.parametrize("option", OPTIONS)
def test_every_group_keeps_its_ratio(option: str) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.025, 1e-9)]
    scheduler = Scheduler(torch.optim.SGD(groups, lr=0.1), build_rule(option), warmup=1.5)
    for epoch in range(EPOCHS):
        for part in (0.0, 0.4):
            scheduler.set(epoch + part)
            rates = [group["lr"] for group in scheduler.optimizer.param_groups]
            assert [rate / rates[0] for rate in rates] == pytest.approx([1, 0.25, 1e-8])
        scheduler.end_epoch(0.5)
    assert rates[0] > 0


def test_the_lowest_rate_of_a_plateau_is_that_of_the_group_with_the_highest() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.01)]
    rule = partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1, min_lr=0.005)
    scheduler = Scheduler(torch.optim.SGD(groups, lr=0.1), rule)
    for _ in range(5):
        scheduler.end_epoch(0.5)
    scheduler.set(5.0)
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == pytest.approx([0.005, 0.0005])


def test_a_group_that_starts_later_is_frozen_before() -> None:
    late, brief = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [late], "starts": 2.0}, {"params": [brief], "starts": 1.0, "epochs": 3}]
    scheduler = Scheduler(torch.optim.SGD(groups, lr=0.1), build_rule("constant"))
    found = []
    for t in (0.0, 1.0, 1.9, 2.0, 3.0):
        scheduler.set(t)
        found.append((late.requires_grad, brief.requires_grad))
    assert found == [(False, False), (False, True), (False, True), (True, True), (True, False)]
