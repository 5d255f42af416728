"""Combining the outputs of several classifiers: votes, scores, selection (`dlrun ensemble`, E2, E5).

Arrays in, arrays out: logits (M, N, K) of M members for N images and K classes, labels (N,), weights (M,) of the
members. Numpy alone, so that fifty stored members are combined in about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dlrun.analysis.classification import ece

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["COLDEST", "FEWEST", "HOTTEST", "TINY"]
__all__ += ["VOTES", "Vote", "disagreement", "fit_temperature", "greedy", "heated", "scores", "softmax"]

TINY = 1e-12  # keeps the logarithm finite if a class has probability zero
# range of temperatures that is searched; those of Guo et al. 2017, table 2, and of label smoothing lie within it
COLDEST, HOTTEST = 0.25, 4.0
# errors on validation below which no temperature is fitted: with none the loss falls without end as the probabilities
# get sharper, and a few errors decide it alone, so that the test log loss may rise
FEWEST = 10


class Vote(NamedTuple):
    """Probabilities (N, K) of a vote and the chosen class (N,), after ties are broken."""

    probabilities: Array
    classes: Array


def softmax(logits: Array) -> Array:
    """Return the probabilities of logits (…, K) in double precision."""
    z = np.asarray(logits, dtype=np.float64)
    z = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(z / z.sum(-1, keepdims=True))


def _counted(probabilities: Array, weights: Array, by_confidence: bool) -> Vote:
    """Each member gives its class one vote, or a vote of the size of its confidence.

    The probabilities are the shares of votes, with one extra vote spread evenly over the classes: without it a single
    image whose class got no vote would make the log loss infinite.
    """
    members, _, classes = probabilities.shape
    chosen, confidence = probabilities.argmax(-1), probabilities.max(-1)
    votes, sure = (np.zeros(probabilities.shape[1:]) for _ in range(2))
    for m in range(members):
        rows = np.arange(len(chosen[m]))
        votes[rows, chosen[m]] += weights[m] * (confidence[m] if by_confidence else 1.0)
        sure[rows, chosen[m]] += weights[m] * confidence[m]
    shares = (votes + 1 / classes) / (votes.sum(1, keepdims=True) + 1)
    tied = votes >= votes.max(1, keepdims=True) - 1e-9
    return Vote(shares, np.where(tied, sure, -1.0).argmax(1))


def _majority(logits: Array, probabilities: Array, weights: Array) -> Vote:
    return _counted(probabilities, weights, by_confidence=False)


def _confidence(logits: Array, probabilities: Array, weights: Array) -> Vote:
    return _counted(probabilities, weights, by_confidence=True)


def _mean_probability(logits: Array, probabilities: Array, weights: Array) -> Vote:
    mean = np.tensordot(weights / weights.sum(), probabilities, 1)
    return Vote(mean, mean.argmax(1))


def _mean_logit(logits: Array, probabilities: Array, weights: Array) -> Vote:
    mean = softmax(np.tensordot(weights / weights.sum(), np.asarray(logits, dtype=np.float64), 1))
    return Vote(mean, mean.argmax(1))


# each takes logits, their softmax and the weights. majority: one vote per member, ties go to the class with the highest
# summed confidence of its voters; confidence: votes are weighted by the confidence of the member
VOTES: dict[str, Callable[[Array, Array, Array], Vote]] = {
    "majority": _majority,
    "confidence": _confidence,
    "mean_probability": _mean_probability,
    "mean_logit": _mean_logit,
}


def scores(vote: Vote, labels: Array) -> dict[str, float]:
    """Return accuracy `acc`, log loss `loss` and expected calibration error `ece`."""
    rows = np.arange(len(labels))
    right = vote.classes == labels
    confidence = vote.probabilities[rows, vote.classes]
    loss = -np.log(np.maximum(vote.probabilities[rows, labels], TINY)).mean()
    return {"acc": float(right.mean()), "loss": float(loss), "ece": ece(confidence, right)}


def disagreement(logits: Array) -> float:
    """Return the share of images on which two members choose different classes, averaged over pairs.

    0 for a single member.
    """
    chosen, members = np.asarray(logits).argmax(-1), len(logits)
    if members < 2:
        return 0.0
    agreeing = 0.0
    for k in range(np.asarray(logits).shape[-1]):
        n = (chosen == k).sum(0)
        agreeing += float((n * (n - 1)).sum())
    return float(1 - agreeing / (members * (members - 1) * chosen.shape[1]))


def heated(vote: Vote, temperature: float) -> Vote:
    """Return the vote with probabilities ∝ p^(1/T): softer for T > 1, with unchanged classes."""
    return vote if temperature == 1 else Vote(softmax(np.log(vote.probabilities + TINY) / temperature), vote.classes)


def fit_temperature(vote: Vote, labels: Array) -> float:
    """Return the temperature (COLDEST to HOTTEST) with the lowest log loss on these labels.

    Fitted to the combined vote, not to each member: an average of calibrated members is underconfident (Rahaman
    and Thiery 2021, Uncertainty Quantification and Deep Ensembles). The loss is convex in 1/T, so a golden section
    finds its minimum.
    """
    golden, low, high = (5**0.5 - 1) / 2, 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):  # in 1/T, whose interval is the same
        a, b = high - golden * (high - low), low + golden * (high - low)
        if scores(heated(vote, 1 / a), labels)["loss"] <= scores(heated(vote, 1 / b), labels)["loss"]:
            high = b
        else:
            low = a
    return 2 / (low + high)


def greedy(logits: Sequence[Array], labels: Array, rounds: int = 50) -> list[int]:
    """Return the weight of each member: greedy selection with replacement on the log loss of the mean probability.

    Caruana et al. 2004, Ensemble Selection from Libraries of Models: starting with the best one, the member
    that gives the lowest loss is added, `rounds` times; the best state on the way is returned. Adding a member again
    shifts the weights, so selection does not stop when the loss stays level for a while.
    """
    right = np.stack([softmax(one)[np.arange(len(labels)), labels] for one in logits])  # (M, N)
    picks: list[int] = []
    total, best, length = np.zeros(len(labels)), np.inf, 0
    for taken in range(1, rounds + 1):
        losses = -np.log(np.maximum((total + right) / taken, TINY)).mean(1)
        picks.append(int(losses.argmin()))
        total = total + right[picks[-1]]
        if losses[picks[-1]] < best - 1e-9:
            best, length = losses[picks[-1]], taken
    return [picks[:length].count(m) for m in range(len(logits))]
