"""The checks at the edge of their bands: a hair inside and a hair outside, and the verdicts that are seldom given."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.checks import chance, garbage, inputs, parameters
from dlrun.checks import overfit as c3
from dlrun.checks.gradient import check
from dlrun.checks.penalty import penalty
from dlrun.training.experiment import Experiment, build
from support.composed import alter, composed

CHANCE = 2.0


@functools.cache
def config(*overrides: str) -> Any:
    return composed("dataset.limit=300", "trainer.threads=1", "model.width=8", *overrides)


def experiment(*overrides: str) -> Experiment:
    return build(config(*overrides))


class Costs(nn.Module):
    """A loss of the same value whatever the logits, where a guess costs CHANCE."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def chance(self, num_classes: int) -> float:
        return CHANCE

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.sum() * 0 + self.value


class Far(nn.Module):
    """Logits of a size that a test chooses, made negative in one of three ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.points = how, nn.Parameter(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "distances":
            return -torch.cdist(x.flatten(1), self.points).square()
        logits = 5 * x.flatten(1) @ self.points.T
        return logits.log_softmax(1) if self.how == "logarithms" else logits


@pytest.mark.parametrize(("how", "status"), [("distances", "skip"), ("logarithms", "fail"), ("logits", "fail")])
def test_a_large_initial_loss_of_negative_distances_is_undecided(how: str, status: str) -> None:
    exp = experiment()
    alter(exp, model=Far(how))
    found = chance.initial_loss(exp)
    assert (found.status, "undecided" in found.message) == (status, how == "distances"), found


@pytest.mark.parametrize(
    ("times", "status"),
    [
        (-0.01, "fail"),  # below zero
        (0.74, "warn"),  # better than any guess by a quarter
        (0.76, "pass"),
        (1.99, "pass"),
        (2.01, "warn"),
        (9.99, "warn"),
        (10.01, "fail"),
        (float("nan"), "fail"),
    ],
)
def test_the_initial_loss_may_be_up_to_twice_chance_and_fails_beyond_ten_times(times: float, status: str) -> None:
    exp = experiment()
    alter(exp, loss=Costs(times * CHANCE))
    assert chance.initial_loss(exp).status == status


def fed(mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Images (50, 3, 8, 8) of exactly this mean and standard deviation, each and every one, and their numbers."""
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)
    return x * std + mean, torch.arange(50)


@pytest.mark.parametrize(
    ("train", "val", "status"),
    [
        ((0.0, 1.0), (0.0, 1.0), "pass"),
        ((0.099, 1.0), (0.0, 1.0), "pass"),
        ((0.101, 1.0), (0.0, 1.0), "warn"),
        ((-0.101, 1.0), (0.0, 1.0), "warn"),
        ((0.0, 1.099), (0.0, 1.0), "pass"),
        ((0.0, 1.101), (0.0, 1.0), "warn"),
        ((0.0, 0.899), (0.0, 1.0), "warn"),
        ((0.0, 1.0), (0.499, 1.499), "pass"),
        ((0.0, 1.0), (0.501, 1.0), "warn"),
        ((0.0, 1.0), (0.0, 0.499), "warn"),
        ((2.9, 1.0), (0.0, 1.0), "warn"),
        ((3.1, 1.0), (0.0, 1.0), "fail"),
        ((0.0, 3.9), (0.0, 1.0), "warn"),
        ((0.0, 1.0), (0.0, 4.1), "fail"),
    ],
)
def test_inputs_may_be_off_by_a_tenth_and_those_of_validation_by_half(
    monkeypatch: pytest.MonkeyPatch, train: tuple[float, float], val: tuple[float, float], status: str
) -> None:
    exp = experiment()
    monkeypatch.setattr(inputs, "_fed", lambda batches: fed(*(train if batches is exp.train else val)))
    found = inputs.inputs(exp)
    assert found.status == status
    assert ("train images" in found.message) == (status != "pass" and val == (0.0, 1.0))


def test_few_images_are_a_sample_and_have_three_standard_errors_more(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = experiment()
    x = torch.full((100, 1, 4, 4), 0.2)
    x[::2] *= -1  # means of images ± 0.2 about 0, so a standard error of 0.02
    x[:, :, ::2] += 1.0
    x[:, :, 1::2] -= 1.0
    for shift, status in ((0.155, "pass"), (0.165, "warn")):  # 0.1 + 3 × 0.0201
        monkeypatch.setattr(inputs, "_fed", lambda _, s=shift: (x + s, torch.arange(100)))
        monkeypatch.setattr(inputs, "OFF_VAL", 10.0)
        assert inputs.inputs(exp).status == status


class Recorder(nn.Module):
    """A linear network with dropout, which remembers what it was given and how much it drops."""

    seen: list[tuple[int, bool, float]]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []
        self.drop, self.head = nn.Dropout(0.9), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.training, self.drop.p))
        return self.head(self.drop(x.flatten(1)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        other = Recorder()
        other.load_state_dict(self.state_dict())
        other.seen = self.seen  # shared by the copies
        return other


def test_overfit_learns_twenty_examples_without_dropout() -> None:
    exp = experiment("loss.label_smoothing=0.2")
    alter(exp, model=Recorder())
    found = c3.overfit(exp)
    assert found.status == "pass", found  # with a loss that smoothing would keep above the goal
    assert set(exp.model.seen) == {(20, True, 0.0)}
    assert exp.model.drop.p == 0.9


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float], wrong: int = 0, answers: int = 20) -> list[int]:
    """Let every training go as written, with so many answers wrong at first; the steps it took, a rate each."""
    taken: list[int] = []

    def follow(_: Any, __: Any, batches: Any, ___: float) -> Any:
        taken.append(0)
        for value, (_x, y) in zip(losses, batches, strict=False):
            taken[-1] += 1
            off = (taken[-1] <= wrong) & (torch.arange(len(y)) < answers)
            yield torch.tensor(value), torch.nn.functional.one_hot((y + off) % 10, 10).float()

    monkeypatch.setattr(c3, "training", follow)
    return taken


def test_a_spike_is_no_plateau_and_a_plateau_ends_after_450_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    falls = [math.log(10) * 0.995**step for step in range(900)]  # under a twentieth after 598
    spiked = [math.log(10) if step in (501, 502, 510) else value for step, value in enumerate(falls)]
    assert scripted(monkeypatch, falls, wrong=598) == []
    assert "599 steps" in c3.overfit(experiment()).message
    taken = scripted(monkeypatch, spiked, wrong=598)
    assert "599 steps" in c3.overfit(experiment()).message
    assert taken == [599]
    taken = scripted(monkeypatch, [math.log(10)] * 400 + falls[::2], wrong=699)  # deep networks of sigmoid start so
    assert "700 steps" in c3.overfit(experiment()).message
    assert taken == [700]
    taken = scripted(monkeypatch, [math.log(10)] * 450)
    assert c3.overfit(experiment()).status == "warn"  # all right and no lower
    assert taken == [450, 450, 450]


@pytest.mark.parametrize(
    ("fall", "wrong", "answers", "steps", "status"),
    [
        (0.9985, 200, 20, 450, "warn"),
        (0.9985, 600, 20, 601, "warn"),
        (0.9985, 1500, 1, 1500, "fail"),
        (0.997, 1500, 1, 1500, "warn"),  # near zero
        (0.997, 1500, 2, 1500, "fail"),
    ],
)
def test_a_loss_that_falls_slowly_has_1500_steps_to_get_all_right(
    monkeypatch: pytest.MonkeyPatch, fall: float, wrong: int, answers: int, steps: int, status: str
) -> None:
    taken = scripted(monkeypatch, [math.log(10) * fall**step for step in range(2000)], wrong, answers)
    found = c3.overfit(experiment())
    assert (found.status, "slowly" in found.message) == (status, status == "warn")
    assert taken == [steps] * 3


class Squeezed(nn.Module):
    """Ends in a ReLU, whose outputs are averaged if `mean`, as in SqueezeNet."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean, self.last = mean, nn.Conv2d(1, 10, 1 if mean else 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.last(x).relu()
        found: Tensor = outputs.mean((2, 3)) if self.mean else outputs.flatten(1)
        return found


@pytest.mark.parametrize(("mean", "status"), [(True, "warn"), (False, "fail")])
def test_what_ends_as_squeezenet_does_is_at_most_warned_about(
    monkeypatch: pytest.MonkeyPatch, mean: bool, status: str
) -> None:
    scripted(monkeypatch, [math.log(10)] * 450, wrong=450)
    exp = experiment()
    alter(exp, model=Squeezed(mean))
    assert c3.overfit(exp).status == status


class Returning(torch.optim.SGD):
    """Every second step leads back to where the last one began, as steps by a sign may."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].pop("before", None)
                if kept is None:
                    self.state[p]["before"] = p.detach().clone()
                p.data.copy_(p + group["lr"] if kept is None else kept)


def test_a_weight_that_returns_to_its_start_was_changed() -> None:
    exp = experiment("model=mlp")
    optimizer = Returning(exp.model.parameters(), lr=1e-3)
    alter(exp, optimizer=optimizer)
    assert parameters.optimizer(exp).status == "pass"


def test_where_time_is_short_a_plateau_ends_early_and_every_rate_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))  # two looks a step
    monkeypatch.setattr(c3, "perf_counter", lambda: next(clock))
    taken = scripted(monkeypatch, [math.log(10)] * 2000, wrong=2000)
    assert c3.overfit(experiment(), seconds=1600.0).status == "fail"
    assert taken[0] == pytest.approx(200, abs=2)  # until its quarter is over
    assert len(taken) == 3
    assert max(taken) < 210
    assert c3.overfit(experiment(), seconds=400.0).status == "skip"
    falls = [math.log(10) * 0.985**step for step in range(450)]  # under a twentieth after 199
    taken = scripted(monkeypatch, [math.log(10) if step in (151, 152, 160) else v for step, v in enumerate(falls)])
    assert "200 steps" in c3.overfit(experiment(), seconds=420.0).message  # a spike is no plateau
    assert taken == [200]


class Misses:
    """Half the squares, times a strength, of all weights whose names a test lets pass."""

    active = True

    def __init__(self, strength: float, *names: str) -> None:
        self.strength, self.names = strength, names

    def scaled(self, factor: float) -> Misses:
        return Misses(self.strength * factor, *self.names)

    def penalty(self, model: nn.Module) -> Tensor:
        weights = [p for n, p in model.named_parameters() if p.ndim >= 2 and not n.startswith(self.names)]
        return self.strength * torch.stack([0.5 * w.square().sum() for w in weights]).sum()


def test_a_penalty_that_misses_a_layer_is_warned_about_by_name() -> None:
    exp = experiment("model=mlp", "regularizer=l2")
    name = next(n for n, p in exp.model.named_parameters() if p.ndim >= 2)
    alter(exp, penalty=Misses(1e-3, name))
    found = penalty(exp)
    assert found.status == "warn"
    assert f"misses {name}:" in found.message
    alter(exp, penalty=Misses(1e-3, "none such"))
    assert penalty(exp).status == "pass"


def asked(p: float, slice_learned: bool = True) -> garbage._Found:
    return garbage._Found(p, "held 1 of 1, val 1 of 1 right", True, True, "", slice_learned)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("p", "status"), [(0.9e-4, "pass"), (1.1e-4, "warn"), (1.9e-3, "warn"), (2.1e-3, "fail")])
def test_beating_chance_is_sure_under_a_ten_thousandth_and_possible_under_two_thousandths(
    monkeypatch: pytest.MonkeyPatch, p: float, status: str
) -> None:
    monkeypatch.setattr(garbage._Trial, "evaluate", lambda self, model, most: asked(p))
    found = garbage.garbage(experiment())
    assert found.status == status
    assert ("barely" in found.message) == (status == "warn")


@pytest.mark.parametrize(("seconds", "short"), [(1e-9, True), (1e9, False)])
def test_fewer_steps_than_say_something_leave_it_undecided(
    monkeypatch: pytest.MonkeyPatch, seconds: float, short: bool
) -> None:
    monkeypatch.setattr(garbage._Trial, "evaluate", lambda self, model, most: asked(0.5))
    monkeypatch.setattr(garbage, "SECONDS", min(seconds, 1e-9) if seconds > 1 else 20.0)
    found = garbage.garbage(experiment(), seconds)
    assert found.status == "skip"
    assert "1 steps" in found.message
    assert ("check.budget" in found.message) == short


SLOW = ("model=mlp", "model.depth=20", "model.width=16", "model.activation=sigmoid", "model.norm=none")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("same", [False, True])
def test_a_network_that_learns_nothing_of_the_slice_proves_nothing_unless_its_inputs_are_all_the_same(
    monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    true = garbage.samples
    monkeypatch.setattr(garbage, "samples", lambda *a, **k: ((z := true(*a, **k))[0] * (not same), z[1]))
    found = garbage.garbage(build(composed("trainer.threads=1", *SLOW)))
    assert found.status == ("fail" if same else "skip"), found
    assert ("undecided" in found.message) == (not same)


def test_one_look_at_which_the_slice_was_learned_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, True, *[False] * 99])
    monkeypatch.setattr(garbage._Trial, "evaluate", lambda self, model, most: asked(0.5, next(looks)))
    assert garbage.garbage(experiment()).status == "fail"


@pytest.mark.parametrize(("largest", "status"), [(0.9, "warn"), (1.1, "pass")])
def test_gradients_under_a_tenth_of_a_billionth_are_tiny(
    monkeypatch: pytest.MonkeyPatch, largest: float, status: str
) -> None:
    exp = experiment("model=mlp", "model.depth=1", "model.norm=none", "check=none")
    once = check.gradient(copy.copy(exp))
    assert once.status == "pass", once
    seen: dict[str, float] = {}
    true = check._vanished

    def noted(slopes: Any, found: Any) -> Any:
        seen.update({n: float(g.abs().max()) for n, g in slopes.gradients.items() if slopes.parameters[n].ndim > 1})
        # the band in units of the smallest gradient there is
        monkeypatch.setattr(check, "TINY", min(seen.values()) / largest)
        return true(slopes, found)

    assert check.TINY == 1e-10
    monkeypatch.setattr(check, "_vanished", noted)
    assert check.gradient(exp).status == status
