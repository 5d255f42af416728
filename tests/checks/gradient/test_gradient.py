"""The gradient check: exact where the derivative is known, silent on sound models; it names the bug."""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from dlrun.checks import sandbox
from dlrun.checks.gradient import doubles
from dlrun.checks.gradient.check import gradient
from dlrun.checks.gradient.differences import Comparison, NotComparable, Slopes
from dlrun.checks.gradient.kinks import Winners
from dlrun.models.layers import ACTIVATIONS, NORMS
from dlrun.training.experiment import Experiment, build
from support.composed import alter, composed

SMALL = ("trainer.threads=1", "check=none", "dataset.limit=120")


def experiment(*overrides: str) -> Experiment:
    return build(composed(*SMALL, *overrides))


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def states(loss: Callable[[], Tensor], **tensors: Tensor) -> dict[str, str]:
    """The state of every entry."""
    slopes = Slopes(loss, tensors)
    moves = [slopes.entry(n, i) for n, t in tensors.items() for i in range(t.numel())]
    return {str(m): c.state for c in slopes.compare(moves) for m in c.moves}


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


class LeakyWrongBelowZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g, 0.01 * g)


class WrongLinear(torch.autograd.Function):
    """x·wᵀ + b, with the gradient of weight and bias off by factors."""

    @staticmethod
    def forward(ctx, x, w, b, weight_factor, bias_factor):
        ctx.save_for_backward(x, w)
        ctx.factors = weight_factor, bias_factor
        return x @ w.T + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x * ctx.factors[0], g.sum(0) * ctx.factors[1], None, None


class Through(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class WrongHead(nn.Linear):
    factors = 1.0, 1.0

    def forward(self, x):
        return WrongLinear.apply(x, self.weight, self.bias, *self.factors)


# large models


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A network on images of 20×20 that counts as large, and how many samples it was given."""
    draw = np.random.default_rng(0)
    y = np.arange(100) % 10
    x = (draw.integers(0, 128, (100, 20, 20, 1)) + 12 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    exp = build(composed("trainer.threads=1", "check=none", "dataset=arrays", f"dataset.path={tmp_path / 'a.npz'}"))
    asked = []
    monkeypatch.setattr(doubles, "samples", lambda exp, count: asked.append(count) or sandbox.samples(exp, count))
    monkeypatch.setattr(doubles, "LARGE", 50_000)
    return exp, asked


def test_a_sound_large_model_passes_on_three_samples(large):
    exp, asked = large
    found = gradient(exp)
    assert (found.status, asked) == ("pass", [3]), found.message


@pytest.mark.parametrize(("factor", "cause"), [(3.0, "a sum over"), (-1.0, "sign is flipped")])
def test_a_wrong_backward_of_a_large_model_is_told(large, monkeypatch, factor, cause):
    exp, asked = large
    exp.model.head.__class__ = WrongHead
    monkeypatch.setattr(WrongHead, "factors", (factor, 1.0))
    found = gradient(exp)
    assert (found.status, asked) == ("fail", [3])
    assert "head.weight" in found.message
    assert cause in found.message


# exact: derivatives that are known


def test_difference_of_a_cubic_is_exact():
    w = leaf(2.0, -1.0)
    slopes = Slopes(lambda: (w**3).sum(), {"w": w})
    found = slopes.measure([slopes.entry("w", 0)], 1e-3)
    assert found.analytic == 12.0
    # (w+h)³ − (w−h)³ = 2h·(3w² + h²)
    assert found.numeric == pytest.approx(12.0 + 1e-6, abs=1e-10)
    assert found.jump == pytest.approx(12e-3, rel=1e-6)  # 6w·h
    assert found.crossed == 0
    assert w.tolist() == [2.0, -1.0]


def test_a_group_adds_up_without_cancelling():
    w = leaf(2.0, -1.0, 0.5)
    slopes = Slopes(lambda: (w**2 * torch.tensor([1.0, 1.0, -1.0])).sum(), {"w": w})
    found = slopes.measure([slopes.entry("w", i) for i in range(3)], 1e-4)
    assert found.analytic == pytest.approx(4.0 + 2.0 + 1.0)
    assert found.numeric == pytest.approx(7.0, rel=1e-9)


def test_relative_error_is_the_one_of_the_practice():
    c = Comparison((), analytic=1.0, numeric=-4.0, h=1e-5, floor=0.0, crossed=0, loose=0, jump=0.0)
    assert c.error == 1.25
    assert Comparison((), 0.0, 0.0, 1e-5, 0.0, 0, 0, 0.0).error == 0.0


def test_rounding_is_measured():
    w = leaf(*torch.linspace(0.1, 1.3, 50).tolist())
    exact = Slopes(lambda: w.square().sum(), {"w": w})
    rounded = Slopes(lambda: w.square().sum() + 1e6 - 1e6, {"w": w})
    ulp = 2.0**-33  # the spacing of doubles at 1e6
    assert exact.noise < 1e-14
    assert ulp / 10 < rounded.noise < 2 * ulp


def test_kinks_are_told_and_do_not_fail():
    zero, near = leaf(0.0), leaf(3e-6)
    assert states(lambda: (zero.abs() + zero).sum(), w=zero) == {"w[0]": "fine"}  # slopes 0 and 2, 1 in both
    assert states(lambda: F.relu(zero).sum(), w=zero) == {"w[0]": "kink"}
    assert states(lambda: near.abs().sum(), w=near) == {"w[0]": "fine"}  # by a smaller step
    tied = leaf(1.0, 1.0)
    assert states(lambda: tied.max(0)[0] * 3.0, w=tied) == {"w[0]": "kink", "w[1]": "kink"}


def test_a_kink_does_not_excuse_more_than_it_explains():
    w, small = leaf(1.0), leaf(1e-9)

    def loss() -> Tensor:
        return Scaled.apply(w, -1.0).sum() + 1e-3 * F.relu(small + w - w.detach()).sum()

    assert states(loss, w=w) == {"w[0]": "wrong"}


def test_both_zero_passes_and_one_zero_does_not():
    w, unused = leaf(1.0, 2.0), leaf(1.0)
    found = states(lambda: w[0] ** 2 + w[1].detach() ** 2, w=w, unused=unused)
    assert found == {"w[0]": "fine", "w[1]": "wrong", "unused[0]": "zero"}


def test_one_wrong_tensor_among_many_is_found():
    tensors = {f"t{i}": leaf(*torch.randn(3, generator=torch.Generator().manual_seed(i)).tolist()) for i in range(40)}

    def loss() -> Tensor:
        return sum((Scaled.apply(t, 1.05 if n == "t17" else 1.0) ** 2).sum() for n, t in tensors.items())

    slopes = Slopes(loss, tensors)
    found = list(slopes.compare([slopes.direction(n) for n in tensors]))
    assert [m.name for c in found if c.state == "wrong" for m in c.moves] == ["t17"]
    assert {m.name for c in found for m in c.moves} == set(tensors)
    assert len(found) < 15  # groups, not each


def test_larger_steps_that_agree_over_a_narrow_bend_prove_nothing():
    w = leaf(0.0)  # slope 1.033 at 0, and 1.001 and 1.0001 as seen by steps of 1e-5 and 1e-4
    assert states(lambda: (w + 1.0 + 1e-8 * torch.tanh(w / 3e-7)).sum(), w=w) == {"w[0]": "rough"}


def test_bands():
    w = leaf(0.7)
    for factor, state in (
        (1.02, "wrong"),
        (1.002, "suspicious"),
        (1 + 1e-6, "suspicious"),
        (1 + 1e-9, "fine"),
    ):
        assert states(lambda factor=factor: (Scaled.apply(w, factor) ** 2).sum(), w=w) == {"w[0]": state}


def test_small_and_large_derivatives_are_compared():
    w, big = leaf(0.5), leaf(0.5)
    for scale in (1e-7, 1.0, 1e7):
        assert states(lambda s=scale: (s * torch.sin(w) + 1.0).sum(), w=w) == {"w[0]": "fine"}
        wrong = states(lambda s=scale: (s * torch.sin(Scaled.apply(big, -1.0)) + 1.0).sum(), w=big)
        assert wrong == {"w[0]": "wrong"}


# the mode


MODULES = (
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.RReLU()),
    *(nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softsign(), nn.Threshold(0.0, 0.0)),
    *(nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d(2, return_indices=True), nn.Hardshrink()),
)
FUNCTIONS = (
    *(torch.relu, F.relu, Tensor.relu, Tensor.relu_, F.leaky_relu, F.relu6, abs, torch.max, torch.min),
    *(Tensor.amax, Tensor.argmax, torch.round),
    *(lambda x: torch.max(x, 1), lambda x: x.max(dim=1), lambda x: x.amax(dim=1), lambda x: x.topk(2, 1)),
    *(lambda x: torch.max(x, -x), lambda x: torch.maximum(x, -x), lambda x: x.sort(1), lambda x: x.norm(p=1)),
    *(lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: x.clamp(-1, 1), lambda x: x * (x > 0)),
    *(lambda x: torch.where(x <= 0, 0, x), lambda x: F.max_pool2d(x, 2)),
    lambda x: F.l1_loss(x, torch.zeros_like(x)),
    lambda x: F.multi_margin_loss(x[:, :, 0, 0], torch.tensor([0, 1])),
)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_modules_have_winners(module):
    assert kept(module) == 1


def kept(function: Callable[[Tensor], object]) -> int:
    torch.manual_seed(0)
    x = 4 * torch.randn(2, 4, 4, 4)
    with Winners() as seen:
        function(x.clone())
    with Winners(seen.winners) as again:
        function(x.clone())
    with Winners(seen.winners) as other:
        function(-x)
    assert again.moved == 0
    assert other.moved > 0
    return seen.count


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_have_winners(function):
    assert kept(function) == 1


def test_a_changed_path_counts_as_crossed():
    def walk(times: int) -> None:
        for _ in range(times):
            torch.relu(torch.ones(1))

    with Winners() as seen:
        walk(2)
    with Winners(seen.winners) as other:
        walk(3)
    assert other.moved == 1


HELD = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu_(x.clone()),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3, 0.7], dtype=x.dtype)),
    "relu6": lambda x: F.relu6(x * 100),
    "hardtanh": lambda x: F.hardtanh(x, -0.05, 0.06),
    "clamp": lambda x: x.clamp(min=-0.05, max=0.06),
    "clamp_min": lambda x: x.clamp_min(0.01),
    "abs": torch.abs,
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool in one dimension": lambda x: F.max_pool1d(x.flatten(2), 2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "maxout": lambda x: x.amax(dim=1),
    "amax of two": lambda x: x.amax((2, 3), keepdim=True),
    "maximum": lambda x: torch.maximum(x, 0.1 * x),
    "minimum": lambda x: torch.minimum(x, x.flip(-1)),
    "max of two": lambda x: torch.max(x, x.flip(1)),
    "comparison": lambda x: x * (x > 0),
    "where": lambda x: torch.where(x <= 0.01, 0, x),
}


@pytest.mark.parametrize("name", HELD)
def test_a_crossed_kink_is_held_to_the_piece_in_force(name):
    # pieces are lines here: with each held, f(x + d) is f(x) + f'(x)·d however many kinks are crossed
    generator = torch.Generator().manual_seed(0)
    x, d = 0.05 * torch.randn(2, 2, 2, 4, 4, dtype=torch.float64, generator=generator)
    if name in ("relu6", "hardtanh", "clamp"):
        d *= 0.3  # an entry that crosses both edges is not held

    def summed(x: Tensor) -> Tensor:
        y = HELD[name](x)
        return (y.flatten() * torch.arange(1.0, y.numel() + 1, dtype=y.dtype)).sum()

    with Winners() as seen:
        before = summed(x.requires_grad_())
    (gradient,) = torch.autograd.grad(before, x)
    expected = before.item() + (gradient * d).sum().item()
    with torch.no_grad(), Winners(seen.winners, hold=True) as held:
        assert summed(x + d).item() == pytest.approx(expected, abs=1e-10)
    assert held.moved == held.held > 0
    with torch.no_grad(), Winners(seen.winners) as free:
        assert summed(x + d).item() != pytest.approx(expected, abs=1e-3)
    assert (free.moved, free.held) == (held.moved, 0)


def test_what_lay_on_an_edge_or_crossed_two_is_not_held():
    for before, after in ((0.0, 0.1), (0.0, -0.1), (-1.0, 7.0)):
        with Winners() as seen:
            F.relu6(torch.tensor([before]))
        with Winners(seen.winners, hold=True) as held:
            assert F.relu6(torch.tensor([after])).tolist() == pytest.approx([min(max(after, 0.0), 6.0)])
        assert (held.moved, held.held) == (1, 0)


# planted bugs: each is caught, and the message names the place and the likely cause


def planted(name: str) -> nn.Module:
    exp = experiment("model.width=8")
    model = exp.model
    functions = {
        "sign": lambda x: Scaled.apply(F.relu(x), -1.0),
        "two": lambda x: Scaled.apply(F.relu(x), 2.0),
        "half": lambda x: Scaled.apply(F.relu(x), 0.5),
        "below zero": LeakyWrongBelowZero.apply,
        "detach": lambda x: F.relu(x.detach()),
        "numpy": lambda x: torch.from_numpy(x.detach().numpy()).relu(),
        "no_grad": torch.no_grad()(lambda x: x.relu()),
        "product rule": lambda x: x * torch.sigmoid(x).detach(),
        "straight-through": lambda x: x + (torch.round(4 * x) / 4 - x).detach(),
        "round": torch.round,
        "sign function": torch.sign,
    }
    if name in functions:
        model.stage2.conv1.activation = Through(functions[name])
    else:
        head = WrongHead(model.head.in_features, model.head.out_features)
        head.factors = {"bias sign": (1.0, -1.0), "bias mean": (1.0, 0.25), "weight": (1.05, 1.0)}[name]
        model.head = head
    return exp


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("sign", "stage2.conv1.norm.", r"sign is flipped.*; stage3\.conv1\.conv\.weight,"),
        ("two", "stage2.conv1.norm.", "too large by"),
        ("half", "stage2.conv1.norm.", "too small by"),
        ("below zero", "stage2.conv1.norm.", r"[\d.]+ times"),
        ("detach", "stage2.conv1.norm.", "is lost"),
        ("numpy", "stage2.conv1.norm.", "detach is called"),
        ("no_grad", "stage2.conv1.norm.", r"no_grad\(\)"),
        ("product rule", "stage2.conv1.norm.", "detach is called"),
        ("straight-through", "stage2.conv1.norm.", "straight-through"),
        ("round", "stage1.conv1.conv.weight", r"\bround\b"),
        ("sign function", "stage1.conv1.conv.weight", r"\bsign\b"),
        ("bias sign", "head.bias[", "sign is flipped.* neighbours"),
        ("bias mean", "head.bias[", "batch size once"),
        ("weight", "head.weight[", r"1\.05 times"),
    ],
)
def test_planted_bugs_are_caught_and_named(name, tensor, words):
    found = gradient(planted(name))
    assert found.status == "fail"
    assert tensor in found.message
    assert re.search(words, found.message)


def test_the_message_has_the_numbers():
    found = gradient(planted("bias sign"))
    entry = r"head\.bias\[\d\]: analytic (-?[\d.]+), numeric (-?[\d.]+), relative error 2 at h=1e-05"
    numbers = re.match(entry, found.message)
    assert float(numbers[1]) == -float(numbers[2]) != 0.0
    assert found.value == "2 in head.bias"


def test_a_wrong_penalty_is_told_apart():
    exp = experiment("model=mlp", "model.depth=1", "model.width=8", "regularizer=l2")
    alter(exp, penalty=type("Wrong", (), {"active": True, "penalty": wrong_penalty})())
    found = gradient(exp)
    assert found.status == "fail"
    assert found.message.startswith("penalty: ")
    assert "too small by" in found.message


def wrong_penalty(_: object, model: nn.Module) -> Tensor:
    return 1e-3 * sum(Scaled.apply(p, 0.5).square().sum() for p in model.parameters())


def test_tiny_gradients_are_warned_about():
    exp = experiment("model=mlp", "model.depth=2", "model.width=8", "model.norm=none")
    exp.model.flatten = Through(lambda x: x.flatten(1) * 1e-13)
    found = gradient(exp)
    assert found.status == "warn"
    assert "(C6): layer1.linear.weight" in found.message
    assert "scale the loss" in found.message


def test_gradients_that_are_nan_fail():
    exp = experiment("model=mlp", "model.depth=1", "model.width=8")
    exp.model.layer1.activation = Through(lambda x: x + (x - x).square().sum(1, keepdim=True).sqrt())
    found = gradient(exp)
    assert found.status == "fail"
    assert "not finite" in found.message


def test_losses_that_are_nan_fail():
    exp = experiment("model=mlp", "model.depth=1", "model.width=8")
    exp.model.flatten = Through(lambda x: x.flatten(1) * float("nan"))
    assert gradient(exp).status == "fail"


# every phase and every tensor


class Watch:
    """The comparisons of a gradient check: which moves at which steps, by phase, and the samples it was asked with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.phases: list[dict[str, list[tuple[int, ...] | None]]] = []
        self.largest: list[dict[str, tuple[int, ...]]] = []
        self.steps: list[float] = []
        compare, measure = Slopes.compare, Slopes.measure

        def compared(slopes, moves):
            if not self.phases or self.slopes is not slopes:
                self.slopes = slopes
                self.phases.append({n: [] for n in slopes.parameters})
                entries = {n: torch.unravel_index(g.abs().argmax(), g.shape) for n, g in slopes.gradients.items()}
                self.largest.append({n: tuple(int(i) for i in e) for n, e in entries.items()})
            for move in moves:
                self.phases[-1][move.name].append(move.entry)
            return compare(slopes, moves)

        def measured(slopes, moves, h, hold=True):
            self.steps.append(h)
            return measure(slopes, moves, h, hold)

        monkeypatch.setattr(Slopes, "compare", compared)
        monkeypatch.setattr(Slopes, "measure", measured)


def test_every_tensor_gets_a_direction_its_largest_and_random_entries_at_every_phase(monkeypatch):
    exp = experiment("model.width=8", "regularizer=l2")
    seen = Watch(monkeypatch)
    assert gradient(exp).status == "pass"
    names = {n for n, _ in exp.model.named_parameters()}
    assert len(seen.phases) == 3  # at the start, after the burn-in, the penalty alone
    for phase, largest, random_entries in zip(seen.phases, seen.largest, (2, 1, 1), strict=True):
        assert set(phase) == names
        for name, moves in phase.items():
            assert moves.count(None) == 1  # one random direction through the whole tensor
            assert largest[name] in moves
            assert len(moves) == 2 + random_entries


def test_it_asks_four_samples_in_float64():
    exp, asked = experiment("model=mlp", "model.depth=1", "model.width=8"), []
    exp.model.flatten = Through(lambda x: asked.append((len(x), x.dtype)) or x.flatten(1))
    assert gradient(exp).status == "pass"
    assert set(asked) == {(4, torch.float64)}


class Forgetful(torch.autograd.Function):
    """Dropout whose backward does not know what it dropped."""

    @staticmethod
    def forward(ctx, x):
        return x * (torch.rand_like(x) < 0.5) * 2

    @staticmethod
    def backward(ctx, g):
        return g


def test_a_backward_that_is_wrong_in_training_mode_alone_is_caught():
    class Drop(nn.Module):
        def forward(self, x):
            return Forgetful.apply(x) if self.training else x

    exp = experiment("model.width=8")
    exp.model.stage2.conv1.activation = Drop()
    assert gradient(exp).status == "fail"


class Later(nn.Linear):
    """Its gradient is doubled once its weights have moved by more than two thousandths."""

    def forward(self, x):
        moved = float((self.weight.detach() - self.start).abs().max()) > 2e-3
        return Scaled.apply(super().forward(x), 2.0 if moved else 1.0)


def test_what_goes_wrong_after_some_steps_alone_is_caught_after_the_burn_in():
    exp = experiment("model=mlp", "model.depth=1", "model.width=8")
    head = Later(8, 10)
    head.start = head.weight.detach().clone()
    exp.model.head = head
    found = gradient(exp)
    assert found.status == "fail"
    assert "too large by" in found.message
    assert "after the burn-in" in found.message


def test_deeper_networks_are_allowed_more():
    def found(layers: int) -> str:
        tensors = {f"t{i}": leaf(0.7).reshape(1, 1).detach().requires_grad_() for i in range(layers)}

        def loss() -> Tensor:
            return sum((Scaled.apply(t, 1 + 5e-7) ** 2).sum() for t in tensors.values())

        slopes = Slopes(loss, tensors)
        return next(slopes.compare([slopes.direction("t0")])).state

    assert [found(n) for n in (1, 4, 8)] == [
        "suspicious",
        "suspicious",
        "fine",
    ]  # an error of 5e-7 against 1e-7 a layer


def test_steps_of_the_practice_are_tried_in_turn(monkeypatch):
    seen = Watch(monkeypatch)
    w = leaf(0.5)
    for scale, factor, steps in (
        (1.0, 1.0, [1e-5]),  # right: the usual step is enough
        (1.0, 2.0, [1e-5, 1e-6]),  # wrong: a finer step must agree
        (1e-9, 1.0, [1e-5, 1e-4]),  # lost in rounding: a larger one
    ):
        seen.steps.clear()
        states(lambda s=scale, f=factor: (s * torch.sin(Scaled.apply(w, f)) + 1.0).sum(), w=w)
        tried = list(dict.fromkeys(seen.steps))
        assert tried[: len(steps)] == steps, (scale, factor, tried)


def test_crossed_kinks_are_told_where_everything_is_right():
    exp = experiment("model=mlp", "model.depth=1", "model.width=8", "model.norm=none")
    with torch.no_grad():
        exp.model.layer1.linear.weight.mul_(1e-4)  # what goes into the ReLU lies within h of its kink
        exp.model.layer1.linear.bias.zero_()
    found = gradient(exp)
    assert found.status == "pass", found
    assert re.search(r"; \d+ of \d+ .*kink$", found.message)


# no false alarms


SOUND = (
    *(("model=cnn", f"model.activation={a}") for a in ACTIVATIONS),
    *(("model=mlp", f"model.norm={n}", "model.activation=maxout", "loss=hinge") for n in NORMS),
    ("model=cnn", "model.norm=none", "model.init=he_normal"),
    ("model=cnn", "loss=hinge", "regularizer=elastic"),
    ("model=cnn", "model.dropout=0.5"),
    ("model=resnet20", "model.width=4"),
)


@pytest.mark.parametrize("overrides", SOUND, ids=" ".join)
def test_sound_models_pass(overrides):
    small = () if "model=resnet20" in overrides else ("model.width=8",)
    found = gradient(experiment(*small, *overrides))
    assert found.status == "pass", found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_everything_composed_passes(activation, norm, loss, model, seed):
    names = (f"model.activation={activation}", f"model.norm={norm}", f"loss={loss}", f"seed={seed}")
    found = gradient(experiment(f"model={model}", "regularizer=elastic", *names))
    assert found.status == "pass", found


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(F.relu(x), 0.5),
        lambda x: F.relu(x) * np.random.rand() + random.random(),
        lambda x: F.relu(x.float()).to(torch.float32),
        lambda x: F.relu(x) + torch.randn(x.shape, dtype=torch.float32),
        lambda x: x / (1 + x.detach().abs().amax() * 0),
    ],
    ids=["dropout", "other generators", "float32", "noise", "harmless detach"],
)
def test_seeded_noise_and_casts_pass(function):
    exp = experiment("model.width=8")
    exp.model.stage2.conv1.activation = Through(function)
    found = gradient(exp)
    assert found.status == "pass", found


ARCHITECTURES = {
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(1, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ),
    "zero head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), zeroed(nn.Linear(32, 10))),
    "attention": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(64, 10)
    ),
    "recurrent": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.LSTM(8, 8), Through(lambda x: x[0][:, -1]), nn.Linear(8, 10)
    ),
}


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sound_models_of_ones_own_pass(name):
    exp = experiment()
    alter(exp, model=ARCHITECTURES[name]())
    found = gradient(exp)
    assert found.status == "pass", found


# honest where it cannot tell


def test_what_cannot_be_compared_is_skipped_in_words():
    exp = experiment("model.width=8")
    exp.model.stage2.conv1.activation = Through(lambda x: x * (1 + random.SystemRandom().random()))
    found = gradient(exp)
    assert (found.status, "two passes" in found.message) == ("skip", True)

    exp.model.stage2.conv1.activation = Through(lambda x: torch.from_numpy(x.detach().numpy().astype("float32")))
    found = gradient(exp)
    assert (found.status, "float64" in found.message) == ("skip", True)

    exp.model.stage2.conv1.activation = Through(lambda x: x @ torch.ones(x.shape[-1], 1, dtype=torch.int32))
    assert "does not run (" in gradient(exp).message
    exp.model.requires_grad_(False)
    assert "no parameter" in gradient(exp).message


def test_low_precision_is_not_compared():
    w = leaf(0.5)
    with pytest.raises(NotComparable, match="less than float64"):
        Slopes(lambda: torch.from_numpy(w.detach().numpy().astype("float32")).sum(), {"w": w})


def test_a_deadline_gives_skip_and_never_pass():
    exp = experiment("model=resnet20", "model.width=4")
    found = gradient(exp, seconds=0.0)
    assert found.status == "skip"
    assert found.value == "0 of 59 tensors"
    started = time.perf_counter()
    assert gradient(exp, seconds=0.05).status in ("skip", "pass")
    assert time.perf_counter() - started < 5.0


def test_it_leaves_no_trace():
    exp = experiment("model.width=8", "model.dropout=0.3", "regularizer=l2")
    before = copy.deepcopy(exp.model.state_dict())
    optimizer = copy.deepcopy(exp.optimizer.state_dict())
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    gradient(exp)
    assert all(torch.equal(v, before[k]) for k, v in exp.model.state_dict().items())
    assert exp.optimizer.state_dict() == optimizer
    assert all(p.grad is None and p.dtype == torch.float32 for p in exp.model.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert (np.random.get_state()[1] == generators[2]).all()
    assert torch.get_default_dtype() == torch.float32
