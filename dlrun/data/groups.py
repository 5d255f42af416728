"""Samples that belong together, such as the images of a patient, a video or a burst: never in two splits (D2, D4).

`dlrun train dataset=table dataset.group_column=patient`, or for image files by a regular expression on their names,
`dlrun train dataset=image_folder dataset.root=photos 'dataset.group_pattern=^(.*)_\\d+'`. Whole groups are dealt to
folds so that the classes are divided as evenly as the groups allow: scikit-learn's StratifiedGroupKFold.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.errors import UserError

__all__ = ["Groups", "by_pattern", "carve_groups", "fold_of_groups", "named"]

Groups = NDArray[np.str_]
Ints = NDArray[np.int64]
PARTS = 20  # a share is rounded to a fraction with at most this denominator, or to one part of more


def named(names: Sequence[str], ids: Sequence[str]) -> Groups:
    """Return the group of each sample; one without a name is a group of its own."""
    return np.array([f"group {name}" if name else f"image {own}" for name, own in zip(names, ids, strict=True)])


def by_pattern(pattern: str | None, ids: Sequence[str]) -> Groups | None:
    """Return the groups that a regular expression finds in names of files: its first bracket, or all that it matches.

    None without a pattern. A name that it does not match is a group of its own. Raises UserError if it is no regular
    expression or matches no name.
    """
    if not pattern:
        return None
    try:
        made = re.compile(pattern)
    except re.error as error:
        raise UserError(f"dataset.group_pattern={pattern}: not a regular expression ({error})") from error
    found = [made.search(name) for name in ids]
    if not any(found):
        raise UserError(f"dataset.group_pattern={pattern}: matches none of {len(ids):,} names, such as {ids[0]}")
    return named(["" if one is None else (one[1] if made.groups else one[0]) or "" for one in found], ids)


def carve_groups(labels: Tensor, groups: Groups, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Return sorted indices of the rest and of the carved part, which is about `fraction` of the samples.

    A group that alone has a class stays in the rest, and each class is in the rest. `purpose` names the part, test or
    val: each has its own draw. Raises UserError for a fraction outside (0, 1) and if no group can be carved.
    """
    if not 0 < fraction < 1:
        key = f"dataset.{purpose}_fraction"
        raise UserError(f"{key}={fraction}: must lie between 0 and 1, such as {key}=0.1")
    share = Fraction(fraction).limit_denominator(PARTS)
    take, parts = (share.numerator, share.denominator) if 0 < share < 1 else (1, round(1 / fraction))
    found = fold_of_groups(labels, groups, parts, seed, purpose).numpy()
    count = int(found.max(initial=-1)) + 1
    take = min(max(1, round(take * count / parts)), count - 1) if count > 1 else count
    into = np.isin(found, (_draw(purpose, seed) + np.arange(take)) % max(count, 1))
    rest, chosen = np.flatnonzero(~into), np.flatnonzero(into)
    if not len(chosen) or not len(rest):
        raise UserError(f"{len(np.unique(groups))} groups cannot be divided between train and {purpose}; add groups")
    return torch.from_numpy(rest), torch.from_numpy(chosen)


def fold_of_groups(labels: Tensor, groups: Groups, folds: int, seed: int, purpose: str = "val") -> Tensor:
    """Return the fold of each sample (N,), from 0; the samples of a group share it, and fewer groups make fewer folds.

    -1 for the groups that always train: those that alone have a class.
    """
    numbers = labels.numpy()
    _, group = np.unique(groups, return_inverse=True)
    table = np.zeros((group.max() + 1, numbers.max() + 1), dtype=np.int64)
    np.add.at(table, (group, numbers), 1)
    single = np.flatnonzero(np.count_nonzero(table, axis=0) == 1)  # classes
    alone: NDArray[np.bool_] = table[:, single].sum(1) > 0  # groups
    free = np.flatnonzero(~alone[group])
    found = np.full(len(numbers), -1, dtype=np.int64)
    count = len(np.unique(group[free]))
    if count > 1:
        found[free] = _dealt(numbers[free], group[free], min(folds, count), _draw(purpose, seed))
        _mend(found, table, group)
    return torch.from_numpy(found)


def _dealt(labels: Ints, groups: Ints, folds: int, seed: int) -> Ints:
    from sklearn.model_selection import StratifiedGroupKFold

    found = np.zeros(len(labels), dtype=np.int64)
    folds = min(folds, int(np.bincount(labels).max()))
    made = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer samples than folds
        for number, (_, chosen) in enumerate(made.split(labels, labels, groups)):
            found[chosen] = number
    return found


def _mend(found: Ints, table: Ints, group: Ints) -> None:
    """Of each class that is in one fold alone, move a group to the smallest other fold, so that the rest has it too."""
    of_group = np.full(len(table), -1, dtype=np.int64)
    of_group[group] = found
    for label in range(table.shape[1]):
        mine = np.flatnonzero(table[:, label])
        folds = np.unique(of_group[mine])
        if len(mine) > 1 and len(folds) == 1 and folds[0] >= 0:
            smallest = mine[np.argmin(table[mine].sum(1))]
            sizes = np.bincount(found[found >= 0], minlength=int(found.max()) + 1)
            sizes[folds[0]] = len(found) + 1
            of_group[smallest] = int(np.argmin(sizes))
            found[group == smallest] = of_group[smallest]


def _draw(purpose: str, seed: int) -> int:
    """A seed of 32 bits, as scikit-learn takes them, from one of 63."""
    return int.from_bytes(blake2b(f"groups {purpose} {seed}".encode(), digest_size=4).digest(), "big")
