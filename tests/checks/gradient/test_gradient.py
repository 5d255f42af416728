"""The gradient check: exact where the derivative is known, silent on sound models; it names the bug."""

from __future__ import annotations

import copy
import random
import re
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from dlrun.checks import sandbox
from dlrun.checks.gradient import doubles
from dlrun.checks.gradient.check import gradient
from dlrun.checks.gradient.differences import NotComparable, Slopes
from dlrun.models.layers import ACTIVATIONS, NORMS
from dlrun.training.experiment import build
from support.composed import alter, composed
from support.derivatives import LeakyWrongBelowZero, Scaled, Through, WrongHead, experiment, leaf, states

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
def test_a_wrong_backward_of_a_large_model_is_reported(large, monkeypatch, factor, cause):
    exp, asked = large
    exp.model.head.__class__ = WrongHead
    monkeypatch.setattr(WrongHead, "factors", (factor, 1.0))
    found = gradient(exp)
    assert (found.status, asked) == ("fail", [3])
    assert "head.weight" in found.message
    assert cause in found.message


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


@pytest.mark.sampled(2)
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


def test_a_wrong_penalty_is_reported_as_one():
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
    assert "layer1.linear.weight" in found.message
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


def test_crossed_kinks_are_reported_where_everything_is_right():
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


@pytest.mark.sampled(3)
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
def test_sound_models_of_the_user_pass(name):
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
