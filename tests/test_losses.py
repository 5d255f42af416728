"""Losses and the supervised objective: exact values, gradients, chance (C1)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.losses import BinaryCrossEntropy, CrossEntropy, Focal, Hinge, Weighted, class_weights
from dlrun.objectives import Supervised

LOSSES = [CrossEntropy(), CrossEntropy(0.1), Hinge(), Hinge(0.25), Focal(), Focal(0.5), Focal(0.0)]
WEIGHTS = [1.0, 2.0, 3.0, 4.0, 9.0]
BINARY = [BinaryCrossEntropy(), BinaryCrossEntropy(0.1), BinaryCrossEntropy(0.2, WEIGHTS)]
WEIGHTED = [CrossEntropy(0.1, WEIGHTS), Hinge(weight=WEIGHTS), Focal(weight=WEIGHTS)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_uniform_logits_cost_exactly_the_chance_loss(loss: CrossEntropy | Hinge | Focal, classes: int) -> None:
    labels = torch.arange(2 * classes) % classes
    logits = torch.full((len(labels), classes), 3.5, dtype=torch.float64)
    assert loss(logits, labels).item() == pytest.approx(loss.chance(classes), rel=1e-12)


def test_chance_is_the_number_of_the_practice() -> None:
    assert CrossEntropy().chance(10) == pytest.approx(2.302585092994046, rel=1e-15)
    assert Hinge().chance(10) == 9.0
    assert Hinge(0.5).chance(3) == 1.0


def test_cross_entropy_values() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)  # probabilities 1/4 and 3/4
    assert CrossEntropy()(logits, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3), rel=1e-12)
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * (math.log(4) + math.log(4 / 3)) / 2
    assert CrossEntropy(0.1)(logits, torch.tensor([1])).item() == pytest.approx(smoothed, rel=1e-12)


def test_hinge_values() -> None:
    # max(0, s_j − s_y + 1) summed: 2.9 + 0, then 0 + 0, then 6.3 + 6.6
    logits = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    each = [Hinge()(logits[i : i + 1], labels[i : i + 1]).item() for i in range(3)]
    assert each == pytest.approx([2.9, 0.0, 12.9], abs=1e-12)
    assert Hinge()(logits, labels).item() == pytest.approx(15.8 / 3, rel=1e-12)


def test_hinge_is_torchs_averaged_form_times_the_classes() -> None:
    logits = torch.randn(16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 7
    theirs = 7 * F.multi_margin_loss(logits, labels, margin=0.7)
    assert Hinge(0.7)(logits, labels).item() == pytest.approx(theirs.item(), rel=1e-12)


def test_binary_cross_entropy_values() -> None:
    # sigmoids of 1/4 and 3/4
    logits = torch.tensor([[-math.log(3.0), math.log(3.0)]], dtype=torch.float64)
    wrong, right = math.log(4.0), math.log(4 / 3)
    assert BinaryCrossEntropy()(logits, torch.tensor([1])).item() == pytest.approx(2 * right, rel=1e-12)
    assert BinaryCrossEntropy()(logits, torch.tensor([0])).item() == pytest.approx(2 * wrong, rel=1e-12)
    # targets of 0.95 and 0.05
    smoothed = 2 * (0.95 * right + 0.05 * wrong)
    assert BinaryCrossEntropy(0.1)(logits, torch.tensor([1])).item() == pytest.approx(smoothed, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    a, b, share = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 3, 2, 1, 0, 0]), 0.3
    soft = share * F.one_hot(a, 4).double() + (1 - share) * F.one_hot(b, 4).double()
    mixed = F.binary_cross_entropy_with_logits(scores, soft) * 4
    loss = BinaryCrossEntropy()
    assert (share * loss(scores, a) + (1 - share) * loss(scores, b)).item() == pytest.approx(mixed.item(), rel=1e-12)
    zeros = torch.zeros(5, 5, dtype=torch.float64)
    for one in BINARY:
        assert one(zeros, torch.arange(5)).item() == pytest.approx(one.chance(5), rel=1e-6)
        assert one.chance(10) == pytest.approx(6.931471805599453, rel=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_binary_loss_takes_shares_of_classes(smoothing: float) -> None:
    loss, logits = BinaryCrossEntropy(smoothing), torch.randn(3, 4, dtype=torch.float64)
    one, other = torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    shares = 0.3 * F.one_hot(one, 4).double() + 0.7 * F.one_hot(other, 4).double()
    mixed = 0.3 * loss(logits, one) + 0.7 * loss(logits, other)
    assert loss(logits, shares).item() == pytest.approx(mixed.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [*LOSSES, *WEIGHTED, *BINARY])
def test_gradients_match_finite_differences(loss: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits,), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_are_summed_in_full(loss: nn.Module) -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(64)
    value = loss(logits, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.double(), labels).item(), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BinaryCrossEntropy(1.0),
        lambda: CrossEntropy(1.0),
        lambda: CrossEntropy(-0.1),
        lambda: Hinge(0.0),
        lambda: Focal(-1.0),
    ],
)
def test_impossible_settings_are_user_errors(make: object) -> None:
    with pytest.raises(UserError, match=r"label_smoothing=|margin=|gamma="):
        make()  # type: ignore[operator]


def test_supervised_returns_loss_and_logits_with_a_graph() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    loss, logits = Supervised()(model, CrossEntropy(), Batch(x, y))
    assert torch.equal(logits, model(x))
    assert loss.item() == CrossEntropy()(model(x), y).item()
    loss.backward()
    assert model.weight.grad is not None


# ---- classes of unequal size (D6)


def test_weights_follow_from_the_counts_and_have_a_mean_of_one() -> None:
    counts = [900, 90, 10]
    assert class_weights("none", counts) is None
    balanced = class_weights("balanced", counts)
    assert balanced is not None
    inverse = torch.tensor([1 / 900, 1 / 90, 1 / 10])
    assert torch.allclose(balanced, inverse / inverse.mean())
    # scikit-learn's n / (K n_k) has the same ratios
    assert (balanced / balanced[0]).tolist() == pytest.approx([1.0, 10.0, 90.0], rel=1e-6)
    # effective numbers of 900, 90 and 10 samples at beta 0.99: 99.988, 59.527, 9.562
    effective = class_weights("effective", counts, 0.99)
    assert effective is not None
    assert (1 / (effective / effective[0])).tolist() == pytest.approx(
        [1.0, 59.5268 / 99.9882, 9.5618 / 99.9882], rel=1e-4
    )
    near, even = class_weights("effective", counts, 1 - 1e-9), class_weights("effective", counts, 0.0)
    assert near is not None
    assert even is not None
    assert torch.allclose(near, balanced, rtol=1e-3)
    assert even.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_weighted_mean_is_that_of_torch(smoothing: float) -> None:
    logits = torch.randn(32, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 5
    ours = CrossEntropy(smoothing, WEIGHTS)
    assert ours.class_weight is not None
    if not smoothing:
        theirs = nn.CrossEntropyLoss(torch.tensor(WEIGHTS, dtype=torch.float64))(logits, labels)
        assert ours(logits, labels).item() == pytest.approx(theirs.item(), rel=1e-6)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    weight = ours.class_weight[labels].double()
    assert ours(logits, labels).item() == pytest.approx(float((each * weight).sum() / weight.sum()), rel=1e-12)


@pytest.mark.parametrize("loss", [*WEIGHTED, BINARY[2]])
def test_a_sample_of_weight_three_counts_as_three(loss: Weighted) -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 2])
    thrice = torch.tensor([0, 1, 1, 1, 2, 3])
    weighted = loss(logits, labels, torch.tensor([1.0, 3.0, 1.0, 1.0]))
    assert weighted.item() == pytest.approx(loss(logits[thrice], labels[thrice]).item(), rel=1e-12)


@pytest.mark.parametrize("loss", WEIGHTED)
def test_weights_leave_the_chance_loss_as_it_is(loss: CrossEntropy | Hinge | Focal) -> None:
    labels = torch.tensor([0, 0, 0, 1, 4])
    assert loss(torch.zeros(5, 5, dtype=torch.float64), labels).item() == pytest.approx(loss.chance(5), rel=1e-6)


def test_focal_values() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]], dtype=torch.float64)  # 1/4 and 3/4
    expected = [(1 - p) ** 2 * -math.log(p) for p in (0.75, 0.25)]
    assert Focal().each(logits, torch.tensor([1, 0])).tolist() == pytest.approx(expected, rel=1e-12)
    same = CrossEntropy()(logits, torch.tensor([1, 0])).item()
    assert Focal(0.0)(logits, torch.tensor([1, 0])).item() == pytest.approx(same, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_finite_gradient_for_certain_predictions(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    loss = Focal(gamma)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[1, 0].item() == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("weight", "counts", "named"),
    [
        ([1.0, 2.0], [5, 5, 5], "3"),
        ([1.0, 0.0], [5, 5], "above 0"),
        ([1.0, math.inf], [5, 5], "above 0"),
        ("equal", [5, 5], "balanced"),
        ("balanced", [5, 0], "loss.weight=none"),
        ("effective", None, "loss.weight=none"),
    ],
)
def test_wrong_weights_are_user_errors(weight: list[float] | str, counts: list[int] | None, named: str) -> None:
    with pytest.raises(UserError, match=named):
        class_weights(weight, counts)
