"""A dataset before its splits are carved: its pixels shared by processes, or all its labelled images as one split.

`dlrun train -m …` shares, `dlrun train trainer.fit_all=true` merges (S6, D4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dlrun.data.cache import Cache
from dlrun.data.identity import SIZE
from dlrun.data.images import Images, InMemory, Streamed

if TYPE_CHECKING:
    from dlrun.data.splits import Raw, Split

__all__ = ["merged", "none_of", "shared"]


def shared(raw: Raw, store: Cache) -> Raw:
    """Return the same, with splits in memory mapped from the cache; before carving, while each has all its pixels.

    Those that lie in a user's file are mapped already.
    """

    def mapped(split: Split) -> Split:
        if not isinstance(split.images, InMemory) or split.images.mapped:
            return split
        return replace(split, images=replace(split.images, pixels=store.shared(split.images.pixels)))

    test = raw.test
    return replace(
        raw,
        train=mapped(raw.train),
        val=None if raw.val is None else mapped(raw.val),
        test=None if test is None else lambda: mapped(test()),
    )


def merged(raw: Raw) -> Raw:
    """Return the same without a validation split of its own, whose samples follow those of train."""
    if raw.val is None:
        return raw
    one, other = raw.train, raw.val
    known = None not in (one.digests, other.digests)
    train = replace(
        one,
        images=_joined(one.images, other.images),
        labels=torch.cat([one.labels, other.labels]),
        ids=[*one.ids, *other.ids],
        digests=np.concatenate([one.digests, other.digests]) if known else None,
        groups=None if one.groups is None or other.groups is None else np.concatenate([one.groups, other.groups]),
        weights=None if one.weights is None or other.weights is None else torch.cat([one.weights, other.weights]),
    )
    return replace(raw, train=train, val=None)


def _joined(one: Images, other: Images) -> Images:
    if isinstance(one, Streamed) and isinstance(other, Streamed):
        return replace(one, files=[*one.files, *other.files], marks=None)
    parts = [images.take(torch.arange(len(images))) for images in (one, other)]
    return InMemory(torch.cat(parts))


def none_of(train: Split) -> Split:
    """Return a split without samples, of the shape and type of those of train."""
    kind = train.images.take(torch.arange(1)).dtype
    return replace(
        train,
        images=InMemory(torch.empty((0, *train.images.shape), dtype=kind)),
        labels=train.labels[:0],
        ids=[],
        digests=None if train.digests is None else np.empty((0, SIZE), dtype=np.uint8),
        groups=None if train.groups is None else train.groups[:0],
        weights=None if train.weights is None else train.weights[:0],
    )
