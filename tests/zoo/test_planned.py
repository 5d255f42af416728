"""What can be computed of the planned training: schedules and batch norm, in pairs of a fault and its repair (O3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from dlrun.optim.schedulers import Scheduler
from dlrun.training import norms
from support.composed import alter
from support.pairs import Change, Pair, checked, experiment, wear


def normed(**options: float | None) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, **options), nn.Flatten(), nn.Linear(144, 10))  # type: ignore[arg-type]


class Frozen(nn.Module):
    """Its norm stays in evaluation mode, as fine-tuned ones may; these have seen no data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = normed()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.layers[1].eval()  # type: ignore[index]
        return self

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.layers(x)


SGD = "optimizer=sgd"
TORCH = "scheduler=constant scheduler._target_=torch.optim.lr_scheduler"


def planned(rule: Callable[[float], float]) -> Change:
    return lambda exp: alter(exp, scheduler=Scheduler(exp.optimizer, rule))


PAIRS = [
    Pair("rate plays out in an epoch", "schedule", "every=7.5", "scheduler.every=0.05", "", "scheduler=step", "fail"),
    Pair("cosine shorter than training", "schedule", "epochs=30", "scheduler.epochs=8", "", "scheduler=cosine", "warn"),
    Pair("decay per step", "schedule", "scheduler.k=0.1", "scheduler.k=1", "", "scheduler=exponential"),
    Pair("warm-up outlasts training", "schedule", "scheduler.warmup=3", "scheduler.warmup=40", "scheduler.warmup=3"),
    Pair("warm-up of most of it", "schedule", "half of the 30", "scheduler.warmup=20", "scheduler.warmup=2"),
    Pair("cycle longer than training", "schedule", "scheduler.epochs=30", "scheduler.epochs=300", "", "", "fail"),
    Pair(
        *("restart cut short", "schedule", "rises again"),
        *("scheduler.period=7", "scheduler.period=10", "scheduler=warm_restarts scheduler.mult=1", "warn"),
    ),
    Pair(
        *("cosine that rises again", "schedule", "turns 2 times"),
        *("+scheduler.T_max=10", "+scheduler.T_max=30", f"{TORCH}.CosineAnnealingLR", "warn"),
    ),
    Pair(
        *("cosine in steps", "schedule", "100% of the peak"),
        *("+scheduler.T_max=1200", "+scheduler.T_max=30", f"{TORCH}.CosineAnnealingLR", "warn"),
    ),
    Pair(
        *("one cycle in steps", "schedule", "scheduler.total_steps=30"),
        *("+scheduler.total_steps=1200", "+scheduler.total_steps=30"),
        *(f"{TORCH}.OneCycleLR +scheduler.max_lr=0.01", "fail"),
    ),
    Pair(
        *("one cycle that ends early", "schedule", "scheduler.total_steps=30"),
        *("+scheduler.total_steps=10", "+scheduler.total_steps=30"),
        *(f"{TORCH}.OneCycleLR +scheduler.max_lr=0.01", "fail"),
    ),
    Pair(
        *("gamma per step", "schedule", "1.4% only"),
        *("+scheduler.gamma=0.9995", "+scheduler.gamma=0.95", f"{TORCH}.ExponentialLR", "warn"),
    ),
    Pair("rate that grows", "schedule", "optimizer.lr=0.001", "scheduler.gamma=2", "", "scheduler=step", "warn"),
    Pair("decay over at once", "schedule", "scheduler.tau=30", "scheduler.tau=2", "", "scheduler=linear", "warn"),
    Pair("rises to the end", "schedule", "=0.3", "scheduler.warm_fraction=0.9", "scheduler.warm_fraction=0.3"),
    Pair("one milestone in steps", "schedule", "4000", "scheduler.milestones=[9,4000]", "", "scheduler=multi_step"),
    Pair("patience for ever", "schedule", "patience=3", "scheduler.patience=40", "", "scheduler=plateau", "warn"),
    Pair(
        *("plateau the wrong way", "schedule", "scheduler.mode=max"),
        *("+scheduler.mode=min", "+scheduler.mode=max", "scheduler=plateau", "fail"),
    ),
    Pair(
        "a rate for a factor",
        "schedule",
        "factor",
        planned(lambda t: 1e-3),
        planned(lambda t: 1.0 - t / 30),
        "",
        "fail",
    ),
    Pair(
        *("milestones in steps", "schedule", "changes nothing"),
        *("scheduler.milestones=[300]", "", "scheduler=multi_step", "warn"),
    ),
    Pair("steps in steps", "schedule", "every=7.5", "scheduler.every=1000", "", "scheduler=step", "warn"),
    Pair(
        *("decay removes the weights", "schedule", "halves the weights in"),
        *("optimizer.weight_decay=9", "optimizer.weight_decay=0.01", "optimizer=adamw optimizer.lr=0.01", "warn"),
    ),
    Pair(
        *("decay of SGD with momentum", "schedule", "halves the weights in 7 steps"),
        *("optimizer.weight_decay=0.1", "optimizer.weight_decay=1e-3", SGD, "warn"),
    ),
    Pair("batches of one", "batch_norm", "try model.norm=group", "trainer.batch_size=1", "", "", "fail"),
    Pair("batches of one, another norm", "batch_norm", "1 sample", "", "model.norm=group", "trainer.batch_size=1"),
    Pair("batches of four", "batch_norm", "trainer.batch_size=32", "trainer.batch_size=4", "", "", "warn"),
    Pair("parts of two", "batch_norm", "accumulate=16", "trainer.accumulate=16", "trainer.accumulate=2", "", "warn"),
    Pair(
        "a few steps in all",
        "batch_norm",
        "more steps",
        "trainer.epochs=1",
        "trainer.epochs=3",
        "trainer.batch_size=32",
    ),
    Pair("momentum for long trainings", "batch_norm", "0.0003", wear(lambda: normed(momentum=3e-4)), wear(normed)),
    Pair("momentum as TensorFlow's", "batch_norm", "momentum=0.1", wear(lambda: normed(momentum=0.99)), wear(normed)),
    Pair("norm frozen at its start", "batch_norm", "evaluation mode", wear(Frozen), wear(normed), "", "fail"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_of_the_plan_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "plateau", "inverse_sqrt", "inverse_time", "warm_restarts"])  # fmt: skip  # noqa: E501
def test_schedules_with_their_defaults_pass(name: str) -> None:
    assert checked("schedule", f"scheduler={name}").status == "pass"


def test_the_plan_is_what_the_schedule_sets_and_changes_nothing() -> None:
    exp = experiment("scheduler=step scheduler.warmup=1 trainer.epochs=12")
    plan, before = exp.scheduler.plan(12, 4), exp.scheduler.lr
    assert exp.scheduler.lr == before
    for epoch, point in ((0, 0), (0, 3), (5, 0), (11, 2)):
        exp.scheduler.set(epoch + point / 4)
        assert plan[epoch][point] == exp.scheduler.lr


def test_parts_of_eight_samples_are_named_ghost_batches() -> None:
    found = checked("batch_norm", "trainer.accumulate=4")
    assert (found.status, "ghost" in found.message) == ("pass", True)


def test_a_small_momentum_is_raised_for_a_short_training_and_kept_for_a_long_one() -> None:
    def moved(steps: int, momentum: float) -> float | None:
        model = normed(momentum=momentum)
        norms.fit_momentum(model, steps)
        (norm,) = norms.running(model).values()
        assert norms.was(norm) == momentum
        return norm.momentum

    assert moved(258, 0.01) == pytest.approx(1 - 0.01 ** (1 / 51.6))
    assert moved(10, 0.01) == moved(10, 0.1) == 0.1
    assert moved(10, 0.4) == 0.4
    assert moved(10, 0.0) == 0.0
    assert moved(100_000, 0.01) == 0.01


def test_norms_of_built_in_models_with_the_usual_momentum_are_left_alone() -> None:
    exp = experiment("trainer.epochs=1")
    found = norms.running(exp.model)
    assert {norm.momentum for norm in found.values()} == {0.1}
    assert not any(hasattr(norm, "raised_from") for norm in found.values())


def test_mobilenet_is_built_for_the_planned_steps() -> None:
    exp = experiment("model=torchvision model.name=mobilenet_v3_small trainer.epochs=6 trainer.batch_size=8")
    steps = norms.planned(exp.cfg.trainer, len(exp.data.train))
    found = norms.running(exp.model).values()
    assert found
    assert all(norms.left(norm.momentum, round(steps / 5)) < 0.02 for norm in found)
    assert all(norms.was(norm) == 0.01 for norm in found)
