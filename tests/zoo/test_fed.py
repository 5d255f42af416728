"""What the network is fed: splits read in other ways, and labels numbered in other ways, in pairs (D1-D3).

A fault and its repair differ in one thing; the check has to mark the first and pass the second.
"""

from __future__ import annotations

import pytest
from torch import Tensor

from support.pairs import Pair
from support.pictures import both, read, repaint


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

PAIRS = [*SPLITS]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()
