"""Statistics kept by hand, factors on the logits, and the module that mixes samples, in pairs (M5, C8, C10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.pairs import Change, Pair, checked, wear


class Norm(nn.Module):
    """Batch norm by hand, and a place for each mistake."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        for name, value in (("mean", torch.zeros(8)), ("var", torch.ones(8))):
            if mistake == "plain tensors":
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        if self.training:
            with torch.no_grad():
                self.update(mean.detach(), var.detach())
        else:
            mean, var = self.mean, self.var
        return (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()

    def update(self, mean: Tensor, var: Tensor) -> None:
        if self.mistake == "never updated":
            return
        if self.mistake == "adds up":
            self.mean, self.var = self.mean + mean, self.var + var
            return
        share = {"momentum turned round": 0.99, "momentum too small": 1e-4}.get(self.mistake, 0.1)
        self.mean, self.var = self.mean + share * (mean - self.mean), self.var + share * (var - self.var)


class Net(nn.Module):
    """Two convolutions; what stands between and behind them is a part or a function."""

    def __init__(self, between: Any = None, behind: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.between, self.behind = nn.Linear(512, 10), between, behind

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = x if self.between is None else self.between(x)
        return self.behind(self.head(F.relu(self.conv2(x)).flatten(1)))


class Averaged(nn.Module):
    """Evaluates with a running average of the weights of its last layer."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.body, self.head, self.decay = nn.Linear(64, 32), nn.Linear(32, 10), decay
        self.register_buffer("average", self.head.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(x.flatten(1)))
        if not self.training:
            return F.linear(x, self.average)
        with torch.no_grad():
            self.average = self.decay * self.average + (1 - self.decay) * self.head.weight
        return F.linear(x, self.head.weight)


class Mixer(nn.Module):
    """Centres each image, by the mean of the batch if it mixes."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        return x - (x.mean(0, keepdim=True) if self.mixes else x.mean((1, 2, 3), keepdim=True))


def net(*args: Any) -> Change:
    return wear(lambda: Net(*args))


def wrong(mistake: str, word: str, status: str = "fail") -> Pair:
    return Pair(mistake, "running", word, net(Norm(mistake)), net(Norm()), "", status)


PAIRS = [
    wrong("never updated", "between.mean"),
    wrong("plain tensors", "register_buffer"),
    wrong("adds up", "adds up", "warn"),
    wrong("momentum turned round", "wrong way round", "warn"),
    wrong("momentum too small", "of its start", "warn"),
    Pair("average that lags", "running", "lags", wear(lambda: Averaged(0.9999)), wear(lambda: Averaged(0.9))),
    Pair(
        "logits of a thousandth", "probabilities", "head times 0.001", net(None, lambda x: x / 1000), net(), "", "fail"
    ),
    Pair("a temperature of 20", "probabilities", "times 0.05", net(None, lambda x: x / 20), net(), "", "warn"),
    Pair("logits times 100", "probabilities", "times 100", net(None, lambda x: 100 * x), net(), "", "warn"),
    Pair("centred by the batch", "independence", "between (Mixer)", net(Mixer(True)), net(Mixer(False)), "", "fail"),
    Pair(
        *("samples mixed by a view", "independence", "between conv1 and conv2"),
        *(net(lambda x: x.transpose(0, 1).reshape(x.shape)), net(lambda x: x.relu()), "", "fail"),
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


@pytest.mark.parametrize("words", ["", "model=resnet20", "model=airbench"])
def test_networks_of_dlrun_keep_no_statistics_of_their_own(words: str) -> None:
    assert {name: checked(name, words).status for name in ("running", "probabilities")} == {
        "running": "pass",
        "probabilities": "pass",
    }
