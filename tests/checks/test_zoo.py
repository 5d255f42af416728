"""The zoo: a healthy setup with one thing broken, and the checks that must detect and name it (C1-C10, D3).

To add a bug, write a function that breaks a built experiment in place and put a line into its family in `ZOO`. Each
bug is a test of its own: while this file passes, all of them are caught. Only the checks that a line names are run;
`test_the_healthy_setup_passes_every_check` keeps them from failing always.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.checks.result import Verdict
from dlrun.checks.runner import CHECKS
from dlrun.checks.sandbox import no_trace
from dlrun.data.images import InMemory
from dlrun.data.splits import HeldOut, Split
from dlrun.losses import CrossEntropy
from dlrun.regularizers import Penalty
from dlrun.training.experiment import Experiment, build
from support.composed import alter, composed

Change = Callable[[Tensor], Tensor]
Break = Callable[[Experiment], None]
HEALTHY = ("dataset.limit=600", "trainer.threads=1", "model.width=8", "model.norm=none")


@dataclass(frozen=True)
class Bug:
    """A way to break an experiment, checks of which at least one must not pass, and a key word of its message."""

    name: str
    breaks: Break
    checks: str
    word: str
    overrides: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """What a user gets: exit 3, but for what may be meant or is learned all the same."""
        return "warn" if self.name in MAY_BE_MEANT else "fail"


MAY_BE_MEANT = {
    *("inputs scaled twice", "log-softmax on logits", "loss softmaxes twice", "momentum almost 1"),
    *("bias before batch norm", "tanh in hidden layers", "functional sigmoid in hidden layers"),
}


def nothing(exp: Experiment) -> None:
    """The overrides alone break it."""


# tools that bugs are made with


def wear(exp: Experiment, model: nn.Module) -> None:
    """Give the experiment another model, and an optimizer of all its parameters."""
    alter(exp, model=model)
    group = {k: v for k, v in exp.optimizer.param_groups[0].items() if k != "params"}
    alter(exp, optimizer=type(exp.optimizer)([{"params": list(model.parameters()), **group}]))


def feed(exp: Experiment, **changes: Any) -> None:
    """Give the experiment other data."""
    alter(exp, data=replace(exp.data, **changes))
    alter(exp, train=exp.batches(exp.data.train, batch_size=exp.cfg.trainer.batch_size, shuffle=True, seed=1))
    alter(exp, val=exp.batches(exp.data.val))


def pixels(split: Split) -> Tensor:
    """The images of a split as numbers (N, H, W, C), a copy."""
    return split.images.take(torch.arange(len(split))).float()


def repaint(change: Change) -> Break:
    """A bug that changes the pixels of train and val."""

    def breaks(exp: Experiment) -> None:
        splits = {name: getattr(exp.data, name) for name in ("train", "val")}
        feed(exp, **{n: replace(s, images=InMemory(change(pixels(s)))) for n, s in splits.items()})

    return breaks


def relabel(change: Change, *names: str) -> Break:
    """A bug that changes the labels of some splits."""

    def breaks(exp: Experiment) -> None:
        splits = {name: getattr(exp.data, name) for name in names}
        feed(exp, **{n: replace(s, labels=change(s.labels)) for n, s in splits.items()})

    return breaks


class Wrapped(nn.Module):
    """A sound model with a function before it and one behind it."""

    def __init__(self, model: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


def wrapped(before: Callable[..., Tensor] = same, after: Callable[..., Tensor] = same) -> Break:
    return lambda exp: wear(exp, Wrapped(exp.model, before, after))


class Net(nn.Module):
    """A small convolutional network with a place for a mistake between its trunk and its head."""

    def __init__(self, between: Change = same, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 4 * 4, classes)
        self.between = between

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.features(x)).flatten(1))


class Unbiased(Net):
    """A forward pass that forgets a bias."""

    def features(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(F.relu(self.conv1(x)), self.conv2.weight, stride=2, padding=1))


def net(make: Callable[[], nn.Module]) -> Break:
    return lambda exp: wear(exp, make())


def weights(change: Callable[[Tensor], Any], only: str = "") -> Break:
    """A bug that changes the parameters in place."""

    def breaks(exp: Experiment) -> None:
        with torch.no_grad():
            for name, p in exp.model.named_parameters():
                if only in name:
                    change(p)

    return breaks


def scored(function: Callable[[Tensor, Tensor], Tensor]) -> Break:
    """A bug in the loss, which keeps its `chance`."""

    class Loss(CrossEntropy):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return function(logits, labels)

    def breaks(exp: Experiment) -> None:
        alter(exp, loss=Loss())

    return breaks


def penalised(cost: Callable[[Penalty, nn.Module], Tensor]) -> Break:
    """A bug in the penalty."""

    class Broken(Penalty):
        def penalty(self, model: nn.Module) -> Tensor:
            return cost(self, model)

    def breaks(exp: Experiment) -> None:
        alter(exp, penalty=Broken(l2=1e-3))

    return breaks


def groups(**options: Any) -> Break:
    """A bug in the numbers of the optimizer."""

    def breaks(exp: Experiment) -> None:
        for group in exp.optimizer.param_groups:
            group.update(options)

    return breaks


def leak(source: str, target: str) -> Break:
    """A bug that puts fifty samples of a split into another."""

    def breaks(exp: Experiment) -> None:
        seen, other = getattr(exp.data, source).subset(torch.arange(50)), getattr(exp.data, target)
        images = torch.cat([split.images.take(torch.arange(len(split))) for split in (seen, other)])[: len(other)]
        labels = torch.cat([seen.labels, other.labels])[: len(other)]
        feed(exp, **{target: replace(other, images=InMemory(images), labels=labels)})

    return breaks


def leak_into_test(exp: Experiment) -> None:
    seen = exp.data.train.subset(torch.arange(50))
    alter(exp, data=replace(exp.data, test=lambda: HeldOut(seen)))


# the bugs that need more than a line


class Listed(Net):
    """Its second layer stands in a list that the model does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.conv2]
        del self.conv2

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden[0](F.relu(self.conv1(x))))


class BareTensor(Net):
    """Its scale is a tensor that learns and is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(8, 1, 1, requires_grad=True)

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


class Forgotten(Net):
    """Has a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)


class NoGrad(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().features(x)


class Stubborn(Net):
    """Its batch norm never leaves training mode, since `train` is overridden."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.between = self.norm

    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)


def batch_norm_in_training_mode(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


class Scaled(torch.autograd.Function):
    """The identity, its gradient off by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g * ctx.factor, None


class Silu(torch.autograd.Function):
    """x·σ(x), whose gradient lacks the second term of the product rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return g * torch.sigmoid(x)


def sigmoid_tower() -> nn.Module:
    layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.Sigmoid())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))


def dead_relus(exp: Experiment) -> None:
    with torch.no_grad():
        for module in exp.model.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.fill_(-100.0)


def squeezed(x: Tensor) -> Tensor:
    return x.squeeze() - x.squeeze().mean(1, keepdim=True)


class Carrying(Net):
    """Adds to every batch what it saw in the last."""

    last: Tensor | float = 0.0

    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        self.last = 0.5 * self.last + found.mean(0).detach()
        return found + self.last


class Anew(Net):
    """Draws another head for every batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.Linear(8 * 4 * 4, 10)(self.features(x).flatten(1))


def attention_over_the_batch(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return (flat @ flat.t() / flat.shape[1] ** 0.5).softmax(0) @ flat


class Unmoved(Net):
    """Its batch norm keeps the statistics it began with."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, momentum=0.0)
        self.between = self.norm


class Rooted(Net):
    """Takes the root of a negative number."""

    def features(self, x: Tensor) -> Tensor:
        return (super().features(x) - 1e3).sqrt()


def biased() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10))


def freeze(exp: Experiment) -> None:
    exp.model.requires_grad_(False)


def freeze_trunk(exp: Experiment) -> None:
    for name, p in exp.model.named_parameters():
        p.requires_grad_("head" in name)


def raw_pixels(exp: Experiment) -> None:
    feed(exp, mean=[0.0], std=[1.0])


def raw_validation(exp: Experiment) -> None:
    data = exp.data
    alter(exp, data=replace(data, mean=[0.0], std=[1.0]))
    alter(exp, val=exp.batches(data.val))
    alter(exp, data=data)


def scaled_twice(exp: Experiment) -> None:
    feed(exp, std=[exp.data.std[0] * 5])


def one_nan(x: Tensor) -> Tensor:
    x[0, 3, 3] = float("nan")
    return x


def shuffled(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


def pixels_shuffled(x: Tensor) -> Tensor:
    return torch.stack([image.flatten()[torch.randperm(image.numel())].reshape(image.shape) for image in x])


def head_only(exp: Experiment) -> None:
    exp.optimizer.param_groups[0]["params"] = list(exp.model.head.parameters())


def built_before_the_model_was_replaced(exp: Experiment) -> None:
    alter(exp, model=copy.deepcopy(exp.model))


def twice(exp: Experiment) -> None:
    exp.optimizer.param_groups[0]["params"] *= 2


def only_biases(penalty: Penalty, model: nn.Module) -> Tensor:
    return penalty.l2 * torch.stack([p.square().sum() + 1 for p in model.parameters() if p.ndim < 2]).sum()


def rewarding(penalty: Penalty, model: nn.Module) -> Tensor:
    return penalty.l2 * (9e9 - Penalty(l2=1.0).penalty(model))


def another_model(penalty: Penalty, model: nn.Module) -> Tensor:
    other = nn.Linear(4, 4)
    return Penalty.penalty(penalty, nn.Sequential(other.requires_grad_(True)))


class Swapped(CrossEntropy):
    def forward(self, labels: Tensor, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


def swap_arguments(exp: Experiment) -> None:
    alter(exp, loss=Swapped())


CE = F.cross_entropy
SGD = ("optimizer=sgd",)

ZOO: dict[str, list[Bug]] = {
    "labels": [
        Bug("labels shuffled", relabel(shuffled, "train", "val"), "garbage", "do not match"),
        Bug("train labels shuffled", relabel(shuffled, "train"), "garbage", "do not match"),
        Bug("val labels shuffled", relabel(shuffled, "val"), "garbage", "validation"),
        Bug("val labels shifted", relabel(lambda y: (y + 1) % 10, "val"), "garbage", "shifted"),
        Bug("class missing in train", relabel(lambda y: y.clamp_max(8), "train"), "labels", "no training sample"),
        Bug("class missing in val", relabel(lambda y: y.clamp_max(8), "val"), "labels", "no validation sample"),
        Bug("labels from one", relabel(lambda y: y + 1, "train", "val"), "labels", "out of range"),
        Bug("labels all one class", relabel(torch.zeros_like, "train", "val"), "labels", "no training sample"),
        Bug("label of minus one", relabel(lambda y: y - (y == 0).long(), "train"), "labels", "out of range"),
        Bug("train labels shifted", relabel(lambda y: (y + 1) % 10, "train"), "garbage", "look shifted"),
    ],
    "inputs": [
        Bug("inputs not scaled", raw_pixels, "inputs", "raw scale"),
        Bug("val inputs not scaled", raw_validation, "inputs", "val images"),
        Bug("inputs scaled twice", scaled_twice, "inputs", "not normalised"),
        Bug("inputs zero", repaint(torch.zeros_like), "inputs", "identical"),
        Bug("inputs zero, for C7", repaint(torch.zeros_like), "garbage", "corrupted"),
        Bug("inputs NaN", repaint(one_nan), "inputs", "not finite"),
        Bug("one image everywhere", repaint(lambda x: x[:1].expand_as(x).clone()), "inputs", "identical"),
        Bug("pixels scrambled", repaint(pixels_shuffled), "garbage", "corrupted"),
    ],
    "model": [
        Bug(
            "samples mixed by a view",
            wrapped(lambda x: x.flatten(1).t().reshape(x.shape)),
            "independence",
            "mixes",
        ),
        Bug("bias left out of forward", net(Unbiased), "parameters", "reaches conv2.bias"),
        Bug(
            "channels for samples",
            net(lambda: Net(lambda x: x.transpose(0, 1).reshape(x.shape))),
            "independence",
            "mixes",
        ),
        Bug("mean of the batch taken off", wrapped(lambda x: x - x.mean(0)), "independence", "others"),
        Bug("batch reversed", wrapped(after=lambda x: x.flip(0)), "independence", "others"),
        Bug("batch of one squeezed", wrapped(after=squeezed), "independence", "one"),
        Bug("softmax on logits", wrapped(after=lambda x: x.softmax(1)), "probabilities", "softmax"),
        Bug("log-softmax on logits", wrapped(after=lambda x: x.log_softmax(1)), "probabilities", "log-prob"),
        Bug("ReLU on logits", wrapped(after=torch.relu), "probabilities", "ReLU"),
        Bug("sigmoid on logits", wrapped(after=torch.sigmoid), "probabilities", "sigmoid"),
        Bug("tanh on logits", wrapped(after=torch.tanh), "probabilities", "tanh"),
        Bug("softplus on logits", wrapped(after=F.softplus), "probabilities", "softplus"),
        Bug("log-sigmoid on logits", wrapped(after=F.logsigmoid), "probabilities", "above 0"),
        Bug("trunk detached", net(lambda: Net(lambda x: x.detach())), "parameters", "reaches conv1"),
        Bug("trunk without gradients", net(NoGrad), "parameters", "reaches conv1"),
        Bug("layers in a list", net(Listed), "parameters", "hidden"),
        Bug("bare tensor for a parameter", net(BareTensor), "parameters", "scale"),
        Bug("layer left out of forward", net(Forgotten), "parameters", "conv3"),
        Bug("all frozen", freeze, "parameters", "frozen"),
        Bug("trunk frozen", freeze_trunk, "parameters", "frozen"),
        Bug("initialised to zero", weights(nn.init.zeros_), "independence", "same output"),
        Bug("initialised to zero, for C3", weights(nn.init.zeros_), "overfit", "cannot be memorised"),
        Bug("initialised to one value", weights(lambda p: p.fill_(0.05)), "overfit", "cannot be memorised"),
        Bug("initialised huge", weights(lambda p: p.mul_(10)), "initial_loss", "initial weights"),
        Bug("head initialised huge", weights(lambda p: p.mul_(200), "head"), "initial_loss", "initial weights"),
        Bug("NaN in the weights", weights(lambda p: p.fill_(float("nan")), "head"), "outputs", "head.weight"),
        Bug("thirty sigmoid layers", net(sigmoid_tower), "overfit", "saturated"),
        Bug("thirty sigmoid layers, for C8", net(sigmoid_tower), "independence", "saturated"),
        Bug("ReLUs dead", dead_relus, "parameters", "dead"),
        Bug("ReLUs dead, for C8", dead_relus, "independence", "dead"),
        Bug("batch norm always training", net(Stubborn), "independence", "training mode"),
        Bug("batch norm that never moves", net(Unmoved), "parameters", "statistics of norm"),
        Bug("root of a negative number", net(Rooted), "outputs", "before head (Linear)"),
        Bug("overflow in a layer", weights(lambda p: p.fill_(1e30), "conv"), "outputs", "in stage"),
        Bug(
            "functional batch norm training",
            net(lambda: Net(batch_norm_in_training_mode)),
            "independence",
            "training mode",
        ),
        Bug("dropout left on", net(lambda: Net(lambda x: F.dropout(x, 0.5))), "independence", "dropout"),
        Bug("noise left on", wrapped(lambda x: x + 0.3 * torch.randn_like(x)), "independence", "noise"),
        Bug("state kept between batches", net(Carrying), "independence", "between batches"),
        Bug("input changed in place", wrapped(lambda x: x.mul_(0.5)), "independence", "changes its input"),
        Bug("logits scaled to nothing", wrapped(after=lambda x: x * 1e-6), "probabilities", "tiny factor"),
        Bug("layer made in forward", net(Anew), "independence", "new weights"),
        Bug("layer made in forward, for C9", net(Anew), "parameters", "not parameters"),
        Bug("attention over the batch", net(lambda: Net(attention_over_the_batch)), "independence", "others"),
        Bug("skip past the gradient", net(lambda: Net(lambda x: x.data + torch.tanh(x))), "gradient", "data is called"),
        Bug("logits clamped", wrapped(after=lambda x: x.clamp(-0.5, 0.5)), "probabilities", "clamp"),
        Bug("input ignored", wrapped(lambda x: x * 0), "independence", "ignores x"),
        Bug("a logit too few", net(lambda: Net(classes=9)), "outputs", "num_classes=10"),
        Bug("a logit too many", net(lambda: Net(classes=11)), "outputs", "num_classes=10"),
        Bug("images of another size", wrapped(lambda x: x.repeat(1, 2, 1, 1)), "outputs", "raises"),
    ],
    "custom autograd functions": [
        Bug(
            "backward of the wrong sign",
            net(lambda: Net(lambda x: Scaled.apply(x, -1.0))),
            "gradient",
            "sign is flipped",
        ),
        Bug("backward doubled", net(lambda: Net(lambda x: Scaled.apply(x, 2.0))), "gradient", "too large by"),
        Bug("backward lacks a term", net(lambda: Net(Silu.apply)), "gradient", "term"),
    ],
    "leaks": [
        Bug("val is part of train", leak("train", "val"), "data_duplicates", "inflated"),
        Bug("some of val in train", leak("val", "train"), "data_duplicates", "inflated"),
        Bug("test is part of train", leak_into_test, "data_duplicates", "images in test"),
    ],
    "loss": [
        Bug("loss summed", scored(lambda s, y: CE(s, y, reduction="sum")), "loss", "mean"),
        Bug("loss divided by the batch again", scored(lambda s, y: CE(s, y) / len(y)), "loss", "mean"),
        Bug("loss arguments swapped", swap_arguments, "loss", "labels"),
        Bug("loss softmaxes over the batch", scored(lambda s, y: F.nll_loss(s.log_softmax(0), y)), "loss", "dim=1"),
        Bug(
            "loss of the guess",
            scored(lambda s, y: (s.argmax(1) - y).float().abs().mean()),
            "parameters",
            "no gradient",
        ),
        Bug("loss negated", scored(lambda s, y: -CE(s, y)), "loss", "sign"),
        Bug("loss softmaxes twice", scored(lambda s, y: CE(s.softmax(1), y)), "loss", "softmax"),
        Bug("loss shifts labels", scored(lambda s, y: CE(s, (y + 1) % 10)), "loss", "index"),
        Bug("loss without a log", scored(lambda s, y: F.nll_loss(s, y)), "loss", "chance()"),
        Bug("loss of detached logits", scored(lambda s, y: CE(s.detach(), y)), "parameters", "no gradient"),
    ],
    "regularizer": [
        Bug("penalty subtracted", penalised(lambda p, m: -Penalty.penalty(p, m)), "penalty", "sign is wrong"),
        Bug(
            "penalty of detached weights",
            penalised(lambda p, m: Penalty.penalty(p, m).detach()),
            "penalty",
            "no gradient",
        ),
        Bug("penalty of another model", penalised(another_model), "penalty", "no weight"),
        Bug("penalty on biases alone", penalised(only_biases), "penalty", "no weight"),
        Bug(
            "penalty without its strength",
            penalised(lambda p, m: Penalty(l2=1.0).penalty(m)),
            "penalty",
            "every strength",
        ),
        Bug("penalty rewards weights", penalised(rewarding), "penalty", "sign"),
    ],
    "optimizer": [
        Bug("optimizer without parameters", groups(params=[]), "optimizer", "lacks"),
        Bug("optimizer of the head alone", head_only, "optimizer", "lacks"),
        Bug("optimizer of the model before", built_before_the_model_was_replaced, "optimizer", "replaced"),
        Bug("parameters twice", twice, "optimizer", "twice"),
        Bug("rate 0", nothing, "optimizer", "rate of 0", ("optimizer.lr=0.0",)),
        Bug("rate 0 set by hand", groups(lr=0.0), "optimizer", "param_groups"),
        Bug("rate 1e-12", nothing, "optimizer", "did not change", ("optimizer.lr=1e-12",)),
        Bug(
            "rate 100",
            nothing,
            "optimizer",
            "; try optimizer.lr=0.01",
            ("optimizer.lr=100.0",),
        ),
        Bug("rate 100 with SGD", nothing, "optimizer", "explodes", (*SGD, "optimizer.lr=100.0")),
        Bug("momentum above 1", groups(momentum=1.5), "optimizer", "momentum", SGD),
        Bug("momentum almost 1", groups(momentum=0.9999), "optimizer", "averages", SGD),
        Bug("weight decay of a weight a step", groups(weight_decay=1e4), "optimizer", "weight_decay"),
    ],
    "habits": [
        Bug("bias before batch norm", net(biased), "lint_bias", "bias=False"),
        Bug("tanh in hidden layers", nothing, "lint_activation", "tanh", ("model.activation=tanh",)),
        Bug("functional sigmoid in hidden layers", net(lambda: Net(torch.sigmoid)), "lint_activation", "sigmoid"),
    ],
}


@functools.cache
def config(*overrides: str) -> Any:
    return composed(*HEALTHY, *overrides)


def verdict(name: str, exp: Experiment) -> Verdict:
    with no_trace():
        return CHECKS[name](exp)


# `overfit` and `garbage` train for seconds before they give up on these
LONG = {"initialised to zero, for C3", "initialised to one value", "thirty sigmoid layers", "pixels scrambled"}
LONG |= {"train labels shuffled", "inputs zero, for C7"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=bug.name, marks=[pytest.mark.slow] if bug.name in LONG else [])
        for family in ZOO.values()
        for bug in family
    ],
)
def test_a_planted_bug_is_reported(bug: Bug) -> None:
    exp = build(config(*bug.overrides))
    torch.manual_seed(0)
    bug.breaks(exp)
    found = [verdict(name, exp) for name in bug.checks.split()]
    caught = [v for v in found if v.status in ("warn", "fail")]
    assert caught, found
    assert any(bug.word in f"{v.value}: {v.message}" for v in caught), caught
    assert bug.status in {v.status for v in caught}, caught


def test_the_healthy_setup_passes_every_check() -> None:
    exp = build(config("regularizer=l2"))
    found = {name: verdict(name, exp) for name in CHECKS}
    assert {name: v for name, v in found.items() if v.status != "pass"} == {}


def test_the_zoo_has_every_family_and_no_bug_twice() -> None:
    families = ("labels", "inputs", "model", "custom autograd functions", "leaks", "loss", "regularizer", "optimizer")
    assert all(len(ZOO[family]) >= 3 for family in families)
    bugs = [bug for family in ZOO.values() for bug in family]
    assert len({bug.name for bug in bugs}) == len(bugs) >= 40
    assert {bug.name for bug in bugs} >= MAY_BE_MEANT
    assert all(bug.word and set(bug.checks.split()) <= set(CHECKS) for bug in bugs)


@pytest.mark.parametrize("breaks", [freeze, scored(lambda s, y: CE(s.detach(), y))], ids=["frozen", "detached"])
def test_without_any_gradient_the_optimizer_leaves_the_word_to_parameters(breaks: Break) -> None:
    exp = build(config())
    breaks(exp)
    found = verdict("optimizer", exp)
    assert (found.status, "`parameters`" in found.message) == ("skip", True)
