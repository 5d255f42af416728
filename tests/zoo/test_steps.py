"""What optimizer and loss do: hand-written rules and losses with one mistake each, in pairs (O1, R1, C1, C9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.checks import garbage
from dlrun.checks.blame import blame
from dlrun.checks.causes import Attempt, unlearned
from dlrun.checks.sandbox import samples
from dlrun.training.experiment import Experiment
from support.composed import alter
from support.pairs import Change, Pair, checked, experiment, wear


class Rule(torch.optim.Optimizer):
    """An optimizer by hand; `one` moves a tensor, and `mistake` says what is wrong with it."""

    def __init__(self, params: Any, mistake: str = "", **settings: Any) -> None:
        super().__init__(params, {"lr": 0.05, **settings})
        self.mistake, self.count = mistake, 0

    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.mistake != "never zeroed":
            super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        loss = None if self.mistake == "closure forgotten" else closure()
        with torch.no_grad():
            self.count += 1
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.one(group, p, self.state[p])
        return loss


class Sgd(Rule):
    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        rate, momentum, mistake = group["lr"], group["momentum"], self.mistake
        gradient = p.grad + group["weight_decay"] * (rate if mistake == "rate in the decay" else 1) * p
        if mistake == "shared buffer":
            kept = self.state.setdefault(tuple(p.shape), {})  # type: ignore[call-overload]
        buffer = kept.get("buffer", torch.zeros_like(p))
        buffer = (1.0 if mistake == "never fades" else momentum) * buffer + gradient
        if mistake == "running mean":
            buffer = buffer - momentum * gradient
        if mistake != "never stored":
            kept["buffer"] = buffer
        power = {"rate squared": 2.0, "root of the rate": 0.5}.get(mistake, 1.0)
        p.sub_(rate**power * buffer)


class AdamW(Rule):
    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        (first, second), rate, decay, mistake = group["betas"], group["lr"], group["weight_decay"], self.mistake
        gradient = p.grad
        assert gradient is not None
        if mistake == "decay inside":
            gradient = gradient + decay * p
        else:
            p.mul_(1 - decay * {"decay without rate": 1.0, "rate twice": rate**2}.get(mistake, rate))
        kept.setdefault("mean", torch.zeros_like(p)).lerp_(gradient, 1 - first)
        kept.setdefault("square", torch.zeros_like(p)).lerp_(gradient.square(), 1 - second)
        kept["step"] = kept.get("step", 0) + (mistake != "step never counted" or not kept.get("step", 0))
        self.count += mistake == "one step for all"
        step = self.count if mistake == "one step for all" else kept["step"]
        corrections = (1.0, 1.0) if mistake == "no correction" else (1 - first**step, 1 - second**step)
        if mistake == "corrections swapped":
            corrections = corrections[::-1]
        square = kept["square"] / corrections[1]
        p.sub_(rate * kept["mean"] / corrections[0] / ((square if mistake == "no root" else square.sqrt()) + 1e-8))


class Every(Rule):
    """Steps once in four, by the mean of the gradients."""

    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        total = kept["total"] = kept.get("total", 0) + p.grad
        if self.count % 4 == 0:
            p.sub_(group["lr"] * total / (1 if self.mistake == "not divided" else 4))
            kept["total"] = 0


class Lookahead(Rule):
    """Fast weights return to slow ones every five steps, which follow them."""

    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        slow = kept.setdefault("slow", p.clone())
        p.sub_(group["lr"] * p.grad)
        if self.count % 5 == 0:
            slow.lerp_(p, 0.0 if self.mistake == "slow weights stay" else 0.5)
            p.copy_(slow)


def steps(rule: type[Rule], mistake: str = "", **settings: Any) -> Change:
    return lambda exp: alter(exp, optimizer=rule([{"params": [*exp.model.parameters()]}], mistake, **settings))


def wrong(rule: type[Rule], mistake: str, word: str, status: str = "warn", name: str = "", **settings: Any) -> Pair:
    faulty, sound = steps(rule, mistake, **settings), steps(rule, **settings)
    return Pair(name or f"{rule.__name__}: {mistake}", "updates", word, faulty, sound, "", status)


SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-3}
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.01}
PAIRS = [
    wrong(Sgd, "shared buffer", "share a buffer", **SGD),
    wrong(Sgd, "never stored", "no effect", "fail", **SGD),
    wrong(Sgd, "never fades", "never fades", "fail", **SGD),
    wrong(Sgd, "running mean", "0.1, 0.1, 0.1 times", **SGD),
    wrong(Sgd, "rate squared", "100 times", **SGD),
    wrong(Sgd, "root of the rate", "3.16 times", **SGD),
    wrong(Sgd, "rate in the decay", "twice", **SGD),
    wrong(Sgd, "never zeroed", "add up", "fail", **SGD),
    wrong(Sgd, "closure forgotten", "closure()", "fail", **SGD),
    wrong(AdamW, "decay inside", "p.mul_", **ADAM),
    wrong(AdamW, "decay without rate", "not multiplied", **ADAM),
    wrong(AdamW, "rate twice", "twice", **ADAM),
    wrong(AdamW, "step never counted", "bias correction", **ADAM),
    wrong(AdamW, "one step for all", "bias correction", **ADAM),
    wrong(AdamW, "no correction", "bias correction", **ADAM),
    wrong(AdamW, "corrections swapped", "bias correction", **ADAM),
    wrong(AdamW, "no root", "bias correction", **ADAM),
    wrong(Every, "not divided", "trainer.accumulate=4"),
    wrong(Lookahead, "slow weights stay", "where it began", "fail"),
    Pair(
        "betas swapped", "updates", "[0.9,0.999]", steps(AdamW, **ADAM | {"betas": (0.999, 0.9)}), steps(AdamW, **ADAM)
    ),
]


def scored(function: Callable[[Tensor, Tensor], Tensor]) -> Change:
    class Loss(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return function(logits, labels)

    return lambda exp: alter(exp, loss=Loss())


def likely(logits: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(logits, 1)[:, labels].mean()


def divergence(whole: bool) -> Change:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        found = F.kl_div(F.log_softmax(logits, 1), F.one_hot(labels, 10).float(), reduction="none")
        return found.mean() if whole else found.sum(1).mean()

    return scored(loss)


def smoothed(share: float) -> Change:
    return lambda exp: alter(exp, loss=nn.CrossEntropyLoss(label_smoothing=share))


def smooth(share: float) -> Change:
    return scored(lambda s, y: F.cross_entropy(s, y, label_smoothing=share))


def uneven(balance: bool, inverse: bool) -> Change:
    """Few samples of class 0, class weights by frequency or its inverse, and batches that are balanced or not."""

    def change(exp: Experiment) -> None:
        labels = exp.data.train.labels
        few = exp.data.train.subset(torch.cat([(labels != 0).nonzero()[:, 0], (labels == 0).nonzero()[:4, 0]]))
        alter(exp, data=replace(exp.data, train=few, balance=balance))
        counts = torch.bincount(few.labels, minlength=10).float()
        weight = counts.reciprocal() if inverse else counts
        alter(exp, loss=nn.CrossEntropyLoss(weight / weight.mean()))

    return change


sound = scored(F.cross_entropy)
LOSSES = [
    Pair("detached", "loss_terms", "detach()", scored(lambda s, y: F.cross_entropy(s.detach(), y)), sound, "", "fail"),
    Pair("errors", "loss_terms", "argmax", scored(lambda s, y: (s.argmax(1) != y).float().mean()), sound, "", "fail"),
    Pair("all labels for each", "loss_terms", "gather", scored(lambda s, y: -likely(s, y)), sound, "", "fail"),
    Pair(
        "labels turned", "loss_terms", "pulled", scored(lambda s, y: F.cross_entropy(s, y.flip(0))), sound, "", "fail"
    ),
    Pair("mean over classes", "loss_terms", "batchmean", divergence(True), divergence(False)),
    Pair("hot", "loss_terms", "by about 10;", scored(lambda s, y: F.cross_entropy(s / 10, y)), sound),
    Pair("cold", "loss_terms", "by about 0.05;", scored(lambda s, y: F.cross_entropy(s / 0.05, y)), sound),
    Pair("keeps a tenth", "loss_terms", "smoothing=0.1", smoothed(0.9), smoothed(0.1)),
    Pair("keeps a tenth, by hand", "loss", "rises beyond", smooth(0.9), smooth(0.1)),
    Pair("not the log", "loss", "log_softmax", scored(lambda s, y: F.nll_loss(s.softmax(1), y)), sound, "", "fail"),
    Pair("next class", "loss", "class 1:", scored(lambda s, y: F.cross_entropy(s, (y + 1) % 10)), sound, "", "fail"),
    Pair("weights by counts", "loss_terms", "inverse", uneven(False, False), uneven(False, True)),
    Pair("balanced twice", "loss_terms", "twice", uneven(True, True), uneven(False, True)),
]


def sigmoids(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 10).float())


def squares(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits, F.one_hot(labels, 10).float())


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits - 0.35 * F.one_hot(labels, 10), labels)


@pytest.mark.parametrize("function", [sigmoids, squares, margins, F.multi_margin_loss])
def test_sound_losses_pass(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert {check: checked(check, "", scored(function)).status for check in ("loss", "loss_terms")} == {
        "loss": "pass",
        "loss_terms": "pass",
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("pair", [*PAIRS, *LOSSES], ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adadelta", "rmsprop", "adamw", "lbfgs", "muon"])
def test_optimizers_of_conf_pass(name: str) -> None:
    words = f"optimizer={name}"
    assert {check: checked(check, words).status for check in ("updates", "descent")} == {
        "updates": "pass",
        "descent": "pass",
    }


class Lion(Rule):
    """Sign of a running mean (Chen et al. 2023): momentum that shows in no length."""

    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        assert p.grad is not None
        mean = kept.setdefault("mean", torch.zeros_like(p))
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * (0.9 * mean + 0.1 * p.grad).sign())
        mean.lerp_(p.grad, 0.01)


class Lars(Sgd):
    """SGD with a rate per tensor (You et al. 2017)."""

    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        assert p.grad is not None
        trust = 0.01 * p.norm() / (p.grad.norm() + 1e-9) if bool(p.grad.any()) else 1.0
        super().one({**group, "lr": group["lr"] * float(trust)}, p, kept)


class NoClosure(Rule):
    """Evaluates the closure without a gradient of its own, as a step under torch.no_grad() does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)

    def one(self, group: dict[str, Any], p: Tensor, kept: dict[str, Any]) -> None:
        p.sub_(group["lr"] * p.grad)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [(Lion, {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}), (Lars, SGD), (NoClosure, {})],
)
def test_sound_rules_by_hand_pass(rule: type[Rule], settings: dict[str, Any]) -> None:
    for name in ("updates", "descent", "optimizer"):
        assert checked(name, "", steps(rule, **settings)).status == "pass", name


def test_the_optimizer_is_the_same_afterwards() -> None:
    exp = experiment("", steps(Sgd, **SGD))
    before = [p.detach().clone() for p in exp.model.parameters()]
    checked("updates", "", lambda other: alter(other, optimizer=exp.optimizer, model=exp.model))
    assert not exp.optimizer.state
    assert all(torch.equal(p, old) for p, old in zip(exp.model.parameters(), before, strict=True))


def test_every_pair_stands_once() -> None:
    assert len({pair.name for pair in (*PAIRS, *LOSSES)}) == len(PAIRS) + len(LOSSES) >= 33


# what `overfit` and `garbage` say of their cause


class Masked(nn.Module):
    """Never wrong about class 9, whose samples are left out."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        cost = F.cross_entropy(logits, labels, reduction="none") * (labels != 9)
        return cost.sum() / (labels != 9).sum().clamp_min(1)


def cause(losses: list[float], logits: Tensor, y: Tensor, *, connected: bool = True, goal: float = 0.1) -> str:
    x = torch.arange(len(y)).view(-1, 1, 1, 1).float()
    one = Attempt(1e-3, losses, logits, connected)
    return unlearned([one], one, x, y, goal, [f"c{number}" for number in range(10)])


def test_causes_are_told_apart_by_what_training_left() -> None:
    y = torch.arange(20) % 10
    right = 10 * F.one_hot(y, 10).float()
    wrong = right.roll(1, 1)
    words = {
        "no gradient": cause([2.3], right, y, connected=False),
        "not finite": cause([2.3, float("nan")], right, y),
        "rises": cause([2.3, 9.0], wrong, y),
        "same logits": cause([2.3, 2.3], torch.zeros(20, 10), y),
        "different logits": cause([2.3, 2.3], wrong, y),
        "accuracy stays": cause([2.3, 0.3], wrong, y),
        "near zero": cause([2.3, 1e-6], wrong, y),
        "c3 is never predicted": cause([2.3, 0.5], right.index_fill(1, torch.tensor([3]), -1.0), y),
        "stops there": cause([2.3, 1.2], torch.cat([right[:18], wrong[18:]]), y),
    }
    assert [word for word, text in words.items() if word not in text] == []
    assert len(set(words.values())) == len(words)
    same = torch.zeros(20, 1, 1, 1).index_fill(0, torch.arange(2, 20), 1.0)
    one = Attempt(1e-3, [2.3, 0.7], wrong, True)
    assert unlearned([one], one, same, y, 0.1, ["cat", "dog", *"abcdefgh"]).startswith("cat and dog")


@pytest.mark.slow
def test_a_class_that_costs_nothing_is_named() -> None:
    found = checked("overfit", "", lambda exp: alter(exp, loss=Masked()))
    assert (found.status, "ignore_index" in found.message, " 9:" in found.message) == ("fail", True, True)


def test_the_data_are_told_from_the_network_by_the_means_of_the_pixels() -> None:
    def scrambled(exp: Experiment) -> None:
        split = exp.data.train
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
        alter(exp, data=replace(exp.data, train=replace(split, labels=split.labels[order])))

    assert "is chance" in garbage._why(experiment("", scrambled))
    assert "`independence`" in garbage._why(experiment())


class Scrambled(nn.Module):
    """Gives the pixels of each sample another order."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.rand(x.shape[0], x[0].numel(), generator=torch.Generator().manual_seed(0)).argsort(1)
        return x.flatten(1).gather(1, order).view_as(x)


class Losing(nn.Module):
    """A network that loses what tells classes apart, in a module or between two."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.mix = fault, Scrambled() if fault == "in a module" else nn.Identity()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.conv(x)))
        return self.head((Scrambled.forward(self.mix, x) if self.fault == "between" else x).flatten(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "word"),
    [("in a module", "lost in mix (Scrambled, test_steps.py:"), ("between", "before head (Linear, test_steps.py:")],
)
def test_where_classes_stop_being_told_apart_is_named(fault: str, word: str) -> None:
    assert word in garbage._why(experiment("", wear(lambda: Losing(fault))))
    assert "lost" not in garbage._why(experiment("", wear(lambda: Losing(""))))


def test_a_decay_that_is_lost_in_rounding_is_no_failure() -> None:
    words = "optimizer=adamw optimizer.lr=0.0001 optimizer.weight_decay=0.0001"
    assert checked("descent", words).status == "pass"


def test_decay_at_a_rate_of_zero_is_told_from_steps_at_it() -> None:
    found = checked("descent", "", steps(AdamW, "decay without rate", **ADAM))
    assert (found.status, "lr × weight_decay" in found.message) == ("fail", True)


class Blamed(nn.Module):
    """Two convolutions with a place for what stops learning."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault, self.act = fault, nn.Tanh()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.drop, self.head = nn.ReLU(), nn.Linear(64, 10)
        if fault == "frozen":
            self.conv2.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.act(50 * x if self.fault == "saturated" else x)
        x = self.conv2(x.detach() if self.fault == "cut" else x)
        return self.head(self.drop(x - 1e3 if self.fault == "dead" else x).flatten(1))


@pytest.mark.parametrize(
    ("fault", "word"),
    [("dead", "drop (ReLU"), ("cut", "before conv2 (Conv2d"), ("frozen", "conv2 (Conv2d"), ("saturated", "act (Tanh")],
)
def test_the_module_and_the_line_are_named(fault: str, word: str) -> None:
    exp = experiment()
    x, y = samples(exp, 8)
    found = blame(exp, Blamed(fault), x, y)
    assert (word in found, "test_steps.py:" in found) == (True, True), found
    assert blame(exp, Blamed(), x, y) == ""
