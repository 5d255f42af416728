"""What augmentation and objective make of images and labels, in pairs of a fault and its repair (D7, R3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.data.batches import Batch
from dlrun.data.images import InMemory
from dlrun.training.experiment import Experiment
from dlrun.training.objective import with_batch
from support.composed import alter
from support.pairs import Change, Pair, checked
from support.pictures import read


class Mixed:
    """Mixup of soft labels with a loss of its own, and a place for each mistake."""

    def __init__(self, mistake: str = "", loss: str = "cross") -> None:
        self.mistake, self.loss = mistake, loss

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        x, y, share = batch.x, F.one_hot(batch.y, 10).float(), float(torch.rand(()))
        mine = torch.randperm(len(x))
        theirs = torch.randperm(len(x)) if self.mistake == "permutation" else mine
        rest = share if self.mistake == "sum" else 1 - share
        if self.mistake == "share":
            share, rest = rest, share
        logits = model((1 - rest) * x + rest * x[mine] if self.mistake != "share" else rest * x + share * x[mine])
        target = share * y + rest * y[theirs]
        if self.mistake == "smooth":
            target = 0.9 * target + 0.01
        return self.cost(logits, target), logits

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss == "square":
            return (logits.softmax(1) - target).square().sum(1).mean()
        if self.loss == "binary":
            return F.binary_cross_entropy_with_logits(logits, target)
        return F.cross_entropy(logits, target)


class Pasted:
    """CutMix: the share of the labels is that of the drawn box, or of what is left of it at the border."""

    def __init__(self, drawn: bool) -> None:
        self.drawn = drawn

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        x, y, other = batch.x.clone(), batch.y, torch.randperm(len(batch))
        (height, width), share = x.shape[2:], float(torch.rand(()))
        side = int(height * (1 - share) ** 0.5)
        top, left = (int(v) for v in torch.randint(0, height, (2,)))
        rows = slice(max(0, top - side // 2), min(height, top + side // 2))
        columns = slice(max(0, left - side // 2), min(width, left + side // 2))
        x[:, :, rows, columns] = batch.x[other][:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        share = share if self.drawn else 1 - area
        logits = model(x)
        return share * loss(logits, y) + (1 - share) * loss(logits, y[other]), logits


def aims(objective: object) -> Change:
    return lambda exp: alter(exp, objective=with_batch(objective))  # type: ignore[arg-type]


def on_pictures(objective: object) -> Change:
    def change(exp: Experiment) -> None:
        read()(exp)
        alter(exp, data=exp.data.__class__(**{**vars(exp.data), "mean": [110.0] * 3, "std": [60.0] * 3}))
        aims(objective)(exp)

    return change


def augments(function: Callable[[Tensor], Tensor]) -> Change:
    def change(exp: Experiment) -> None:
        batches = exp.batches(exp.data.train, batch_size=32, shuffle=True, augment=lambda x, generator: function(x))
        alter(exp, train=batches)

    return change


def some(x: Tensor) -> Tensor:
    """Which images are changed (B, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1) < 0.5


def seeded(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return x + 3 * torch.randn(x.shape, generator=generator)


def noisy(x: Tensor) -> Tensor:
    return x + 30 * torch.randn(x.shape)


def exchanged(x: Tensor) -> Tensor:
    return torch.where(some(x), x, x.roll(1, 0))


def flipped(x: Tensor) -> Tensor:
    return torch.where(some(x), x, x.flip(2))


def mirror_classes(exp: Experiment) -> None:
    """Five digits, and as five further classes the same digits mirrored."""
    split = exp.data.train
    number = torch.full((10,), -1).index_copy(0, torch.tensor([2, 3, 4, 5, 7]), torch.arange(5))[split.labels]
    kept = (number >= 0).nonzero()[:, 0]
    pixels, mirrored = split.images.take(kept), torch.arange(len(kept)) % 2 == 1
    pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(2), pixels)
    labels = number[kept] + 5 * mirrored
    made = replace(
        split, images=InMemory(pixels.contiguous()), labels=labels, ids=[split.ids[k] for k in kept.tolist()]
    )
    alter(exp, data=replace(exp.data, train=made))


def mirror_and(exp: Experiment, function: Callable[[Tensor], Tensor]) -> None:
    mirror_classes(exp)
    augments(function)(exp)


sound, spotted = aims(Mixed()), augments(noisy)
PAIRS = [
    Pair(
        *("a class is the other's mirror image", "augmented", "augment.flip=false"),
        *(mirror_classes, lambda exp: None, "augment.flip=true dataset.limit=1500", "warn"),
    ),
    Pair(
        *("a class is the other's mirror image, by hand", "augmented", "mirrored"),
        *(lambda exp: mirror_and(exp, flipped), lambda exp: mirror_and(exp, noisy), "dataset.limit=1500", "warn"),
    ),
    Pair(
        *("a digit is another one turned", "augmented", "turned by 180°"),
        *("augment.rotate=180", "augment.rotate=20", "augment=affine dataset.limit=1797", "warn"),
    ),
    Pair("soft labels of another permutation", "mixture", "permutation", aims(Mixed("permutation")), sound, "", "fail"),
    Pair("soft labels of the other share", "mixture", "share", aims(Mixed("share")), sound, "", "fail"),
    Pair("soft labels sum to no 1", "mixture", "sum to", aims(Mixed("sum")), sound),
    Pair(
        *("labels smoothed twice", "mixture", "smoothed twice", aims(Mixed("smooth")), aims(Mixed())),
        "regularizer=label_smoothing",
    ),
    Pair(
        *("squares of another permutation", "mixture", "permutation"),
        *(aims(Mixed("permutation", "square")), aims(Mixed("", "square"))),
    ),
    Pair(
        *("binary costs of another permutation", "mixture", "permutation"),
        *(aims(Mixed("permutation", "binary")), aims(Mixed("", "binary"))),
    ),
    Pair("cutmix by the drawn box", "mixture", "border", on_pictures(Pasted(True)), on_pictures(Pasted(False))),
    Pair("augmentation without effect", "mixture", "noise of", augments(lambda x: x + 1e-3 * torch.rand(())), spotted),
    Pair("augmentation seeded anew", "mixture", "seed", augments(seeded), spotted),
    Pair("augmentation of all alike", "mixture", "every epoch", augments(lambda x: x.flip(2)), augments(flipped)),
    Pair("augmentation exchanges images", "mixture", "order of the batch", augments(exchanged), spotted),
    Pair("augmentation turns axes", "mixture", "channels", augments(lambda x: x.transpose(1, 3)), spotted),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


@pytest.mark.parametrize("words", ["objective=mixup", "objective=cutmix", "loss=focal", "regularizer=label_smoothing"])
def test_options_that_change_labels_pass(words: str) -> None:
    assert checked("mixture", words).status == "pass"


def test_smoothing_in_the_objective_alone_passes() -> None:
    assert checked("mixture", "", aims(Mixed("smooth"))).status == "pass"
