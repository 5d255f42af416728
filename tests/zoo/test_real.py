"""What this training will really do: its optimizer, loss, augmentation, network and splits, in pairs (C1-C10).

A fault and its repair differ in one thing; the check has to mark the first and pass the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.data.batches import Batch
from dlrun.training.experiment import Experiment
from dlrun.training.objective import with_batch
from support.composed import alter
from support.pairs import Change, Pair, checked, wear
from support.pictures import both, noise, read

# optimizers


class Sgd(torch.optim.Optimizer):
    """Plain SGD with decay, and a place for each mistake."""

    def __init__(self, params: Any, mistake: str = "", weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": weight_decay})
        self.mistake, self.first = mistake, 0.1

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                rate = self.first if self.mistake == "own rate" else group["lr"]
                decay = {"no decay": 0.0, "grows": -1.0, "without rate": 20.0}.get(self.mistake, 1.0)
                decay *= 0.01 if self.mistake == "always decays" else group["weight_decay"]
                for p in group["params"]:
                    if p.grad is not None:
                        sign = 1.0 if self.mistake == "climbs" else -1.0
                        p.add_(sign * rate * p.grad - rate * decay * p)
        return loss


def stepped(mistake: str = "", weight_decay: float = 0.0) -> Change:
    def change(exp: Experiment) -> None:
        alter(exp, optimizer=Sgd(exp.model.parameters(), mistake, weight_decay))

    return change


def torch_sgd(**options: Any) -> Change:
    return lambda exp: alter(exp, optimizer=torch.optim.SGD(exp.model.parameters(), lr=0.1, **options))


OPTIMIZERS = [
    Pair("gradient ascent", "descent", "sign in step", stepped("climbs"), stepped(), "", "fail"),
    Pair("maximize", "descent", "maximize=false", torch_sgd(maximize=True), torch_sgd(), "", "fail"),
    Pair("a rate of its own", "descent", "group['lr']", stepped("own rate"), stepped(), "", "fail"),
    Pair("decay of the wrong sign", "descent", "grow", stepped("grows", 0.01), stepped("", 0.01), "", "fail"),
    Pair("decay left out", "descent", "does nothing", stepped("no decay", 0.01), stepped("", 0.01), "", "fail"),
    Pair("decay without the rate", "descent", "one step", stepped("without rate", 0.1), stepped("", 0.1), "", "fail"),
    Pair("decay that is not asked for", "descent", "decay is 0", stepped("always decays"), stepped(), "", "warn"),
    Pair("clipped to nothing", "descent", "clip_norm=1", "trainer.clip_norm=1e-6", "", "optimizer=sgd", "fail"),
    Pair("values clipped to nothing", "descent", "clip_value", "trainer.clip_value=1e-8", "", "optimizer=sgd", "fail"),
    Pair("a rate for another optimizer", "descent", "too small", "optimizer.lr=1e-7", "", "optimizer=sgd", "fail"),
    Pair("a rate for nothing", "descent", "too small", "optimizer.lr=1e-8", "", "", "fail"),
]

# losses


def scored(function: Callable[[Tensor, Tensor], Tensor], weight: list[float] | None = None) -> Change:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = None if weight is None else torch.tensor(weight)

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return function(logits, labels)

    return lambda exp: alter(exp, loss=Loss())


def each(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def focal(cost: Tensor) -> Tensor:
    return ((1 - torch.exp(-cost)) ** 2 * cost).mean()


sound = scored(F.cross_entropy)
LOSSES = [
    Pair(
        "focal of the mean",
        "loss_terms",
        "average",
        scored(lambda s, y: focal(F.cross_entropy(s, y))),
        scored(lambda s, y: focal(each(s, y))),
    ),
    Pair(
        "log of the mean",
        "loss_terms",
        "average",
        scored(lambda s, y: (1 + F.cross_entropy(s, y)).log()),
        scored(lambda s, y: (1 + each(s, y)).log().mean()),
    ),
    Pair("median for a mean", "loss_terms", "average", scored(lambda s, y: each(s, y).median()), sound),
    Pair("hardest sample alone", "loss_terms", "average", scored(lambda s, y: each(s, y).max()), sound),
    Pair(
        "a class ignored",
        "loss_terms",
        "ignore_index",
        scored(lambda s, y: F.cross_entropy(s, y, ignore_index=0)),
        sound,
        "",
        "fail",
    ),
    Pair(
        "a class masked",
        "loss_terms",
        "never counts 3",
        scored(lambda s, y: (each(s, y) * (y != 3)).mean()),
        sound,
        "",
        "fail",
    ),
    Pair(
        "labels as a mask",
        "loss_terms",
        "never counts 0",
        scored(lambda s, y: (each(s, y) * (y > 0)).mean()),
        sound,
        "",
        "fail",
    ),
    Pair(
        "a class of weight 0",
        "loss_terms",
        "never counts 9",
        scored(lambda s, y: F.cross_entropy(s, y, torch.tensor([1.0] * 9 + [0.0]))),
        sound,
        "",
        "fail",
    ),
    Pair(
        "log of a softmax", "loss_terms", "log_softmax", scored(lambda s, y: F.nll_loss(s.softmax(1).log(), y)), sound
    ),
    Pair(
        "log of exponentials",
        "loss_terms",
        "log_softmax",
        scored(lambda s, y: (s.exp().sum(1).log() - s.gather(1, y[:, None])[:, 0]).mean()),
        sound,
    ),
]

# objectives and augmentation


class Mix:
    """Mixup, and a place for each mistake."""

    def __init__(self, mistake: str = "", patch: bool = False) -> None:
        self.mistake, self.patch = mistake, patch

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        x, y, share = batch.x, batch.y, float(torch.rand(()))
        mine = torch.randperm(len(x))
        theirs = torch.randperm(len(x)) if self.mistake == "permutation" else mine
        mixed = share * x + (1 - share) * x[mine]
        if self.patch:
            rows = round(x.shape[2] * share)
            share = rows / x.shape[2]
            mixed = torch.cat([x[:, :, :rows], x[mine][:, :, rows:]], 2)
        logits = model(mixed)
        share = 1 - share if self.mistake == "share" else share
        other = y if self.mistake == "labels stay" else y[theirs]
        return share * loss(logits, y) + (1 - share) * loss(logits, other), logits


class Turned:
    """Sorts the images by label, but not the labels."""

    def __init__(self, both: bool) -> None:
        self.both = both

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(batch))
        logits = model(batch.x[order])
        return loss(logits, batch.y[order] if self.both else batch.y), logits


def aims(objective: Any) -> Change:
    return lambda exp: alter(exp, objective=with_batch(objective))


def augments(function: Callable[[Tensor], Tensor]) -> Change:
    def change(exp: Experiment) -> None:
        batches = exp.batches(exp.data.train, batch_size=32, shuffle=True, augment=lambda x, generator: function(x))
        alter(exp, train=batches)

    return change


jittered = augments(lambda x: x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)))
OBJECTIVES = [
    Pair("mixup by another permutation", "mixture", "permutation", aims(Mix("permutation")), aims(Mix()), "", "fail"),
    Pair("mixup by the other share", "mixture", "share", aims(Mix("share")), aims(Mix()), "", "fail"),
    Pair("mixup without labels", "mixture", "labels", aims(Mix("labels stay")), aims(Mix()), "", "fail"),
    Pair("cutmix by the other share", "mixture", "share", aims(Mix("share", patch=True)), aims(Mix(patch=True))),
    Pair(
        "images shuffled, labels not",
        "mixture",
        "labels",
        aims(Turned(both=False)),
        aims(Turned(both=True)),
        "",
        "fail",
    ),
    Pair("augmentation scales to 0 to 1", "mixture", "units", augments(lambda x: x / 16), jittered),
    Pair("augmentation brightens to white", "mixture", "mean", augments(lambda x: x * 0 + 16), jittered),
    Pair("augmentation normalises", "mixture", "units", augments(lambda x: (x - 5) / 6), jittered),
    Pair("augmentation divides by 0", "mixture", "finite", augments(lambda x: x / 0), jittered),
]

# networks


class Net(nn.Module):
    """Two convolutions; what stands before, between and behind them is a part or a function."""

    def __init__(self, before: Any = None, between: Any = None, behind: Any = None, bend: Any = F.relu) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.bend = nn.Linear(512, 10), bend
        self.before, self.between, self.behind = before, between, behind

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        x = self.bend(self.conv1(x))
        x = x if self.between is None else self.between(x)
        x = self.head(self.bend(self.conv2(x)).flatten(1))
        return x if self.behind is None else self.behind(x)


def net(*args: Any, **parts: Any) -> Change:
    return wear(lambda: Net(*args, **parts))


class Unused(Net):
    """Has an activation that forward() leaves out."""

    def __init__(self) -> None:
        super().__init__(bend=lambda x: x + x.abs())
        self.act = nn.ReLU()


class InPlace(Net):
    """A skip connection around an activation that overwrites what is skipped."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.head((x + self.conv2(self.act(x))).flatten(1))


def same_block(count: int) -> nn.Module:
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(*[block] * count)


def same(x: Tensor) -> Tensor:
    return x


NETWORKS = [
    Pair("one block twice", "structure", "one module 2 times", net(between=same_block(2)), net(between=same_block(1))),
    Pair("no activation", "structure", "affine", net(bend=same), net()),
    Pair("batch norm for an activation", "structure", "affine", net(between=nn.BatchNorm2d(8), bend=same), net()),
    Pair("activation never called", "structure", "act (ReLU)", wear(Unused), net()),
    Pair(
        "dropout by the share kept",
        "flow",
        "nn.Dropout(0.1)",
        net(between=nn.Dropout(0.9)),
        net(between=nn.Dropout(0.1)),
    ),
    Pair(
        "functional dropout of too much",
        "flow",
        "dropout 0.8",
        net(between=lambda x: F.dropout(x, 0.8)),
        net(between=lambda x: F.dropout(x, 0.2)),
    ),
    Pair(
        "dropout on the logits",
        "flow",
        "before the last",
        net(behind=nn.Dropout(0.2)),
        net(between=nn.Dropout(0.2)),
    ),
    Pair("skip overwritten", "flow", "inplace=False", wear(lambda: InPlace(True)), wear(lambda: InPlace(False))),
    Pair("divided by 255 again", "reach", "/ 255", net(lambda x: x / 255), net()),
    Pair("multiplied by 255", "reach", "normalised already", net(lambda x: x * 255), net()),
    Pair("half of the image sliced off", "reach", "pixels", net(lambda x: F.pad(x[:, :, :4], (0, 0, 0, 4))), net()),
    Pair("the middle alone", "reach", "pixels", net(lambda x: F.pad(x[:, :, 2:6, 2:6], (2, 2, 2, 2))), net()),
]


class Dropped(nn.Module):
    """Dropout by hand, and a place for its mistakes."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return -x if self.mistake == "flipped" else x
        kept = torch.rand(x.shape) < 0.5
        return x * kept if self.mistake == "not scaled" else x * kept * 2


class Standardised(nn.Module):
    """A norm by hand: by the batch in training, by nothing in evaluation if it forgets."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.norm, self.forgets = nn.BatchNorm2d(8), forgets

    def forward(self, x: Tensor) -> Tensor:
        x = 30 * x + 100
        if self.forgets and not self.training:
            return x
        found: Tensor = self.norm(x)
        return found


MODES = [
    Pair("dropout not scaled", "modes", "dropout keeps", net(between=Dropped("not scaled")), net(between=Dropped())),
    Pair("flag the wrong way round", "modes", "wrong way", net(between=Dropped("flipped")), net(between=Dropped())),
    Pair(
        "norm forgotten",
        "modes",
        "norm",
        net(between=Standardised(True)),
        net(between=Standardised(False)),
    ),
]

# splits, of images in three colours that have an up and a down


SPLITS = [
    Pair("val in BGR", "splits", "BGR", read(val=lambda x: x.flip(3)), read()),
    Pair("val with its channels moved", "splits", "channel order", read(val=lambda x: x.roll(1, 3)), read()),
    Pair("val mirrored", "splits", "mirrored", read(val=lambda x: x.flip(2)), both(lambda x: x.flip(2))),
    Pair("val upside down", "splits", "upside down", read(val=lambda x: x.flip(1)), both(lambda x: x.flip(1))),
    Pair("train lying on its side", "splits", "turned", read(lambda x: x.rot90(1, (1, 2))), read()),
    Pair(
        "reshaped to channels first",
        "splits",
        "transpose",
        both(lambda x: x.reshape(-1, 3, 16, 16).permute(0, 2, 3, 1)),
        read(),
    ),
    Pair(
        "reshaped to channels last",
        "splits",
        "transpose",
        both(lambda x: x.permute(0, 3, 1, 2).reshape(-1, 16, 16, 3)),
        read(),
    ),
    Pair("noise for images", "splits", "noise", both(noise), read()),
    Pair("ten bits in sixteen", "splits", "white level", both(lambda x: x // 64), both(lambda x: x // 4)),
]

PAIRS = [*OPTIMIZERS, *LOSSES, *OBJECTIVES, *NETWORKS, *MODES, *SPLITS]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


OPTIONS = {
    "optimizer=muon": "descent",
    "optimizer=lbfgs": "descent",
    "augment=crop_flip": "mixture",
    "augment=randaugment": "mixture",
    "loss=hinge": "loss_terms mixture",
    "model=resnet20": "structure flow reach descent",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("words", OPTIONS)
def test_options_of_conf_pass(words: str) -> None:
    names = OPTIONS[words].split()
    assert {check: checked(check, words).status for check in names} == dict.fromkeys(names, "pass")


def test_a_head_that_starts_at_zero_is_sound() -> None:
    def make() -> nn.Module:
        model = Net()
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        return model

    assert {check: checked(check, "", wear(make)).status for check in ("reach", "descent", "modes")} == dict.fromkeys(
        ("reach", "descent", "modes"), "pass"
    )


def test_every_pair_stands_once() -> None:
    assert len({pair.name for pair in PAIRS}) == len(PAIRS) >= 50
