"""Votes, scores and selection: exact numbers from hand-made arrays (E1, E2, E5)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.ensembles.members import Member, select
from dlrun.ensembles.votes import VOTES, Vote, disagreement, fit_temperature, greedy, heated, scores, softmax


def logits(*members: list[list[float]]) -> Any:
    """Logits (M, N, K) whose softmax are these probabilities."""
    return np.log(np.array(members))


def vote(name: str, z: Any, weights: list[float] | None = None) -> Vote:
    return VOTES[name](z, softmax(z), np.array(weights or [1.0] * len(z)))


# one image, three classes: two members lean to class 0, one is sure of class 1
SPLIT = logits([[0.5, 0.4, 0.1]], [[0.5, 0.4, 0.1]], [[0.1, 0.8, 0.1]])


def test_each_vote_weighs_the_members_its_own_way() -> None:
    assert vote("majority", SPLIT).classes.tolist() == [0]  # two of three
    assert vote("confidence", SPLIT).classes.tolist() == [0]  # 0.5 + 0.5 > 0.8
    mean = vote("mean_probability", SPLIT)
    assert mean.classes.tolist() == [1]
    np.testing.assert_allclose(mean.probabilities, [[1.1 / 3, 1.6 / 3, 0.3 / 3]])
    product = np.cbrt([0.5 * 0.5 * 0.1, 0.4 * 0.4 * 0.8, 0.1**3])
    np.testing.assert_allclose(vote("mean_logit", SPLIT).probabilities, [product / product.sum()])


def test_shares_of_votes_carry_one_vote_spread_evenly() -> None:
    np.testing.assert_allclose(vote("majority", SPLIT).probabilities, [[(2 + 1 / 3) / 4, (1 + 1 / 3) / 4, 1 / 12]])
    shares = np.array([1.0 + 1 / 3, 0.8 + 1 / 3, 1 / 3]) / 2.8
    np.testing.assert_allclose(vote("confidence", SPLIT).probabilities, [shares])


def test_a_tie_goes_to_the_surer_voters() -> None:
    z = logits([[0.6, 0.3, 0.1]], [[0.1, 0.2, 0.7]])
    assert vote("majority", z).classes.tolist() == [2]
    assert vote("majority", z[::-1]).classes.tolist() == [2]  # in any order


def test_a_weight_is_a_member_that_counts_so_often() -> None:
    for name in VOTES:
        weighted, repeated = vote(name, SPLIT, [1, 1, 3]), vote(name, SPLIT[[0, 1, 2, 2, 2]])
        np.testing.assert_allclose(weighted.probabilities, repeated.probabilities)
        assert weighted.classes.tolist() == repeated.classes.tolist() == [1]


def test_accuracy_log_loss_and_calibration_error() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    found = scores(Vote(p, p.argmax(1)), np.array([0, 1, 1, 0]))
    assert found["acc"] == 0.75
    assert found["loss"] == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.7) + math.log(0.6)) / 4)
    # bins: two images at 0.9, one right: |0.5 - 0.9| × 2/4; 0.7 right: 0.3 × 1/4; 0.6 right: 0.4 × 1/4
    assert found["ece"] == pytest.approx(0.2 + 0.075 + 0.1)


def test_a_perfectly_sure_and_right_vote_has_no_error() -> None:
    p = np.eye(3)
    assert scores(Vote(p, p.argmax(1)), np.arange(3)) == {"acc": 1.0, "loss": 0.0, "ece": 0.0}


def test_no_probability_at_all_costs_a_finite_loss() -> None:
    p = np.array([[1.0, 0.0]])
    assert scores(Vote(p, p.argmax(1)), np.array([1]))["loss"] == pytest.approx(12 * math.log(10))


def test_disagreement_is_the_mean_over_pairs() -> None:
    # 3 members, 2 images: the first image splits 2 to 1 (2 of 3 pairs differ), the second does not
    z = logits(*[[[0.9, 0.1], [0.9, 0.1]]] * 2, [[0.1, 0.9], [0.9, 0.1]])
    assert disagreement(z) == pytest.approx((2 / 3 + 0) / 2)
    assert disagreement(z[:1]) == 0.0


def test_temperature_undoes_the_heat() -> None:
    draw = np.random.default_rng(0)
    z = draw.normal(size=(4000, 5)) * 2
    labels = np.array([draw.choice(5, p=p) for p in softmax(z)])
    true = softmax(z)
    sharp = Vote(softmax(z * 3), true.argmax(1))
    t = fit_temperature(sharp, labels)
    assert t == pytest.approx(3 * fit_temperature(Vote(true, true.argmax(1)), labels), rel=1e-3)
    assert t == pytest.approx(3, rel=0.1)
    assert scores(heated(sharp, t), labels)["loss"] < scores(sharp, labels)["loss"]
    assert (heated(sharp, t).classes == sharp.classes).all()


def test_the_best_comes_first_by_accuracy_then_loss() -> None:
    labels = np.array([0, 1])
    wrong, unsure, sure = (
        np.log(np.array(p))
        for p in ([[0.4, 0.6], [0.4, 0.6]], [[0.6, 0.4]] * 1 + [[0.4, 0.6]], [[0.9, 0.1], [0.1, 0.9]])
    )
    found = [
        Member(Path(str(k)), {}, {"val_logits": p, "val_labels": labels}) for k, p in enumerate((wrong, unsure, sure))
    ]
    assert [m.path.name for m in select(found)] == ["2", "1", "0"]


def test_greed_picks_with_replacement_what_lowers_the_loss() -> None:
    labels = np.zeros(2, dtype=int)
    # right-class probabilities: a (0.9, 0.3) and b (0.3, 0.9) complement each other, c is a bad copy of a
    p = lambda *right: np.log(np.array([[r, 1 - r] for r in right]))  # noqa: E731
    assert greedy([p(0.9, 0.3), p(0.3, 0.9), p(0.6, 0.2)], labels) == [1, 1, 0]
    assert greedy([p(0.9, 0.5), p(0.1, 0.1)], labels) == [1, 0]
    # (1 - t) (0.6, 0.9) + t (0.9, 0.5) is best at t = 1/8: seven of the better one, then one of the other
    assert greedy([p(0.9, 0.5), p(0.6, 0.9)], labels, rounds=8) == [1, 7]


@pytest.mark.parametrize("name", list(VOTES))
def test_every_vote_gives_probabilities(name: str) -> None:
    z = np.random.default_rng(1).normal(size=(4, 50, 7)).astype(np.float32) * 100
    found = vote(name, z)
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    assert found.probabilities.min() >= 0
    assert found.classes.shape == (50,)
