"""Initial weights and output bias by their formulas (M6, M7)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlrun.errors import UserError
from dlrun.models.init import initialise, output_bias
from dlrun.models.mlp import MLP


@pytest.mark.parametrize(
    ("name", "variance", "bound"),
    [
        ("he_normal", lambda m, n: 2 / m, None),
        ("normal", lambda m, n: 0.1, None),
        ("uniform", lambda m, n: 1 / (3 * m), lambda m, n: m**-0.5),
        ("glorot_uniform", lambda m, n: 2 / (m + n), lambda m, n: math.sqrt(6 / (m + n))),
        ("glorot_sigmoid", lambda m, n: 32 / (m + n), lambda m, n: 4 * math.sqrt(6 / (m + n))),
    ],
)
def test_initial_weights_have_the_variance_and_bounds_of_their_formula(name: str, variance: Any, bound: Any) -> None:
    model = nn.Sequential(nn.Linear(300, 500), nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    initialise(model, name)
    for layer, m, n in ((model[0], 300, 500), (model[1], 64 * 9, 128 * 9)):
        weight = layer.weight.detach()
        assert float(weight.var()) == pytest.approx(variance(m, n), rel=0.03)
        assert abs(float(weight.mean())) < 0.02 * float(weight.std())
        if bound:
            limit = bound(m, n)
            assert 0.99 * limit < float(weight.abs().max()) <= limit * (1 + 1e-6)
        assert layer.bias.tolist() == [0.0] * len(layer.bias)
    assert model[2].weight.tolist() == [9.0] * 128
    assert model[2].bias.tolist() == [9.0] * 128


def test_orthogonal_weights_have_orthonormal_rows() -> None:
    model = nn.Sequential(nn.Linear(40, 20), nn.Conv2d(4, 16, 3))
    initialise(model, "orthogonal")
    for layer in model:
        rows = layer.weight.flatten(1)  # type: ignore[operator,union-attr]
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


def test_default_leaves_weights_alone_and_others_follow_the_seed() -> None:
    model = nn.Linear(5, 5)
    before = model.weight.clone()
    initialise(model, "default")
    assert torch.equal(model.weight, before)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        initialise(model, "he_normal")
        drawn.append(model.weight.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("counts", [[30, 10, 60], torch.tensor([0.3, 0.1, 0.6], dtype=torch.float64)])
def test_output_bias_makes_the_first_loss_the_label_entropy_where_weights_give_nothing(counts: Any) -> None:
    model = MLP(1, 8, 3)
    output_bias(model, counts)
    assert model.head.bias.tolist() == pytest.approx([math.log(0.3), math.log(0.1), math.log(0.6)])
    nn.init.zeros_(model.head.weight)
    labels = torch.tensor([0] * 3 + [1] + [2] * 6)
    entropy = -sum(p * math.log(p) for p in (0.3, 0.1, 0.6))
    loss = F.cross_entropy(model(torch.randn(10, 1, 8, 8)), labels)
    assert loss.item() == pytest.approx(entropy, rel=1e-6)


def test_output_bias_names_what_is_in_its_way() -> None:
    with pytest.raises(UserError, match=r"model\.output_bias .*\b4\b.*\bMLP\b.*model\.output_bias=default"):
        output_bias(MLP(1, 8, 3), [1, 1, 1, 1])
    with pytest.raises(UserError, match=r"model\.output_bias: .*Linear .*no bias"):
        output_bias(nn.Linear(4, 2, bias=False), [1, 1])
    with pytest.raises(UserError, match=r"model\.output_bias: class 1\b"):
        output_bias(nn.Linear(4, 3), [1, 0, 2])
