"""What several classifiers say together, and how good it is: votes, scores, selection (`dlrun ensemble`, E2, E5).

Arrays in, arrays out: logits (M, N, K) of M members for N images and K classes, labels (N,), weights (M,) that say
how often a member counts. Numpy alone, so that fifty stored members are combined in about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["COLDEST", "HOTTEST"]
__all__ += ["VOTES", "Vote", "disagreement", "fit_temperature", "greedy", "heated", "ranking", "scores", "softmax"]

Array = Any  # of numpy
BINS = 15  # of the calibration error (Guo et al. 2017)
TINY = 1e-12  # keeps the logarithm finite where a class got no probability at all
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at


class Vote(NamedTuple):
    """Probabilities (N, K) of a vote and the class (N,) that it chooses, which a tie may have decided."""

    probabilities: Array
    classes: Array


def softmax(logits: Array) -> Array:
    """Return the probabilities of logits (…, K) in double precision."""
    z = np.asarray(logits, dtype=np.float64)
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def _counted(probabilities: Array, weights: Array, by_confidence: bool) -> Vote:
    """Each member gives its class one vote, or as much as its confidence.

    What counts as probability is the share of votes, with one vote more spread evenly over the classes: without it
    one image whose class got no vote would make the log loss infinite.
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


# takes logits, their softmax and the weights. majority: one vote a member, a tie goes to the class whose voters are
# surest together; confidence: each vote counts as much as its member is sure of it
VOTES: dict[str, Callable[[Array, Array, Array], Vote]] = {
    "majority": _majority,
    "confidence": _confidence,
    "mean_probability": _mean_probability,
    "mean_logit": _mean_logit,
}


def scores(vote: Vote, labels: Array) -> dict[str, float]:
    """Return accuracy `acc`, log loss `loss` and expected calibration error `ece`.

    The last is the mean over images of |accuracy - confidence| of their bin, of 15 of one width: Guo et al. 2017,
    On Calibration of Modern Neural Networks, equation 3.
    """
    rows = np.arange(len(labels))
    right = vote.classes == labels
    confidence = vote.probabilities[rows, vote.classes]
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15], (1/15, 2/15] …
    gaps = np.bincount(bins, right - confidence, minlength=BINS)
    loss = -np.log(np.maximum(vote.probabilities[rows, labels], TINY)).mean()
    return {"acc": float(right.mean()), "loss": float(loss), "ece": float(np.abs(gaps).sum() / len(labels))}


def disagreement(logits: Array) -> float:
    """Return the share of images on which two members differ in their class, the mean over pairs; 0 for one."""
    chosen, members = np.asarray(logits).argmax(-1), len(logits)
    if members < 2:
        return 0.0
    agreeing = 0.0
    for k in range(np.asarray(logits).shape[-1]):
        n = (chosen == k).sum(0)
        agreeing += float((n * (n - 1)).sum())
    return float(1 - agreeing / (members * (members - 1) * chosen.shape[1]))


def heated(vote: Vote, temperature: float) -> Vote:
    """Return the vote with probabilities ∝ p^(1/T): softer above T = 1, the classes as they were."""
    return vote if temperature == 1 else Vote(softmax(np.log(vote.probabilities + TINY) / temperature), vote.classes)


def fit_temperature(vote: Vote, labels: Array) -> float:
    """Return the temperature (COLDEST to HOTTEST) with the lowest log loss on these labels.

    Fitted to what the members say together, not to each: an average of calibrated members is too unsure (Rahaman
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


def ranking(logits: Sequence[Array], labels: Array) -> list[int]:
    """Return the members best first: by accuracy, among equals by log loss, then in their order."""

    def key(m: int) -> tuple[float, float]:
        p = softmax(logits[m])
        found = scores(Vote(p, p.argmax(1)), labels)
        return -found["acc"], found["loss"]

    return sorted(range(len(logits)), key=key)


def greedy(logits: Sequence[Array], labels: Array, rounds: int = 50) -> list[int]:
    """Return how often each member counts: selection with replacement on the log loss of the mean probability.

    Caruana et al. 2004, Ensemble Selection from Libraries of Models: from the best single one on, the member is
    added that leaves the lowest loss, `rounds` times; what counts is the best state on the way. Adding one again
    shifts the weights, so a loss that stands still for a while is no reason to stop.
    """
    right = np.stack([softmax(one)[np.arange(len(labels)), labels] for one in logits])  # (M, N): all the loss needs
    picks: list[int] = []
    total, best, length = np.zeros(len(labels)), np.inf, 0
    for taken in range(1, rounds + 1):
        losses = -np.log(np.maximum((total + right) / taken, TINY)).mean(1)
        picks.append(int(losses.argmin()))
        total = total + right[picks[-1]]
        if losses[picks[-1]] < best - 1e-9:
            best, length = losses[picks[-1]], taken
    return [picks[:length].count(m) for m in range(len(logits))]
