"""What the network is fed: splits read in other ways, and labels numbered in other ways, in pairs (D1-D3).

A fault and its repair differ in one thing; the check has to mark the first and pass the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.training.experiment import Experiment
from support.composed import alter
from support.pairs import Change, Pair, wear
from support.pictures import both, read, repaint

Relabel = Callable[[Tensor], Tensor]


def noise_of(x: Tensor) -> Tensor:
    return 60 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))


def same(x: Tensor) -> Tensor:
    return x


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def as_gray(x: Tensor) -> Tensor:
    return x.float().mean(3, keepdim=True).to(x.dtype).expand(-1, -1, -1, 3)


def reshaped(x: Tensor) -> Tensor:
    """Channels last, reshaped to channels first and taken for that."""
    return x.reshape(-1, 3, 16, 16).permute(0, 2, 3, 1)


def images_last(x: Tensor) -> Tensor:
    """Images numbered by the last axis, as MATLAB stores them, reshaped in place of transposed."""
    return x.permute(1, 2, 3, 0).reshape(x.shape)


SPLITS = [
    Pair("val divided by 255", "splits", "times darker", read(val=lambda x: x / 255), both(lambda x: x / 255)),
    Pair(
        *("val normalised twice", "splits", "normalised already"),
        *(read(val=lambda x: (x - 110.0) / 60), both(lambda x: (x - 110.0) / 60)),
    ),
    Pair("val of more bits", "splits", "other bits", read(val=lambda x: x * 16.0), both(lambda x: x * 16.0)),
    Pair("val inverted", "splits", "black for white", read(val=lambda x: 255 - x), both(lambda x: 255 - x)),
    Pair("val multiplied in bytes", "splits", "black for white", read(val=lambda x: x * 255), read()),
    Pair("val gray", "splits", "gray", read(val=as_gray), both(as_gray)),
    Pair("train gray", "splits", "gray", read(train=as_gray), both(as_gray)),
    Pair("val reshaped", "splits", "transposed", read(val=reshaped), read()),
    Pair("val reshaped from images last", "splits", "noise", repaint(val=images_last), repaint()),
    Pair("reshaped from images last", "splits", "transpose(3", repaint(images_last, images_last), repaint()),
]


def spotted(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return x + 40 * torch.randn(x.shape, generator=generator)


def blank(x: Tensor) -> Tensor:
    """A third of the images of one gray."""
    x = x.float()
    x[::3] = x[::3].mean((1, 2, 3), keepdim=True)
    return x


SPLITS += [
    Pair("val with noise", "splits", "was noise added", read(val=spotted), both(spotted)),
    Pair("val of digits with noise", "splits", "noise was added", repaint(val=lambda x: x + noise_of(x)), repaint()),
    Pair("a third of val blank", "splits", "blank", read(val=blank), both(blank)),
    Pair("val of digits mirrored", "numbering", "mirrored", repaint(val=lambda x: x.flip(2)), repaint()),
    Pair("val of digits turned", "numbering", "turned", repaint(val=lambda x: x.rot90(1, (1, 2))), repaint()),
]


def labelled(val: Relabel | None = None, train: Relabel | None = None) -> Change:
    """Give a split other labels: `Relabel` takes those that it has (N,)."""

    def change(exp: Experiment) -> None:
        splits = {"train": train, "val": val}
        made = {n: replace(s, labels=f(s.labels)) for n, f in splits.items() if f and (s := getattr(exp.data, n))}
        alter(exp, data=replace(exp.data, **made))

    return change


def numbers(*order: int) -> Relabel:
    return lambda y: torch.tensor(order)[y]


def half_shuffled(y: Tensor) -> Tensor:
    return torch.where(torch.arange(len(y)) % 5 < 3, y.flip(0), y)


SOUND = labelled()
LABELS = [
    Pair("val sorted otherwise", "numbering", "one list", labelled(numbers(3, 1, 4, 0, 5, 9, 2, 6, 8, 7)), SOUND),
    Pair(
        *("two classes of val exchanged", "numbering", "2 of val is 4"),
        *(labelled(numbers(0, 1, 4, 3, 2, 5, 6, 7, 8, 9)), SOUND, "dataset.limit=1200"),
    ),
    Pair(
        *("two classes of a small val", "numbering", "3 of val is 8"),
        *(labelled(numbers(0, 1, 2, 8, 4, 5, 6, 7, 3, 9)), SOUND, "dataset.limit=800"),
    ),
    Pair("classes of val counted from 1", "numbering", "from 0 in one", labelled(lambda y: (y + 1) % 10), SOUND),
    Pair(
        *("classes of train in another order", "numbering", "differently"),
        *(labelled(train=lambda y: 9 - y), labelled(lambda y: 9 - y, lambda y: 9 - y)),
    ),
    Pair("labels of val a row late", "numbering", "from the row after", labelled(lambda y: y.roll(1)), SOUND),
    Pair("labels of val reversed", "numbering", "reversed", labelled(lambda y: y.flip(0)), SOUND),
    Pair("labels of train a row early", "numbering", "row before", labelled(train=lambda y: y.roll(-1)), SOUND),
    Pair("most labels of val shuffled", "numbering", "are wrong", labelled(half_shuffled), SOUND, "", "warn"),
]


class Tokens(nn.Module):
    """Cuts images (B, 1, 8, 8) into patches or rows, lets these meet, and averages them."""

    def __init__(self, cut: Callable[[Tensor], Tensor], pooled: int = 1, heads: str = "") -> None:
        super().__init__()
        self.cut, self.pooled, self.heads = cut, pooled, heads
        width = cut(torch.zeros(2, 1, 8, 8)).shape[2]
        self.embed, self.query, self.mix = nn.Linear(width, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.head = nn.LazyLinear(10)
        self(torch.zeros(2, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.cut(x)).relu()
        if self.heads:
            x = x + self.attention(x)
        x = x + self.mix(x).relu()
        return self.head(x.mean(self.pooled))

    def attention(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q = self.query(x)
        q = q.view(batch, 4, count, 6) if self.heads == "view" else q.view(batch, count, 4, 6).transpose(1, 2)
        found = F.scaled_dot_product_attention(q, q, q)
        return (found if self.heads == "joined" else found.transpose(1, 2)).reshape(batch, count, width)


def tokens(cut: Callable[[Tensor], Tensor], pooled: int = 1, heads: str = "") -> Change:
    return wear(lambda: Tokens(cut, pooled, heads))


def patches(x: Tensor) -> Tensor:
    return F.unfold(x, 2, stride=2).transpose(1, 2)


def untransposed(x: Tensor) -> Tensor:
    return F.unfold(x, 2, stride=2).view(-1, 16, 4)


class Convolved(nn.Module):
    """Two convolutions, and a function between them and one behind."""

    def __init__(self, between: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between, self.behind = between, behind
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.LazyConv2d(12, 3, padding=1)
        self.head = nn.LazyLinear(10)
        self(torch.zeros(2, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.between(self.conv1(x).relu())).relu()
        return self.head(self.behind(x))


def convolved(between: Callable[[Tensor], Tensor] = same, behind: Callable[[Tensor], Tensor] = flat) -> Change:
    return wear(lambda: Convolved(between, behind))


def spread(x: Tensor) -> Tensor:
    """Channels (B, 6, 8, 8) times 16, as (B, 96, 4, 4): axes are joined and divided as they stand."""
    return torch.einsum("bcp,d->bcdp", F.max_pool2d(x, 2).flatten(2), torch.ones(16)).reshape(-1, 96, 4, 4)


LAYOUT = [
    Pair("patches by a view", "layout", "patches are cut", tokens(lambda x: x.view(-1, 16, 4)), tokens(patches)),
    Pair(
        "unfold without transpose",
        "layout",
        "view",
        tokens(lambda x: F.unfold(x, 2, stride=2).view(-1, 16, 4)),
        tokens(patches),
    ),
    Pair("mean over features", "layout", "averages the channels", tokens(patches, 2), tokens(patches, 1)),
    Pair("heads by a view", "layout", "heads", tokens(patches, heads="view"), tokens(patches, heads="sound")),
    Pair("heads joined by a view", "layout", "places", tokens(patches, heads="joined"), tokens(patches, heads="sound")),
    Pair(
        *("channels last by a view", "layout", "places"),
        *(convolved(behind=lambda x: x.reshape(-1, 64, 12).mean(1)), convolved(behind=lambda x: x.flatten(2).mean(2))),
    ),
    Pair("mean over channels", "layout", "averages", convolved(behind=lambda x: x.mean(1).flatten(1)), convolved()),
    Pair(
        *("space to depth by a view", "layout", "pixel_unshuffle"),
        *(convolved(lambda x: x.reshape(-1, 24, 4, 4)), convolved(lambda x: F.pixel_unshuffle(x, 2))),
    ),
    # the sizes of the repaired one are those of a space to depth by 4, as in linear attention
    Pair(
        *("space to depth behind a pool", "layout", "pixel_unshuffle"),
        *(convolved(lambda x: F.max_pool2d(x, 2).reshape(-1, 24, 2, 2)), convolved(spread)),
    ),
]


class Before(Convolved):
    """Convolutions, and a function of the images before them."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__(same, flat)
        self.first = before

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(getattr(self, "first", same)(x))


def before(function: Callable[[Tensor], Tensor]) -> Change:
    return wear(lambda: Before(function))


def once_more(x: Tensor) -> Tensor:
    """ImageNet's numbers, for images that are normalised already."""
    return (x - 0.45) / 0.225


class Stem(nn.Module):
    """Images of three channels, of which a function sees them first."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.conv, self.head = before, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.before(x)).relu().flatten(1))


def coloured(function: Callable[[Tensor], Tensor]) -> Change:
    """The network above on images of three channels."""

    def change(exp: Experiment) -> None:
        read()(exp)
        data = replace(exp.data, mean=[110.0] * 3, std=[60.0] * 3, shape=(16, 16, 3))
        alter(exp, data=data)
        wear(lambda: Stem(function))(exp)

    return change


def mean_of_rows(x: Tensor) -> Tensor:
    return x.mean(3, keepdim=True).expand(-1, -1, -1, 8)


def faint_blue(x: Tensor) -> Tensor:
    return x * torch.tensor([1.0, 1.0, 1e-3]).view(3, 1, 1)


def swapped(x: Tensor) -> Tensor:
    return x.flip(1)


REACH = [
    Pair("normalised once more", "reach", "normalised already", before(once_more), before(same)),
    Pair("raw range expected", "reach", "/ 255", before(lambda x: (x + 0.1) / 16), before(lambda x: x * 0.9)),
    Pair("clipped to 0 to 1", "reach", "clipped", before(lambda x: x.clamp(0, 1)), before(lambda x: x.clamp(-3, 3))),
    Pair("rounded", "reach", "rounded", before(lambda x: x.long().float()), before(same)),
    Pair("only means of rows", "reach", "columns", before(mean_of_rows), before(same)),
    Pair("blue hardly counts", "reach", "channel 2", coloured(faint_blue), coloured(swapped)),
    Pair("gray made of red", "reach", "channel 1, 2", coloured(lambda x: x[:, :1].expand_as(x)), coloured(same)),
    Pair("border cut off", "reach", "rows", before(lambda x: F.pad(x[:, :, 2:6, 2:6], (2, 2, 2, 2))), before(same)),
]

PAIRS = [*SPLITS, *LABELS, *LAYOUT, *REACH]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()
