"""The first pass over image files: their content, what cannot be used, the moments of the channels (D1, D3).

All files are read, or with `dlrun train dataset.audit=0.01` a random sample of them: for data that are too many to be
read before training. Then images are told apart by name and size, and none is held in memory or cache. A training image
beyond the sample that cannot be read stops training or, with dataset.on_bad=drop, another one takes its place
(dlrun/data/stand_ins.py); images of validation and test are then all read first, so that scores are of images alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from dlrun.data.bad import Bad, without
from dlrun.data.cache import Cache
from dlrun.data.identity import SIZE, contents, joined
from dlrun.data.images import Images, Streamed
from dlrun.data.members import File
from dlrun.data.scan import Scan, scan
from dlrun.data.stand_ins import StandIns
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.data.splits import Split

__all__ = ["FirstPass", "sample", "sampled"]

LEAST = 256  # images of a sample
SEED = 0  # the sample of a data set is the same in every run


@dataclass(frozen=True)
class FirstPass:
    """What decides how files are read first: the keys of `dataset` with these names; `share` is dataset.audit.

    Raises UserError for a share outside (0, 1].
    """

    store: Cache | None = None
    memory_gb: float = 4.0
    workers: int = 0
    on_bad: str = "error"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"dataset.audit={self.share}: must be more than 0 and at most 1, such as 0.01")

    def known(self, split: Split, *, lazily: bool = False) -> Split:
        """The split with the digests of its images; with `lazily` only if they are files, which decoding replaces."""
        if split.digests is not None or (lazily and not isinstance(split.images, Streamed)):
            return split
        if isinstance(split.images, Streamed) and self.share < 1:
            found = [_named(name, file) for name, file in zip(split.ids, split.images.files, strict=True)]
            return replace(split, digests=joined(found))
        return replace(split, digests=contents(split.images, split.ids, self.store, self.workers))

    def fits(self, *splits: Split) -> bool:
        """Whether the splits, if they are files, may be held in memory."""
        files = [split.images for split in splits if isinstance(split.images, Streamed)]
        return self.share == 1 and sum(images.nbytes for images in files) <= self.memory_gb * 1e9

    def scanned(self, name: str, split: Split, keep: bool, bad: list[Bad]) -> tuple[Split, list[float], list[float]]:
        """The samples with usable pixels, mean and std of their channels; the others are added to `bad`."""
        if isinstance(split.images, Streamed) and self.share < 1:
            return self._in_part(name, split, split.images, bad)
        found: Scan | Images = split.images
        if self.store is not None and isinstance(split.images, Streamed):
            assert split.digests is not None  # of files `known` added them
            found = self.store.decoded(split.images, split.digests, self.workers)
        if not isinstance(found, Scan):
            found = scan(found, keep=keep, workers=self.workers)
        return without(name, replace(split, images=found.images), found.bad, bad), found.mean, found.std

    def _in_part(
        self, name: str, split: Split, images: Streamed, bad: list[Bad]
    ) -> tuple[Split, list[float], list[float]]:
        index = self._read_first(name, len(split))
        found = scan(images.subset(index), keep=False, workers=self.workers)
        kept = without(name, split, {int(index[row]): reason for row, reason in found.bad.items()}, bad)
        if name == "train" and self.on_bad == "drop":
            images = cast(Streamed, kept.images)
            others = StandIns(images.files, kept.ids, kept.labels.numpy()), np.arange(len(kept))
            kept = replace(kept, images=replace(images, stand_ins=others))
        return kept, found.mean, found.std

    def _read_first(self, name: str, count: int) -> Tensor:
        """The numbers of the images that are read before training."""
        return torch.arange(count) if self.on_bad == "drop" and name != "train" else sample(count, self.share)

    def note(self, **splits: Split) -> tuple[str, ...]:
        """What is to be said of splits by their names. Raises UserError for a share of what is no files."""
        count = sum(len(split) for split in splits.values() if isinstance(split.images, Streamed))
        if self.share == 1:
            return ()
        if not count:
            raise UserError(f"dataset.audit={self.share:g}: the images of this dataset are no files; omit it")
        some = sum(len(self._read_first(name, len(split))) for name, split in splits.items())
        what = (
            "images are told apart by name and size, mean and std are those of the sample, the others are not looked at"
        )
        return (f"dataset.audit={self.share:g}: {some:,} of {count:,} images of train and val were read; {what}",)


def sample(count: int, share: float) -> Tensor:
    """Return the numbers of a random sample, at least LEAST, in ascending order."""
    size = min(count, max(math.ceil(share * count), LEAST))
    if size == count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[:size].sort().values


def sampled(split: Split, share: float) -> Split:
    """Return the sample of a split of files; the whole split if it is none, or if all were read."""
    return split if share == 1 or not isinstance(split.images, Streamed) else split.subset(sample(len(split), share))


def _named(name: str, file: File) -> bytes:
    """A digest of what tells images apart that are not read: id and size."""
    try:
        size = file.stat().st_size
    except OSError:
        size = -1  # decoding reports it
    return blake2b(f"{name} {size}".encode(errors="surrogateescape"), digest_size=SIZE).digest()
