"""Learning from images without labels beside the labelled ones (D8).

`dlrun train objective=pseudo_label objective.unlabelled=new/`, and objective=fixmatch in the same way. The images are
in `Batch.other`; they never reach validation or test, and copies of images of the run are omitted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlrun.data.mixing import Mixing
from dlrun.data.unlabelled import Pool, Tally
from dlrun.models.checkpointing import held_statistics
from dlrun.models.outputs import logits_of

if TYPE_CHECKING:
    from dlrun.data import Data
    from dlrun.data.batches import Augment, Batch

__all__ = ["FixMatch", "PseudoLabel"]


class _Joined:
    """Images without labels beside each labelled batch, of which those with a sure guess count with it as their label.

    The loss is the mean over the labelled images + `weight` / (`ratio` n) times the sum over the others, for n labelled
    ones: an image that gets no label counts 0.
    """

    def __init__(
        self,
        unlabelled: str,
        data: Data,
        device: torch.device,
        augment: Augment | None,
        batch_size: int,
        seed: int,
        threshold: float,
        ratio: int,
        weight: float,
        mixing: Mixing,
    ) -> None:
        from dlrun.inference.unlabelled import read

        found = read(unlabelled, data)
        normal: dict[str, Any] = {"mean": data.mean, "std": data.std, "device": device}
        self.pool = Pool(found.split, ratio * batch_size, **normal, augment=augment, seed=seed)
        self.notes, self.omitted = (found.note,), found.omitted
        self.threshold, self.ratio, self.weight = threshold, ratio, weight
        self.classes, self.device, self.mixing = data.classes, device, mixing
        self.train_acc_valid = not mixing.active
        self.known = found.split.labels.to(device)  # -1 if they are not; no loss looks at them
        self.tally = Tally(len(data.classes), device)

    def joined(self, batch: Batch) -> Batch:
        """Return a training batch with images of the pool; one that a check generated stays as it is."""
        return batch if batch.index is None else self._joined(batch)

    def _joined(self, batch: Batch) -> Batch:
        raise NotImplementedError

    def _both(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The logits of the labelled images and of the others, in one pass."""
        if batch.other is None or not len(batch.other):
            return logits_of(model(batch.x)), None
        logits = logits_of(model(torch.cat([batch.x, batch.other.x])))
        return logits[: len(batch)], logits[len(batch) :]

    def columns(self) -> dict[str, float | None]:
        """Return the columns of metrics.csv that an epoch adds."""
        return self.tally.columns()

    def record(self) -> dict[str, Any]:
        """Return what result.json says of the last epoch, by class."""
        about = {"images": len(self.pool), "omitted": self.omitted, "threshold": self.threshold}
        return {"pseudo_labels": about | self.tally.record(self.classes)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: a hash of the images."""
        return {"images": self.pool.key}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept."""


class PseudoLabel(_Joined):
    """Images join training with the class that a model is sure of as their label (Lee 2013, Pseudo-Label; D8).

    The model that is trained labels them at the start of every `every`-th epoch after the first, in evaluation mode and
    without augmentation; or a `teacher`, a run or an ensemble, does once. A label is a class with a probability of at
    least `threshold`. Each joins an epoch once, as the labelled images do, so that a few of them do not outweigh these;
    at most `ratio` join each labelled image. They count `weight` times as much. The last three numbers are those of
    `Mixing`, which mixes them with each other. Raises UserError if nothing can be read, or a teacher knows other data.
    """

    def __init__(
        self,
        unlabelled: str,
        data: Data,
        packages: list[str],
        device: torch.device,
        augment: Augment | None,
        batch_size: int,
        seed: int,
        threshold: float = 0.95,
        every: int = 1,
        teacher: str | None = None,
        ratio: int = 1,
        weight: float = 1.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_share: float = 1.0,
    ) -> None:
        mixing = Mixing(mixup, cutmix, mix_share, len(data.classes))
        super().__init__(unlabelled, data, device, augment, batch_size, seed, threshold, ratio, weight, mixing)
        self.every, self.taught, self.labelled = every, teacher is not None, len(data.train)
        self._take(torch.full((len(self.pool),), -1))
        if teacher is not None:
            from dlrun.inference.teacher import log_probabilities

            self.label(log_probabilities(teacher, data, packages, device, self.pool.split))

    def due(self, epoch: int) -> bool:
        """Whether the model labels the images before this epoch."""
        return not self.taught and epoch > 1 and (epoch - 1) % self.every == 0

    def label(self, logits: Tensor) -> None:
        """Label the images by the logits (N, K) of a model."""
        sure, guess = logits.double().softmax(1).max(1)
        self._take(torch.where(sure >= self.threshold, guess, torch.full_like(guess, -1)))

    def _take(self, labels: Tensor) -> None:
        """The labels (N,) on the processor, -1 for none."""
        self.chosen = (labels >= 0).nonzero().flatten()
        self.own, self.labels = labels, labels.to(self.device)
        self.tally = Tally(len(self.classes), self.device)
        self.tally.add(self.labels.clamp_min(0), self.labels >= 0, self.known)

    def _joined(self, batch: Batch) -> Batch:
        if not len(self.chosen):
            return batch
        full = self._count(self.pool.per_step // self.ratio)
        samples = self.pool.turn(self.chosen, batch, min(full, self._count(len(batch))), full)
        return replace(batch, other=self.mixing(self.pool.labelled(samples, self.labels, batch)))

    def _count(self, batch: int) -> int:
        """How many join a batch of this size."""
        return min(self.ratio * batch, math.ceil(len(self.chosen) * batch / self.labelled))

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss (scalar) and the logits of the labelled images (B, K)."""
        logits, others = self._both(model, batch)
        value: Tensor = loss(logits, batch.target)
        if others is not None and batch.other is not None:
            share = len(others) / (self.ratio * len(batch))
            value = value + self.weight * share * loss(others, batch.other.target)
        return value, logits

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the labels too, whose model is gone when a run is resumed."""
        return super().state_dict() | {"labels": self.own.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept."""
        self._take(state["labels"])


class FixMatch(_Joined):
    """A weakly changed view of an image gives its label, and a strongly changed one learns it (D8).

    Sohn et al. 2020, FixMatch, eq. 3 and 4: cross-entropy of the strong view with the class of the weak one, if that
    has a probability of at least `threshold`. The weak view is changed as training images are; the strong one also by
    `randaugment` operations of this `magnitude` and a blank square of `cutout` of its side. `ratio` images join each
    labelled one (µ), and count `weight` times as much (λ). The last three numbers are those of `Mixing`, which mixes
    the labelled images. Raises UserError if nothing can be read.
    """

    def __init__(
        self,
        unlabelled: str,
        data: Data,
        device: torch.device,
        augment: Augment | None,
        batch_size: int,
        seed: int,
        threshold: float = 0.95,
        ratio: int = 3,
        weight: float = 1.0,
        randaugment: int = 2,
        magnitude: int = 10,
        cutout: float = 0.5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_share: float = 1.0,
    ) -> None:
        mixing = Mixing(mixup, cutmix, mix_share, len(data.classes))
        super().__init__(unlabelled, data, device, augment, batch_size, seed, threshold, ratio, weight, mixing)
        span = None if data.units.dtype == "uint8" else (data.units.low, data.units.high)
        self.strong = self.pool.strongly(randaugment, magnitude, cutout, span)
        self.chosen = torch.arange(len(self.pool))

    def begin_epoch(self) -> None:
        """Count anew."""
        self.tally = Tally(len(self.classes), self.device)

    def _joined(self, batch: Batch) -> Batch:
        samples = self.pool.turn(self.chosen, batch, self.ratio * len(batch))
        weak = self.pool.labelled(samples, self.known, batch)
        return replace(batch, other=self.strong.labelled(samples, self.known, batch, weak))

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss (scalar) and the logits of the labelled images (B, K)."""
        sure = guess = batch.x.new_zeros(0)
        if batch.other is not None and batch.other.other is not None and len(batch.other):
            with torch.no_grad(), held_statistics(model):
                sure, guess = logits_of(model(batch.other.other.x)).float().softmax(1).max(1)
        logits, others = self._both(model, batch)
        value: Tensor = loss(logits, batch.target)
        if others is not None and batch.other is not None:
            accepted = sure >= self.threshold
            self.tally.add(guess, accepted, batch.other.y)
            each = cross_entropy(others.float(), guess, reduction="none")
            value = value + self.weight * (each * accepted).sum() / (self.ratio * len(batch))
        return value, logits
