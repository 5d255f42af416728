"""Members trained on the folds of one cross-validation: out-of-fold predictions in the place of a common validation.

`dlrun ensemble SWEEP` after `dlrun train -m dataset.folds=5 dataset.fold=range:0:5`. Every image is predicted by the
members that were not trained on it, and all members vote on the test split, which the folds share (E1, D4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlrun.ensembles.members import Member
from dlrun.ensembles.votes import softmax
from dlrun.errors import UserError

__all__ = ["across", "joined", "missing", "rows"]

TINY = 1e-12


def across(members: Sequence[Member]) -> bool:
    """Whether the members were trained on different folds. Raises UserError if they divide different images."""
    if len({m.data.get("fold") for m in members}) < 2:
        return False
    first = members[0]
    for other in members[1:]:
        for what in ("folds", "folds_identity"):
            if other.data.get(what) != first.data.get(what) or other.data.get(what) is None:
                raise UserError(
                    f"{other.name} and {first.name} are not folds of one dataset ({what} differs); "
                    "fold members need the same images, dataset.folds and dataset.split_seed"
                )
    return True


def joined(members: Sequence[Member]) -> list[Member]:
    """Return the members with the out-of-fold predictions of all images as those of their validation split.

    They are the mean probabilities of the members of each fold, weighted equally. Raises UserError for members of one
    fold with other images.
    """
    by_fold: defaultdict[int, list[Member]] = defaultdict(list)
    for m in members:
        by_fold[int(m.data["fold"])].append(m)
    parts: dict[str, list[Any]] = {"val_logits": [], "val_labels": [], "val_ids": []}
    for fold in sorted(by_fold):
        first, *others = by_fold[fold]
        for other in others:
            if not np.array_equal(first.arrays["val_ids"], other.arrays["val_ids"]):
                raise UserError(f"{other.name} and {first.name} are on fold {fold}, but with other validation images")
        p = np.mean([softmax(m.arrays["val_logits"]) for m in by_fold[fold]], axis=0)
        parts["val_logits"].append(np.log(p + TINY).astype(np.float32))
        parts["val_labels"].append(first.arrays["val_labels"])
        parts["val_ids"].append(first.arrays["val_ids"])
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return [replace(m, arrays={**m.arrays, **whole}, own=m.arrays) for m in members]


def missing(members: Sequence[Member]) -> list[int]:
    """Return the folds without a member."""
    return sorted(set(range(int(members[0].data["folds"]))) - {int(m.data["fold"]) for m in members})


def rows(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return one row per image of oof.csv: its id, class, fold, and the prediction of members that did not see it."""
    classes = [str(name) for name in members[0].data["classes"]]
    fold_of = {str(name): m.data["fold"] for m in members for name in (m.own or {})["val_ids"]}
    arrays = members[0].arrays
    found = []
    p = softmax(arrays["val_logits"])
    for name, label, row in zip(arrays["val_ids"].tolist(), arrays["val_labels"].tolist(), p, strict=True):
        best = int(row.argmax())
        about = {"id": name, "label": classes[label], "fold": fold_of[str(name)], "class": classes[best]}
        shares = {f"p_{c}": f"{value:.6f}" for c, value in zip(classes, row, strict=True)}
        found.append({**about, "confidence": f"{row[best]:.6f}", **shares})
    return found
