"""`check.skip=[CHECK:MODULE]`: a declared module is omitted, everything beside it is still judged (C4, C9)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun import checks
from dlrun.checks.result import Result
from dlrun.errors import UserError
from support.pairs import experiment, wear

BOTH = "gradient:blocks.0.ste,gradient:blocks.1.ste"


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0]


class _Doubled(torch.autograd.Function):
    """A wrong backward: twice the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return 2 * slopes[0]


class StraightThrough(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Round.apply(x)
        return found


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.ste = nn.Conv2d(4, 4, 3, padding=1), StraightThrough()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.ste(torch.relu(self.conv(x)))
        return found


class Quantised(nn.Module):
    def __init__(self, wrong: bool = False, skip: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head, self.spare = nn.Linear(256, 10), nn.Linear(2, 2)
        self.wrong, self.skip = wrong, skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        if self.wrong:
            x = _Doubled.apply(x)
        found: Tensor = self.head(x.flatten(1))
        return found


def checked(check: str, skip: str, **options: bool) -> Result:
    exp = experiment(f"check.only=[{check}] check.fresh=true check.skip=[{skip}]", wear(lambda: Quantised(**options)))
    (found,) = checks.run(exp)
    return found


def test_a_surrogate_gradient_is_reported_and_passes_once_its_modules_are_declared() -> None:
    assert checked("gradient", "").status == "fail"
    one = checked("gradient", "gradient:blocks.0.ste")
    assert (one.status, "blocks.1.conv" in one.value) == ("fail", True), one
    both = checked("gradient", BOTH)
    assert both.status == "pass", both
    assert "blocks.0.conv.weight" in both.message, both
    assert "first.weight" not in both.message, both


def test_a_wrong_backward_beside_a_declared_module_is_still_found() -> None:
    found = checked("gradient", BOTH, wrong=True)
    assert (found.status, "first" in f"{found.value}{found.message}") == ("fail", True), found


def test_modules_may_be_left_unused_if_they_are_declared() -> None:
    assert checked("parameters", "").status == "fail"
    assert checked("parameters", "parameters:spare").status == "pass"


@pytest.mark.parametrize(
    ("skip", "words"),
    [
        ("gradient:block.1.ste", ("block.1.ste", "gradient:blocks.1.ste")),
        ("gradient:net.ste", ("net.ste", "gradient:blocks.0.ste")),
        ("overfit:blocks.0", ("overfit", "gradient, lint_bias, parameters, structure")),
    ],
)
def test_a_module_that_the_model_lacks_is_refused_with_the_nearest(skip: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        checked("gradient", skip)
    assert all(word in str(error.value) for word in words)


def test_what_lies_behind_declared_modules_alone_is_undecided() -> None:
    found = checked("gradient", "gradient:head")
    assert (found.status, "head" in found.message) == ("skip", True), found
