"""Adversarial changes: exact on a linear model, within their ball and the range of pixels, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dlrun.checks.runner import CHECKS
from dlrun.checks.sandbox import no_trace
from dlrun.models.adversarial import Attack
from dlrun.models.cnn import CNN
from dlrun.training.experiment import build
from support.composed import composed

MEAN, STD = torch.tensor([100.0, 50.0]), torch.tensor([50.0, 25.0])


def linear() -> nn.Sequential:
    """Logits (0, w·x) of images (B, 2, 4, 4): against class 0 the loss rises along w."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 2, bias=False)
    with torch.no_grad():
        layer.weight[0] = 0
    return nn.Sequential(nn.Flatten(), layer)


def images(count: int = 3) -> Tensor:
    """Normalised images whose pixels lie between 60 and 200, far from the ends of 0 to 255."""
    raw = 60 + 140 * torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return (raw - MEAN.view(1, 2, 1, 1)) / STD.view(1, 2, 1, 1)


def pixels(x: Tensor) -> Tensor:
    return x * STD.view(1, 2, 1, 1) + MEAN.view(1, 2, 1, 1)


def test_one_step_follows_the_signs_of_a_linear_model() -> None:
    model, x, y = linear(), images(), torch.zeros(3, dtype=torch.int64)
    changed = Attack(4 / 255, 1, "linf", MEAN, STD, 0.0, 255.0)(model, nn.CrossEntropyLoss(), x, y)
    sign = model[1].weight[1].sign().view(1, 2, 4, 4)
    assert torch.allclose(pixels(changed) - pixels(x), 4 * sign.expand_as(x), atol=1e-4)


def test_one_step_in_l2_follows_the_gradient_with_the_asked_root_mean_square() -> None:
    model, x, y = linear(), images(), torch.zeros(3, dtype=torch.int64)
    changed = Attack(4 / 255, 1, "l2", MEAN, STD, 0.0, 255.0)(model, nn.CrossEntropyLoss(), x, y)
    moved = pixels(changed) - pixels(x)
    assert torch.allclose(moved.square().mean((1, 2, 3)).sqrt(), torch.full((3,), 4.0), atol=1e-4)
    slope = (model[1].weight[1].view(1, 2, 4, 4) / STD.view(1, 2, 1, 1)).expand_as(x)  # by pixel value
    assert torch.allclose(torch.cosine_similarity(moved.flatten(1), slope.flatten(1)), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 7])
def test_changes_stay_within_the_ball_and_the_range_of_pixels(norm: str, steps: int) -> None:
    torch.manual_seed(0)
    model = CNN(2, 3, depth=2, width=4).train()
    x = images(8)
    x[0], x[1] = -MEAN.view(2, 1, 1) / STD.view(2, 1, 1), (255 - MEAN.view(2, 1, 1)) / STD.view(2, 1, 1)  # black, white
    y = torch.arange(8) % 3
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack = Attack(8 / 255, steps, norm, MEAN, STD, 0.0, 255.0)
    changed = attack(model, nn.CrossEntropyLoss(), x, y, torch.Generator().manual_seed(2))
    moved = pixels(changed) - pixels(x)
    size = moved.abs().amax((1, 2, 3)) if norm == "linf" else moved.square().mean((1, 2, 3)).sqrt()
    assert (size <= 8 + 1e-3).all()
    assert size.max() > 4
    assert pixels(changed).min() > -1e-3
    assert pixels(changed).max() < 255 + 1e-3
    assert not changed.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_more_steps_find_a_higher_loss() -> None:
    torch.manual_seed(0)
    model, x, y = CNN(2, 3, depth=2, width=8).eval(), images(64), torch.arange(64) % 3

    @torch.no_grad()
    def loss(steps: int) -> float:
        attack = Attack(16 / 255, steps, "linf", MEAN, STD, 0.0, 255.0)
        changed = attack(model, nn.CrossEntropyLoss(), x, y) if steps else x
        return float(nn.functional.cross_entropy(model(changed), y))

    assert loss(0) < loss(1) < loss(10)
    assert math.isfinite(loss(10))


def test_a_sample_that_does_not_count_is_left_as_it_is() -> None:
    def first(logits: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[:1], y[:1])

    x = images()
    changed = Attack(4 / 255, 3, "linf", MEAN, STD, 0.0, 255.0)(linear(), first, x, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(changed[1:], x[1:])
    assert not torch.equal(changed[0], x[0])


def test_the_gradient_check_follows_several_steps_across_kinks() -> None:
    words = ("objective=adversarial", "objective.steps=2", "objective.originals=0.3", "check.only=[gradient]")
    exp = build(composed(*words, "dataset.limit=400", "model.width=8", "trainer.threads=1", "trainer.device=cpu"))
    with no_trace():
        assert CHECKS["gradient"](exp).status == "pass"
