"""Objectives: a batch to (loss, logits), so that one training loop serves every kind of learning.

Reached by `objective=supervised`, `objective=distill objective.teacher=ENSEMBLE` (E6) and `objective=adversarial`
(D9); those of images without labels are in joined.py (D8). An objective of another package is called in the same way;
`train_acc_valid = False` declares that accuracy on its batches means nothing, since it mixes images or changes labels,
and verdicts then ignore train_acc. Its `mixing`, if it has one, is applied to whole batches before (`objective=mixup`,
`objective=cutmix`, R3); what else it may have is in dlrun/training/objective.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from dlrun.data.mixing import Mixing
from dlrun.errors import UserError
from dlrun.models.adversarial import NORMS, Attack
from dlrun.models.outputs import auxiliary, logits_of

if TYPE_CHECKING:
    from dlrun.data import Data
    from dlrun.data.batches import Batch
    from dlrun.inference.teacher import Consistent

__all__ = ["Adversarial", "Distill", "Supervised"]


class Supervised:
    """The loss of the model's logits against the labels of the batch.

    If the model returns more in training mode, a tuple or a mapping, outputs of the shape of the logits are those of
    auxiliary classifiers, whose loss is added with the weight `aux_weight` (0.3: Szegedy et al. 2015, GoogLeNet, §5).
    The last three numbers are those of `Mixing`.
    """

    train_acc_valid = True

    def __init__(
        self,
        aux_weight: float = 0.3,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_share: float = 1.0,
        num_classes: int = 2,
    ) -> None:
        self.aux_weight = aux_weight
        self.mixing = Mixing(mixup, cutmix, mix_share, num_classes)
        self.train_acc_valid = not self.mixing.active
        self.on_features = not self.mixing.active  # it looks at nothing of an image but its logits

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        outputs = model(batch.x)
        logits: Tensor = logits_of(outputs)
        value: Tensor = loss(logits, batch.target)
        for other in auxiliary(outputs) if self.aux_weight else ():
            value = value + self.aux_weight * loss(other, batch.target)
        return value, logits


class Adversarial:
    """Learn from images changed so that the model errs, and from the originals, with the same labels (D9).

    `originals` times the loss of the originals + (1 - originals) times that of the changed ones: Goodfellow et al.
    2015, Explaining and harnessing adversarial examples, eq. 6, with 0.5. `epsilon` is the largest change, in 255ths of
    the range from black to white; `steps` and `norm` are those of `Attack`. Both kinds are one batch for the model, so
    batch norm sees both; the logits are those of the originals. Raises UserError for an unknown norm.
    """

    train_acc_valid = True

    def __init__(
        self,
        data: Data,
        device: torch.device,
        epsilon: float = 4.0,
        steps: int = 1,
        norm: str = "linf",
        originals: float = 0.5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_share: float = 1.0,
    ) -> None:
        if norm not in NORMS:
            raise UserError(f"objective.norm={norm}: expected one of {', '.join(NORMS)}")
        units = data.units
        low, high = (units.low, units.high) if units.white is None else (0.0, units.white)
        mean, std = (torch.tensor(values, device=device) for values in (data.mean, data.std))  # no copy per step
        self.attack = Attack(epsilon / 255, steps, norm, mean, std, low, high)
        self.originals = originals
        self.mixing = Mixing(mixup, cutmix, mix_share, len(data.classes))
        self.train_acc_valid = not self.mixing.active

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        changed = self.attack(model, loss, batch.x, batch.target, batch.generator)
        outputs = logits_of(model(torch.cat([batch.x, changed])))
        logits, fooled = outputs[: len(batch)], outputs[len(batch) :]
        value: Tensor = self.originals * loss(logits, batch.target) + (1 - self.originals) * loss(fooled, batch.target)
        return value, logits


class Distill:
    """Learn from the probabilities of a teacher, softened, and a little from the labels.

    alpha T² KL(teacher || student), both at temperature T, + (1 - alpha) loss: Hinton et al. 2015, Distilling the
    Knowledge in a Neural Network; T² keeps the soft gradients at the size of the hard ones. The teacher predicts every
    training image once, without augmentation, and its predictions are cached on disk; the student may see augmented
    images. Of mixed images the predictions have the shares of the labels. If `consistent`, it predicts each image as
    the student sees it, in every step. A batch without `index` has no predictions, and its labels alone count.
    `packages` are those that the teacher's config may name. Raises UserError if the teacher was trained on other data.
    """

    train_acc_valid = True
    watching: Consistent | None = None

    def __init__(
        self,
        teacher: str,
        data: Data,
        packages: list[str],
        device: torch.device,
        temperature: float = 4.0,
        alpha: float = 0.9,
        consistent: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_share: float = 1.0,
    ) -> None:
        from dlrun.inference.teacher import Consistent, log_probabilities

        self.temperature, self.alpha = temperature, alpha
        self.mixing = Mixing(mixup, cutmix, mix_share, len(data.classes))
        self.train_acc_valid = not self.mixing.active
        self.on_features = not consistent and not self.mixing.active
        if consistent:
            self.watching = Consistent(teacher, data, packages, device)
        else:
            hint = "; objective.consistent=true resizes them"
            self.targets = log_probabilities(teacher, data, packages, device, hint=hint).to(device)  # where `index` is

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        logits: Tensor = model(batch.x)
        hard: Tensor = loss(logits, batch.target)
        if batch.index is None:
            return hard, logits
        heat = self.temperature
        mine = log_softmax(logits.float() / heat, 1)
        if self.watching is not None:
            each = self._each(mine, self.watching(batch.x))
        elif batch.mix is not None and batch.mix.index is not None:
            first, second = (self._each(mine, self.targets[index]) for index in (batch.index, batch.mix.index))
            each = torch.lerp(second, first, batch.mix.share)
        else:
            each = self._each(mine, self.targets[batch.index])
        weight = torch.ones_like(each) if batch.weight is None else batch.weight
        soft = (each * weight).sum() / weight.sum().clamp_min(torch.finfo(each.dtype).tiny)
        return self.alpha * heat**2 * soft + (1 - self.alpha) * hard, logits

    def _each(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """The divergence (B,) of log probabilities (B, K) from those of the teacher (B, K), given as they are."""
        theirs = log_softmax(theirs / self.temperature, 1)
        return kl_div(mine, theirs, reduction="none", log_target=True).sum(1)
