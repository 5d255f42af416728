"""Shuffled, augmented, normalised batches of a split, the same for the same seed and epoch (D3, D5-D7).

Behind every verb that trains or evaluates: `dlrun train trainer.batch_size=128 seed=1`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun.data import crops
from dlrun.data.draws import REPEAT, Draws, occurrences, sent
from dlrun.data.images import Images, InMemory, files_of, read
from dlrun.data.jpegs import read_on
from dlrun.data.splits import Split

__all__ = ["Augment", "Batch", "Batches", "Mix", "seeded"]

Augment = Callable[..., Tensor]  # its contract is in dlrun/data/augment.py


@dataclass(frozen=True, eq=False)
class Mix:
    """What was mixed into the images of a batch: labels y and numbers of other samples (B,), and the `share` (B,) of
    the own label, of `classes` classes."""

    y: Tensor
    index: Tensor | None
    share: Tensor
    classes: int

    def parts(self, count: int) -> list[Mix]:
        """Split as the batch is."""
        numbers = [None] * count if self.index is None else self.index.tensor_split(count)
        pieces = zip(self.y.tensor_split(count), numbers, self.share.tensor_split(count), strict=True)
        return [Mix(y, index, share, self.classes) for y, index, share in pieces]


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of an objective: x float32 (B, C, H, W) and labels y int64 (B,), on one device.

    `index` int64 (B,) numbers the samples of the training split, None if a check or a probe generated them. `weight`
    float32 (B,) is how much each counts in the loss, None if all count the same. Epochs
    count from 1, steps of an epoch from 0. `other` has samples from another source, such as unlabelled ones. `mix`: its
    images are mixed; then a loss gets `target` instead of y.
    """

    x: Tensor
    y: Tensor
    index: Tensor | None = None
    epoch: int = 0
    step: int = 0
    seed: int = 0
    other: Batch | None = None
    weight: Tensor | None = None
    part: int = 0  # which part of a batch that is computed in parts (trainer.accumulate)
    mix: Mix | None = None
    sample: Tensor | None = None  # `index` on the processor, if it is known: an accelerator would have to be asked
    total: int = 0  # samples of the whole batch, of which other processes may have some; 0: these are all

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def target(self) -> Tensor:
        """The labels y, or of mixed images the share of each class, float32 (B, K)."""
        mix = self.mix
        if mix is None:
            return self.y
        made = torch.zeros(len(self), mix.classes, device=self.y.device)
        shares = torch.stack([mix.share, 1 - mix.share], 1).to(made.dtype)
        return made.scatter_add_(1, torch.stack([self.y, mix.y], 1), shares)

    @cached_property
    def generator(self) -> torch.Generator:
        """Random numbers on the batch's device, determined by (seed, epoch, step, part); created on first use."""
        return seeded(self.x.device, self.seed, f"objective {self.step} {self.part}", self.epoch)

    def parts(self, count: int) -> list[Batch]:
        """Split into `count` parts of nearly equal size, with new generators.

        An optimizer that evaluates a batch several times (L-BFGS) thus minimises one function.
        """
        if count == 1:
            other = None if self.other is None else self.other.parts(1)[0]
            return [replace(self, other=other, part=0)]
        numbers, weights = (
            [None] * count if held is None else held.tensor_split(count) for held in (self.index, self.weight)
        )
        others = [None] * count if self.other is None else self.other.parts(count)
        mixes = [None] * count if self.mix is None else self.mix.parts(count)
        pieces = zip(
            self.x.tensor_split(count), self.y.tensor_split(count), numbers, others, weights, mixes, strict=True
        )
        return [
            Batch(x, y, index, self.epoch, self.step, self.seed, other, weight, part, mix, total=self.total)
            for part, (x, y, index, other, weight, mix) in enumerate(pieces)
        ]


class Batches:
    """The batches of a split: x float32 (B, C, H, W) with channels-last strides, y and index int64 (B,).

    All three are on `device`; `index` numbers the samples of the split. Order and augmentation of an epoch depend
    only on (seed, epoch): a resume needs no saved state, and the global random state is not touched. If an
    augmentation is `per_sample`, what it draws depends on (seed, epoch, sample), not on the batch. If it
    `alternates`, half of the images are mirrored in epoch 1, and each in every other epoch. If it has
    `sides`, images of the first epochs are shrunk, antialiased, to that shorter side in pixels (progressive
    resizing: Tan & Le 2021, EfficientNetV2, §4). Without augmentation, only the centre of `crop` (height, width) is
    left of each image. `mean` and `std` are per channel, in raw units. The last batch is
    short unless `drop_last`. With `balance` an epoch of the same length draws all classes equally often (D6):
    samples of rare classes repeat, those of frequent ones alternate between epochs; it shuffles too. With `repeats` of
    an augmentation each image comes that often in a row, in an epoch of the same length (repeated augmentation:
    Hoffer et al. 2020, Augment your batch). If several processes train, `own` returns which samples of a batch this one
    makes; an evaluation has the samples of `span`. With `jpegs` the device decodes image files (dlrun/data/jpegs.py).
    """

    own: Callable[[Tensor], Tensor] | None = None
    span = slice(None)

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        crop: tuple[int, int] | None = None,
        shuffle: bool = False,
        balance: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        jpegs: bool = False,
    ) -> None:
        self.device = torch.device(device)
        # also of files that lie decoded in a cache: the pixels of a run must not depend on what a machine has kept
        self._files = files_of(split.images) if jpegs else None
        self.images = _resident(split.images, self.device) if self._files is None else self._files
        self.labels = split.labels.to(self.device)
        self.weights = None if split.weights is None else split.weights.to(self.device)
        self.batch_size, self.drop_last, self.workers = batch_size, drop_last, workers
        self.augment, self.crop, self.shuffle, self.balance, self.seed = augment, crop, shuffle, balance, seed
        self._mean, self._scale = torch.tensor(mean, device=self.device), torch.tensor(std, device=self.device)
        self._scale = self._scale.reciprocal()

    def __len__(self) -> int:
        whole, rest = divmod(len(range(len(self.images))[self.span]), self.batch_size)
        # a single remaining sample joins the batch before it: batch norm cannot train on one
        alone = rest == 1 and whole > 0
        return whole + (rest > 0 and not alone and not self.drop_last)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield one pass over the split; `number` determines order and draws. Closing it ends its decoding threads."""
        order = self._order(number)[self.span]
        count = len(order)
        changed, side = self._changes(number), self._side(number)
        home = self.images.pixels.device if isinstance(self.images, InMemory) else order.device
        chunks = [*torch.split(order.to(home), self._sizes(count))][: len(self)]
        repeated = self.balance or getattr(self.augment, "repeats", 1) > 1
        samples = [*torch.split(occurrences(order) if repeated else order, self._sizes(count))]
        if self.own is not None:
            chunks, samples = [*map(self.own, chunks)], [*map(self.own, samples)]
        with closing(self._read(chunks)) as batches:
            for index, sample, raw in zip(chunks, samples, batches, strict=False):
                index, images = self._sent(index), self._sent(raw)
                x = self._normalised(changed(images, sample))
                yield x if side is None else _smaller(x, side), self.labels[index], index

    def take(self, samples: Tensor, number: int, turn: int) -> Tensor:
        """Return images x (B, C, H, W) as epoch `number` changes them; `samples` are numbers for `Draws` (B,).

        `turn` tells apart what augmentations draw that are not per sample.
        """
        index, side = samples % REPEAT, self._side(number)
        home = self.images.pixels.device if isinstance(self.images, InMemory) else index.device
        with closing(self._read([sent(index, home)])) as batches:
            images = self._sent(next(batches))
        x = self._normalised(self._changes(number, f"augment {turn}")(images, samples))
        return x if side is None else _smaller(x, side)

    def numbers(self, number: int) -> list[Tensor]:
        """Return the `index` of each batch of an epoch, on the processor."""
        return [*torch.split(self._order(number), self._sizes(len(self.images)))][: len(self)]

    def _read(self, order: Sequence[Tensor]) -> Generator[Tensor]:
        if self._files is None:
            return read(self.images, order, self.workers)
        return read_on(self._files, order, self.device, self.workers)

    def _order(self, number: int) -> Tensor:
        """The numbers of the samples (N,) as an epoch takes them, on the processor."""
        count = len(self.images)
        order = torch.arange(count)
        if self.balance:
            order = _balanced(self.labels.cpu(), seeded("cpu", self.seed, "balance", number))
        elif self.shuffle:
            order = torch.randperm(count, generator=seeded("cpu", self.seed, "shuffle", number))
        repeats = getattr(self.augment, "repeats", 1)
        if repeats > 1:
            order = order[: -(-count // repeats)].repeat_interleave(repeats)[:count]
        return order

    def _sizes(self, count: int) -> list[int]:
        """Of the batches, and of what drop_last drops."""
        starts = [*range(0, count, self.batch_size)]
        if len(starts) > 1 and starts[-1] == count - 1 and not self.drop_last:
            starts.pop()  # a single remaining sample joins the batch before it
        return [end - start for start, end in pairwise([*starts, count])]

    def _sent(self, held: Tensor) -> Tensor:
        """A tensor on the device; to CUDA through pinned memory, so that no step waits for the copy."""
        if self.device.type == "cuda" and held.device.type == "cpu":
            return held.pin_memory().to(self.device, non_blocking=True)
        return held.to(self.device)

    def _side(self, number: int) -> int | None:
        """The shorter side of the images of an epoch in pixels, if they are made smaller."""
        return dict(enumerate(getattr(self.augment, "sides", ()), 1)).get(number)

    def _changes(self, number: int, purpose: str = "augment") -> Callable[[Tensor, Tensor], Tensor]:
        """What an epoch makes of images (B, H, W, C), given the numbers of their samples for `Draws`."""
        augment = self.augment
        if augment is None:
            return lambda images, _: crops.centre(images, self.crop)
        generator = seeded(self.device, self.seed, purpose, number)
        mirrored = self._mirrored(number) if getattr(augment, "alternates", False) else None

        def changed(images: Tensor, sample: Tensor) -> Tensor:
            more = {} if mirrored is None else {"mirrored": mirrored[sample % REPEAT]}
            if getattr(augment, "per_sample", False):
                return augment(images, Draws(self.seed, number, sample), **more)
            return augment(images, generator, **{key: value.to(self.device) for key, value in more.items()})

        return changed

    def _mirrored(self, number: int) -> Tensor:
        """Whether each image is mirrored in an epoch (N,): in odd epochs the drawn ones, in even ones the others."""
        drawn = torch.rand(len(self.images), generator=seeded("cpu", self.seed, "mirror", 0)) < 0.5
        return drawn if number % 2 else ~drawn

    def _normalised(self, images: Tensor) -> Tensor:
        # one value per pixel, not per channel: an operation along 3 values at a time is many times slower
        flat = images.flatten(1)
        mean, scale = (value.repeat(flat.shape[1] // len(value)) for value in (self._mean, self._scale))
        x = (flat - mean).mul_(scale)
        return x.view(images.shape).permute(0, 3, 1, 2)


def _smaller(x: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W), the shorter side `side` pixels long, with channels-last strides."""
    height, width = x.shape[2:]
    size = [round(side * length / min(height, width)) for length in (height, width)]
    return F.interpolate(x, size, mode="bilinear", antialias=True).contiguous(memory_format=torch.channels_last)


def _balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many indices as labels, equal per class up to one; no sample repeats before all others of its class."""
    there = torch.unique(labels)
    quota = torch.full((len(there),), len(labels) // len(there))
    # the classes with one more are drawn, so that all are equal in the mean over epochs
    quota[torch.randperm(len(there), generator=generator)[: len(labels) % len(there)]] += 1
    drawn = []
    for label, size in zip(there.tolist(), quota.tolist(), strict=True):
        mine = (labels == label).nonzero().flatten()
        rounds = [mine[torch.randperm(len(mine), generator=generator)] for _ in range(-(-size // len(mine)))]
        drawn.append(torch.cat(rounds)[:size])
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)]


def _resident(images: Images, device: torch.device) -> Images:
    """Images in memory moved to the accelerator for the whole run, if half of its free memory remains."""
    if device.type == "cpu" or not isinstance(images, InMemory):
        return images
    taken = 4 if images.pixels.dtype == torch.uint16 else images.pixels.element_size()  # as float32
    size = len(images) * images.pixels[0].numel() * taken
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2:
        return images
    return images.to(device)


def seeded(device: torch.device | str, seed: int, purpose: str, epoch: int) -> torch.Generator:
    """Return a generator of random numbers on a device, determined by all four."""
    # hashed, so that neighbouring seeds and epochs are unrelated
    digest = hashlib.sha256(f"{seed} {purpose} {epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
