"""How much each hyperparameter of a sweep matters, or why that is unknown (S7).

A random forest learns the ranks of the completed trials' scores. The importance of an axis is by how much the forest
predicts unseen trials worse after the axis was shuffled (permutation importance: Breiman 2001, Machine Learning 45).
Ranks, so that a few very bad trials do not dominate; unseen trials, whole settings at a time, so that memorising does
not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dlrun.analysis.sweeps import Axis, Trials

__all__ = ["FEWEST", "Importance", "measure", "sentence"]

FEWEST = 20  # settings; with fewer the result is mostly chance
LEAST = 0.1  # share of the variance of the ranks of unseen trials: below it no importance is shown
FOLDS, TREES, SHUFFLES = 5, 100, 10


class Importance(NamedTuple):
    """Shares by axis, the largest first, their standard errors over folds, and the share of variance explained."""

    names: list[str]
    shares: list[float]
    errors: list[float]
    explained: float
    trials: int


def measure(trials: Trials) -> Importance | str:
    """Return the importance of every axis, or the reason why it is not shown."""
    settings = {trials.settings[k] for k in trials.done}
    if len(trials.axes) < 2:
        return "importance needs two axes, and there is only one" if trials.axes else "only seeds or folds were varied"
    needed = max(FEWEST, 5 * len(trials.axes))
    if len(settings) < needed:
        return (
            f"importance needs about {needed} completed settings for {len(trials.axes)} axes; there are {len(settings)}"
        )
    explained, drops = _drops(trials)
    if explained < LEAST:
        return (
            f"importance is not shown: a forest explains {max(explained, 0):.0%} of the ranks of unseen trials; "
            "these trials show no effect of the axes"
        )
    means = [max(sum(drop) / len(drop), 0.0) for drop in drops]
    total = sum(means) or 1.0
    spread = [math.sqrt(sum((d - m) ** 2 for d in drop) / (len(drop) - 1) / len(drop))
              for drop, m in zip(drops, means, strict=True)]  # fmt: skip
    order = sorted(range(len(means)), key=lambda k: -means[k])
    names = [trials.axes[k].name for k in order]
    shares, errors = ([values[k] / total for k in order] for values in (means, spread))
    return Importance(names, shares, errors, explained, len(trials.done))


def sentence(found: Importance | str) -> str:
    """Return the importance in words, the same on the terminal and on the page; or the reason why it is not shown."""
    if isinstance(found, str):
        return found
    shares = ", ".join(
        f"{name} {share:.0%} ± {error:.0%}"
        for name, share, error in zip(found.names, found.shares, found.errors, strict=True)
    )
    return f"importance: {shares}; a random forest explains {found.explained:.0%} of the ranks of unseen trials"


def _drops(trials: Trials) -> tuple[float, list[list[float]]]:
    """R² on unseen trials, and for each axis the drop of R² in each fold when it is shuffled."""
    import numpy as np
    from scipy.stats import rankdata
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    columns = [_column(axis, trials.done) for axis in trials.axes]
    inputs = np.concatenate(columns, axis=1)
    ends = np.cumsum([c.shape[1] for c in columns])
    owners = [slice(end - c.shape[1], end) for c, end in zip(columns, ends, strict=True)]
    ranks = rankdata([trials.scores[k] for k in trials.done])
    groups = [trials.settings[k] for k in trials.done]
    rng, guesses = np.random.default_rng(0), np.empty(len(ranks))
    drops: list[list[float]] = [[] for _ in owners]
    variance = float(ranks.var()) or 1.0
    for train, test in GroupKFold(FOLDS).split(inputs, ranks, groups):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0).fit(inputs[train], ranks[train])
        guesses[test] = forest.predict(inputs[test])
        right = float(((guesses[test] - ranks[test]) ** 2).mean())
        for drop, owner in zip(drops, owners, strict=True):
            shuffled = np.concatenate([_shuffled(inputs[test], owner, rng) for _ in range(SHUFFLES)])
            wrong = (forest.predict(shuffled).reshape(SHUFFLES, -1) - ranks[test]) ** 2
            drop.append((float(wrong.mean()) - right) / variance)
    return 1 - float(((guesses - ranks) ** 2).mean()) / variance, drops


def _shuffled(inputs: Any, owner: slice, rng: Any) -> Any:
    mixed = inputs.copy()
    mixed[:, owner] = inputs[rng.permutation(len(inputs)), owner]
    return mixed


def _column(axis: Axis, done: Sequence[int]) -> Any:
    """Places of numbers, -1 if a trial lacks one; otherwise one column per choice."""
    import numpy as np

    if axis.numbers is not None:
        return np.nan_to_num([[axis.place(k)] for k in done], nan=-1.0)
    return np.array([[float(axis.texts[k] == choice) for choice in axis.choices] for k in done])
