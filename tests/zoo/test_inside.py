"""What of the model works: faults inside of forward(), in pairs of a network with one and its repair (M2-M5, R2).

Each network takes `fault`; nothing else differs between the two of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.pairs import Pair, checked, wear


class Net(nn.Module):
    """Two convolutions and a head, with places for what is wrong."""

    def __init__(self, fault: bool = True) -> None:
        super().__init__()
        self.fault = fault
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(512, 10)
        self.build(fault)

    def build(self, fault: bool) -> None: ...

    def before(self, x: Tensor) -> Tensor:
        return x

    def between(self, x: Tensor) -> Tensor:
        return x

    def late(self, x: Tensor) -> Tensor:
        return x

    def behind(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(F.relu(self.conv1(self.before(x))))
        return self.behind(self.head(self.late(F.relu(self.conv2(x)).flatten(1))))


FAULTS: list[tuple[str, str, str, str, type[Net]]] = []


def fault(name: str, check: str, word: str, status: str = "") -> Callable[[type[Net]], type[Net]]:
    def keep(net: type[Net]) -> type[Net]:
        FAULTS.append((name, check, word, status, net))
        return net

    return keep


# values that are lost, met twice or overwritten


@fault("activation not assigned", "flow", "relu at test_inside.py:")
class NotAssigned(Net):
    def between(self, x: Tensor) -> Tensor:
        x = self.conv2(x)
        y = F.relu(x)
        return x if self.fault else y


@fault("residual sum not assigned", "flow", "add at test_inside.py:")
class SumNotAssigned(Net):
    def between(self, x: Tensor) -> Tensor:
        y = self.conv2(x)
        z = y + x
        return y if self.fault else z


@fault("branch not joined", "flow", "flatten at")
class NotJoined(Net):
    def build(self, fault: bool) -> None:
        self.head = nn.Linear(1024, 10)

    def late(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x.view(-1, 8, 8, 8), 3, 1, 1).flatten(1)
        return torch.cat([x, x * 2 if self.fault else pooled], 1)


@fault("residual of the wrong tensor", "flow", "itself")
class WrongResidual(Net):
    def between(self, x: Tensor) -> Tensor:
        out = self.conv2(x)
        return out + (out if self.fault else x)


@fault("one branch twice", "flow", "joins")
class OneBranchTwice(Net):
    def build(self, fault: bool) -> None:
        self.head = nn.Linear(1024, 10)

    def late(self, x: Tensor) -> Tensor:
        return torch.cat([x, x if self.fault else x.square()], 1)


@fault("relu in place on what is skipped", "flow", "inplace=False")
class InPlaceFunction(Net):
    def between(self, x: Tensor) -> Tensor:
        x = self.conv2(x)
        return x + self.conv2(F.relu(x, inplace=self.fault))


@fault("relu_ on what is skipped", "flow", "test_inside.py:")
class InPlaceMethod(Net):
    def between(self, x: Tensor) -> Tensor:
        x = self.conv2(x)
        return x + self.conv2(x.relu_() if self.fault else x.relu())


@fault("sum into the first of a list", "flow", "x = x + y")
class SumOfAList(Net):
    def between(self, x: Tensor) -> Tensor:
        features = [self.conv2(x), x, x.square()]
        total = features[0]
        for one in features[1:]:
            if self.fault:
                total += one
            else:
                total = total + one
        return total + F.relu(features[0])


@fault("mean subtracted from the batch itself", "flow", "images changed")
class BatchChanged(Net):
    def before(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        if not self.fault:
            return x - mean
        x -= mean
        return x


@fault("images clipped in place", "flow", "images changed")
class BatchClipped(Net):
    def before(self, x: Tensor) -> Tensor:
        return x.clamp_(max=1) if self.fault else x.clamp(max=1)


# activations, softmax and dropout


@fault("relu on the images", "flow", "below the mean")
class Rectified(Net):
    def before(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.fault else x


@fault("two linear layers in a row", "flow", "without an activation")
class Linears(Net):
    def build(self, fault: bool) -> None:
        self.hidden, self.head = nn.Linear(512, 128), nn.Linear(128, 10)

    def late(self, x: Tensor) -> Tensor:
        return self.hidden(x) if self.fault else F.relu(self.hidden(x), inplace=True)


@fault("softmax between layers", "flow", "hidden activation")
class SoftmaxBetween(Net):
    def late(self, x: Tensor) -> Tensor:
        return x.softmax(1) if self.fault else x


@fault("attention over the wrong axis", "flow", "dim=-1")
class Attention(Net):
    def build(self, fault: bool) -> None:
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) / math.sqrt(8)
        weights = F.dropout(scores.softmax(1 if self.fault else 2), 0.1, self.training)
        return x + (weights @ self.value(tokens)).transpose(1, 2).reshape(x.shape)


@fault("the flag as dropout's rate", "flow", "training=self.training")
class FlagAsRate(Net):
    def late(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.training) if self.fault else F.dropout(x, 0.2, self.training)


@fault("dropout of whole samples", "flow", "whole samples")
class WholeSamples(Net):
    def build(self, fault: bool) -> None:
        self.drop = nn.Dropout1d(0.2) if fault else nn.Dropout(0.2)

    def late(self, x: Tensor) -> Tensor:
        return self.drop(x)


@fault("dropout on logits that are then scaled", "flow", "logits")
class LogitsDropped(Net):
    def behind(self, x: Tensor) -> Tensor:
        return (F.dropout(x, 0.2, self.training and self.fault) / 2).view(-1, 10)


@fault("functional batch norm in evaluation mode", "flow", "training=self.training")
class FrozenFunction(Net):
    def build(self, fault: bool) -> None:
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def between(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        return F.batch_norm(x, mean, var, training=self.training and not self.fault)


# state that a forward pass changes


@fault("a layer created in forward", "state", "Conv2d at test_inside.py:", "fail")
class CreatedAnew(Net):
    def between(self, x: Tensor) -> Tensor:
        return nn.Conv2d(8, 8, 1)(x) if self.fault else self.conv2(x)


@fault("weights initialised in forward", "state", "conv2.weight", "fail")
class InitialisedAnew(Net):
    def before(self, x: Tensor) -> Tensor:
        if self.fault:
            nn.init.xavier_uniform_(self.conv2.weight)
        return x


@fault("weights rounded in forward", "state", "optimizer changes is lost", "fail")
class Rounded(Net):
    def before(self, x: Tensor) -> Tensor:
        if self.fault:
            self.conv2.weight.data = (self.conv2.weight.data * 8).round() / 8
        return x


@fault("weights binary for good", "state", "sign()", "fail")
class Binary(Net):
    def late(self, x: Tensor) -> Tensor:
        if self.fault:
            self.head.weight.data = 0.05 * self.head.weight.data.sign()
        return x


class WithDropout(Net):
    def build(self, fault: bool) -> None:
        self.drop = nn.Dropout(0.3)

    def late(self, x: Tensor) -> Tensor:
        return self.drop(x)


@fault("eval() in forward", "state", "remove eval()", "fail")
class EvalInForward(WithDropout):
    def before(self, x: Tensor) -> Tensor:
        if self.fault:
            self.eval()
        return x


@fault("train() in forward", "state", "remove train()", "fail")
class TrainInForward(WithDropout):
    def before(self, x: Tensor) -> Tensor:
        if self.fault:
            self.drop.train()
        return x


@fault("train() that keeps evaluation mode", "state", "drops nothing in training")
class NeverTrains(WithDropout):
    def train(self, mode: bool = True) -> Any:
        return super().train(mode and not self.fault)


@fault("train() that stops at the model", "state", "super().train(mode)")
class StopsAtTheTop(WithDropout):
    def train(self, mode: bool = True) -> Any:
        self.training = mode
        return self if self.fault else super().train(mode)


@fault("a part in evaluation mode that is trained", "state", "part.1 drops nothing")
class PartInEvaluation(Net):
    def build(self, fault: bool) -> None:
        self.part = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.3))
        self.part.requires_grad_(fault)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.part.eval()  # right if its weights are frozen
        return self

    def between(self, x: Tensor) -> Tensor:
        return self.part(x)


@fault("a mean that evaluation changes", "state", "if self.training")
class MeanOfEvaluation(Net):
    def build(self, fault: bool) -> None:
        self.register_buffer("mean", torch.zeros(8))

    def between(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        if self.fault or self.training:
            self.mean.mul_(0.99).add_(0.01 * x.detach().mean((0, 2, 3)))
        return x - self.mean.view(1, -1, 1, 1)


@fault("a seed in forward", "state", "manual_seed")
class Seeded(WithDropout):
    def before(self, x: Tensor) -> Tensor:
        if self.fault:
            torch.manual_seed(0)
        return x


# modules, their settings and their first weights


@fault("one block in two parts", "structure", "first.0, second.0")
class TwoParts(Net):
    def build(self, fault: bool) -> None:
        block, other = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.first = nn.Sequential(block, nn.ReLU())
        self.second = nn.Sequential(block if fault else other, nn.ReLU())

    def between(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@fault("list of activations not called", "structure", "bends.0 (ReLU)")
class Uncalled(Net):
    def build(self, fault: bool) -> None:
        self.bends = nn.ModuleList([nn.ReLU(), nn.ReLU()])

    def between(self, x: Tensor) -> Tensor:
        x = self.conv2(x)
        return x if self.fault else self.bends[1](self.bends[0](x))


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault
        self.patch, self.head = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 10)
        self.register_buffer("position", torch.randn(1, 16, 16) * 0.02)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.layer(x if self.fault else x + self.position).mean(1))


fault("positions not added", "structure", "embedding of positions")(Patches)  # type: ignore[arg-type]


class Normed(Net):
    def build(self, fault: bool) -> None:
        self.norm: nn.Module = nn.BatchNorm2d(8, 0.8) if fault else nn.BatchNorm2d(8, momentum=0.8 / 4)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


fault("momentum as eps", "layers", "eps, not momentum")(Normed)


@fault("eps of a layer norm", "layers", "LayerNorm")
class LayerNormed(Normed):
    def build(self, fault: bool) -> None:
        self.norm = nn.GroupNorm(1, 8) if not fault else nn.LayerNorm([8, 8, 8], 0.9)


@fault("inplace as a slope", "layers", "nn.LeakyReLU(0.01, inplace=True)")
class SlopeOfOne(Normed):
    def build(self, fault: bool) -> None:
        self.norm = nn.LeakyReLU(True) if fault else nn.LeakyReLU(0.1, True)


@fault("a slope as inplace", "layers", "nn.LeakyReLU(0.2)")
class InPlaceOfSlope(Normed):
    def build(self, fault: bool) -> None:
        self.norm = nn.ReLU(0.2) if fault else nn.LeakyReLU(0.2)  # type: ignore[arg-type]


@fault("pooling by 1", "layers", "MaxPool2d(2)")
class PooledByOne(Normed):
    def build(self, fault: bool) -> None:
        self.norm = nn.MaxPool2d(1) if fault else nn.MaxPool2d(3, 1, 1)


@fault("constant weights", "layers", "conv1.weight, conv2.weight", "fail")
class Constant(Net):
    def build(self, fault: bool) -> None:
        for layer in (self.conv1, self.conv2, self.head):
            if fault:
                nn.init.constant_(layer.weight, 0.01)
            nn.init.zeros_(layer.bias)


@fault("zero weights", "layers", "kaiming_normal_", "fail")
class Zero(Net):
    def build(self, fault: bool) -> None:
        self.hidden = nn.Linear(512, 64)
        self.head = nn.Linear(64, 10)
        nn.init.zeros_(self.head.weight)  # a head may start so
        if fault:
            nn.init.zeros_(self.hidden.weight)
            nn.init.zeros_(self.hidden.bias)

    def late(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden(x))


@fault("frozen at a random start", "layers", "conv2.weight is frozen")
class FrozenAtRandom(Net):
    def build(self, fault: bool) -> None:
        self.conv2.requires_grad_(not fault)


PAIRS = [Pair(n, c, w, wear(lambda net=net: net(True)), wear(lambda net=net: net(False)), "", s) for n, c, w, s, net in FAULTS]  # type: ignore[misc]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_inside_of_the_network_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


# what is unusual and sound

LOOKING = ("flow", "state", "structure", "layers")


class Straight(Net):
    """A straight-through estimator: the difference is used, and detached."""

    def between(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


class Kept(Net):
    """Keeps features for an objective, and computes in place where nobody looks again."""

    features: Any = None

    def between(self, x: Tensor) -> Tensor:
        self.features = F.normalize(x.flatten(1))
        x = self.conv2(x)
        x.relu_()
        y = x * 1
        y += x
        return y


class Gated(Net):
    """A mixture whose weights are a softmax, and a low-rank layer of two linear ones."""

    def build(self, fault: bool) -> None:
        self.gate, self.low = nn.Linear(512, 512), nn.Linear(512, 4)
        self.high = nn.Linear(4, 512)

    def late(self, x: Tensor) -> Tensor:
        return x * self.gate(x).softmax(1) + self.high(self.low(x))


class Projected(Net):
    """Weights of a norm of at most 1, as in EEGNet: a projection of what the optimizer made."""

    def before(self, x: Tensor) -> Tensor:
        self.conv1.weight.data = self.conv1.weight.data.renorm(2, 0, 1.0)
        return x


class Cached(Net):
    """Computes a table in the first pass."""

    def build(self, fault: bool) -> None:
        self.register_buffer("table", torch.zeros(0))

    def between(self, x: Tensor) -> Tensor:
        assert isinstance(self.table, Tensor)
        if not len(self.table):
            self.table = torch.linspace(0, 1, 8)
        return x * self.table


class Aliased(Net):
    """Keeps another name for a part, and weights of a normal distribution that are frozen, as pretrained ones."""

    def build(self, fault: bool) -> None:
        self.trunk = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.first = self.trunk[0]
        nn.init.normal_(self.first.weight, std=0.3)
        self.first.requires_grad_(False)

    def between(self, x: Tensor) -> Tensor:
        return self.trunk(x)


class FromZero(Net):
    """Zero at the end of a residual branch, and a head of zeros."""

    def build(self, fault: bool) -> None:
        nn.init.zeros_(self.head.weight)
        self.low, self.high = nn.Linear(512, 8), nn.Linear(8, 512)
        nn.init.zeros_(self.high.weight)

    def late(self, x: Tensor) -> Tensor:
        return x + self.high(F.relu(self.low(x)))


class Scaled(nn.Module):
    """Patches whose only sight of their neighbours is a branch that starts at a millionth, as in ConvNeXt."""

    def __init__(self, fault: bool = False) -> None:
        super().__init__()
        self.patches, self.near = nn.Conv2d(1, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.full((8, 1, 1), 1e-6)), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        return self.head(F.gelu(x + self.scale * self.near(x)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("net", [Straight, Kept, Gated, Projected, Cached, Aliased, FromZero, Scaled])
def test_what_is_sound_inside_of_a_network_passes(net: type[Net] | type[Scaled]) -> None:
    assert {check: checked(check, "", wear(lambda: net(False))).status for check in LOOKING} == dict.fromkeys(
        LOOKING, "pass"
    )
