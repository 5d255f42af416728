"""Large images are reduced for checks that train, if the network takes them; time is shared among timed checks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlrun.checks import smaller
from dlrun.checks.gradient.check import gradient
from dlrun.checks.runner import CHECKS, _share
from dlrun.training.experiment import Experiment, build
from support.composed import alter, composed
from support.pairs import experiment

SIDE = 100


class Pooled(nn.Module):
    """Takes images of any size from 70 pixels."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.wrong = nn.Conv2d(1, 4, 5, stride=4), nn.Linear(4, 2), wrong

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < 70:
            raise ValueError("too small")
        x = torch.relu(self.conv(x)).mean((2, 3))
        found: Tensor = self.head(2 * x - x.detach() if self.wrong else x)
        return found


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(10), nn.Flatten(), nn.Linear(SIDE * SIDE // 100, 2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


@pytest.fixture
def large(here: Path) -> Experiment:
    draw = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (draw.random((60, SIDE, SIDE)) * 100 + 100 * y[:, None, None]).astype(np.uint8)
    np.savez(here / "large.npz", x=x, y=y)
    return build(composed("dataset=arrays", f"dataset.path={here / 'large.npz'}", "model.width=4", "trainer.threads=1"))


def worn(exp: Experiment, model: nn.Module) -> Experiment:
    alter(exp, model=model)
    return exp


def test_images_are_reduced_to_the_smallest_side_that_the_network_takes(
    large: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert smaller.smaller_side(worn(large, Flat())) == 0
    assert smaller.smaller_side(worn(large, Pooled())) == 0  # 64 is too small for it, 96 saves nothing
    monkeypatch.setattr(smaller, "SIDES", (48, 64, 75))
    monkeypatch.setattr(smaller, "WORTH", 1.3)
    assert smaller.smaller_side(worn(large, Pooled())) == 75
    assert smaller.small_samples(large, 3)[0].shape == (3, 1, 75, 75)
    assert smaller.smaller_side(experiment("model.width=8")) == 0


def test_a_wrong_backward_is_found_on_smaller_images_too(large: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "SIDES", (75,))
    monkeypatch.setattr(smaller, "WORTH", 1.3)
    right, wrong = (gradient(worn(large, Pooled(wrong))) for wrong in (False, True))
    assert (right.status, wrong.status) == ("pass", "fail"), (right, wrong)
    assert "75 pixels" in right.message
    assert "conv" in wrong.value


def test_each_timed_check_gets_its_share_of_the_time_that_is_left() -> None:
    chosen = list(CHECKS.values())
    timed = [one for one in chosen if one.timed]
    shares = [_share(one, chosen) for one in timed]
    assert shares[-1] == 1.0
    assert _share(CHECKS["outputs"], chosen) == 1.0
    left = 1.0
    for share in shares[:-1]:
        assert 0 < share < 0.5
        left *= 1 - share
    assert left > 0.3  # for the gradients, if all others use up their time
    assert math.isinf(math.inf * shares[0])
