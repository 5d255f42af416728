"""Images without labels beside the labelled ones of a batch: `dlrun train objective=fixmatch` (D8).

Which ones join a step, and how they are changed, follows from (seed, epoch, step): a resume needs no saved state.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlrun.data.augment import Augment
from dlrun.data.batches import Batch, Batches, seeded
from dlrun.data.draws import REPEAT, Draws, sent
from dlrun.data.splits import Split
from dlrun.vocabulary import LABELLED

if TYPE_CHECKING:
    from dlrun.data import batches as loading

__all__ = ["Pool", "Strong", "Tally"]


class Pool:
    """Unlabelled images, of which `per_step` join each step, changed as training images are.

    `key` is a hash of the images. Copies of an objective share one pool: nothing in it changes.
    """

    def __init__(
        self,
        split: Split,
        per_step: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        augment: loading.Augment | None,
        seed: int,
    ) -> None:
        self.split, self.per_step = split, per_step
        # other draws than those of the labelled image with the same number
        self.seed = int.from_bytes(hashlib.sha256(f"unlabelled {seed}".encode()).digest()[:7], "big")
        self._batches = Batches(split, per_step, mean=mean, std=std, device=device, augment=augment, seed=self.seed)
        marks = split.images.marks
        parts = split.ids if marks is None else [digest.hex() for digest in marks.digests]
        self.key = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()

    def __len__(self) -> int:
        return len(self.split)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pool:
        return self

    def strongly(self, randaugment: int, magnitude: int, cutout: float, span: tuple[float, float] | None) -> Pool:
        """Return the same images, changed independently and then by `Strong`."""
        made = copy.copy(self)
        made.seed = int.from_bytes(hashlib.sha256(f"strong {self.seed}".encode()).digest()[:7], "big")
        made._batches = copy.copy(self._batches)  # the pixels are shared
        made._batches.augment = Strong(self._batches.augment, randaugment, magnitude, cutout, span)
        made._batches.seed = made.seed
        return made

    def turn(self, chosen: Tensor, batch: Batch, count: int, per_step: int | None = None) -> Tensor:
        """Return numbers for `Draws` (M,) of the images of `chosen` (N,) whose turn it is in this step.

        All of an epoch come equally often, up to one. There are `count` of them, or fewer if so few are chosen; a step
        of a whole batch has `per_step`, by default those that the pool was made for.
        """
        n = len(chosen)
        start, count = batch.step * min(self.per_step if per_step is None else per_step, n), min(count, n)
        rounds = range(start // n, (start + count - 1) // n + 1)
        parts = [chosen[torch.randperm(n, generator=self._shuffler(batch.epoch, k))] + k * REPEAT for k in rounds]
        return torch.cat(parts)[start % n :][:count]

    def _shuffler(self, epoch: int, turn: int) -> torch.Generator:
        return seeded("cpu", self.seed, f"turn {turn}", epoch)

    def images(self, samples: Tensor, batch: Batch) -> Tensor:
        """Return images x (M, C, H, W) for numbers of `turn`, as the epoch and step of the batch change them."""
        return self._batches.take(samples, batch.epoch, batch.step)

    def labelled(self, samples: Tensor, labels: Tensor, batch: Batch, other: Batch | None = None) -> Batch:
        """Return these images as a batch with their `labels`, a tensor (N,) of all; `other` is another view of them."""
        index = sent(samples % REPEAT, batch.x.device)
        x, y = self.images(samples, batch), labels[index]
        return Batch(x, y, index, batch.epoch, batch.step, self.seed, other, sample=samples)


class Strong:
    """An augmentation, if there is one, then RandAugment and a blank square (Sohn et al. 2020, FixMatch, §2.3).

    `cutout` is the side of the square as a share of the shorter side of the image; `span` that of `Augment`.
    """

    def __init__(
        self, first: Any, randaugment: int, magnitude: int, cutout: float, span: tuple[float, float] | None
    ) -> None:
        self.first, self.cutout = first, cutout
        self.options: dict[str, Any] = {"randaugment": randaugment, "magnitude": magnitude, "magnitude_std": 0.5}
        self.options |= {} if span is None else {"span": span}
        self.per_sample = bool(getattr(first, "per_sample", True))
        self.alternates = bool(getattr(first, "alternates", False))
        self.sides = list(getattr(first, "sides", ()))

    def __call__(self, images: Tensor, draws: Draws | torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        if self.first is not None:
            images = self.first(images, draws, **({} if mirrored is None else {"mirrored": mirrored}))
        side = int(self.cutout * min(images.shape[1:3]))
        return Augment(**self.options, cutout=side)(images, draws)


class Tally:
    """How many images were looked at and how many got a label, by class; and how many of these labels are right.

    Sums stay on the device, so that no step waits for them.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, classes, device=device)  # accepted, of these with a known label, of these right
        self.seen = 0

    def add(self, guess: Tensor, accepted: Tensor, labels: Tensor) -> None:
        """Count guessed classes (B,), which of them were accepted (B,), and the labels (B,), -1 if not known."""
        known = accepted & (labels >= 0)
        rows = torch.stack([accepted, known, known & (labels == guess)]).to(self.sums)
        self.sums.index_add_(1, guess, rows)
        self.seen += len(guess)

    def columns(self) -> dict[str, float | None]:
        """Return the columns of metrics.csv: the share of images that got a label, and of these labels the right."""
        accepted, known, right = self.sums.sum(1).tolist()
        return dict(zip(LABELLED, (accepted / max(self.seen, 1), right / known if known else None), strict=True))

    def record(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the same by class, as JSON types."""
        accepted, known, right = self.sums.tolist()
        names = [*enumerate(classes)]
        precision = {name: right[k] / known[k] if known[k] else None for k, name in names}
        return {
            "seen": self.seen,
            "accepted": {name: round(accepted[k]) for k, name in names},
            **({"precision": precision} if any(known) else {}),
        }
