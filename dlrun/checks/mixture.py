"""D7, R3: what augmentation and objective make of images and labels; `dlrun check`.

Nothing is trained: the objective gets a stand-in for the network that records its input and answers with zeros, so the
gradient by these answers shows which labels the loss was given. Its input, written as a mixture of the originals, must
fit them. Augmented images are compared with their originals in scale and range. Detects: mixup that mixes labels by
another permutation or share than images, labels that stay behind when images move, augmentation in another scale,
clipped to black and white, or without a trace of the original. Cannot detect: objectives that look into the network,
losses other than cross-entropy, or an augmentation that is merely too strong.
"""

from __future__ import annotations

import copy
from contextlib import closing

import torch
from torch import Tensor, nn

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss, in_turn
from dlrun.data.batches import Batch, Batches
from dlrun.training.experiment import Experiment
from dlrun.training.objective import prepared
from dlrun.vocabulary import Outcome

__all__ = ["mixture"]

COUNT, DRAWS = 8, 12
WRONG = (
    0.05,
    0.7,
)  # of the labels' weight that does not fit, in all and of what was mixed: patches are known within half
SCALE = 0.3, 3.0  # std of augmented images in that of their originals: contrast and erasing stay within
SHIFTED = 1.0  # of the mean, in standard deviations
FLAT = 0.25  # of the images: constant after augmentation


@check(order=75, needs_outputs=True)
def mixture(exp: Experiment) -> Verdict:
    """Compare augmented images with their originals, and the labels that the loss is given with what was mixed."""
    expected = "images like their originals, labels that fit"
    index = in_turn(exp.data.train.labels, exp.num_classes)[:COUNT]
    if len(index) < 2:
        return Verdict(Outcome.SKIP, "not run", expected, "too few samples to mix")
    plain = _fed(exp, index, augmented=False)
    shown = "no augmentation"
    if exp.train.augment is not None:
        shown, message = _augmented(plain[0], torch.cat([_fed(exp, index, augmented=True)[0] for _ in range(2)]))
        if message:
            return Verdict(Outcome.WARN, shown, expected, message)
    found = _mislabelled(exp, *plain)
    if found is None:
        return Verdict(Outcome.PASS, shown, expected, "augmented images are like their originals")
    off, mixed = found
    shown = f"{off:.0%} of the labels' weight off"
    if off > WRONG[0] and off > WRONG[1] * mixed:
        message = (
            f"{off:.0%} of the labels' weight belongs to images that are not in the input: mix images and labels by "
            "the same permutation and the same share, and give both to the loss of the same samples"
        )
        return Verdict(Outcome.FAIL, shown, expected, message)
    return Verdict(Outcome.PASS, shown, expected, "the labels fit what is mixed")


def _fed(exp: Experiment, index: Tensor, *, augmented: bool) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) as the model is fed them, with or without augmentation, and their labels (B,)."""
    options = {"augment": exp.train.augment, "seed": int(torch.randint(1 << 20, ()))} if augmented else {}
    batches: Batches = exp.batches(exp.data.train.subset(index), batch_size=len(index), **options)
    with closing(batches.epoch(99)) as epoch:  # type: ignore[type-var]
        x, y, _ = next(epoch)
    return x, y


def _augmented(plain: Tensor, changed: Tensor) -> tuple[str, str]:
    """What was measured, and a sentence if augmented images are unlike their originals."""
    if not bool(changed.isfinite().all()):
        return "nan or inf", "augmented images have values that are not finite: look for a division by 0 in augment"
    ratio = float(changed.std() / plain.std().clamp_min(1e-6))
    shift = float((changed.mean() - plain.mean()) / plain.std().clamp_min(1e-6))
    shown = f"augmented std {ratio:.2f}, mean {shift:+.2f}"
    if not SCALE[0] < ratio < SCALE[1] or abs(shift) > SHIFTED:
        return shown, (
            f"augmented images have {ratio:.2g} times the contrast of their originals, and their mean is shifted by "
            f"{shift:+.2g} standard deviations, so training and validation see other images: an augmentation gets "
            "images in the units of the dataset (0 to 255 for most) and has to return them in these"
        )
    flat = float((changed.flatten(1).std(1) < 1e-3 * plain.std()).float().mean())
    if flat > FLAT:
        return shown, f"{flat:.0%} of the augmented images are constant: the augmentation leaves nothing to recognise"
    return shown, ""


class _StandIn(nn.Module):
    """Records its input, and answers with zeros that want a gradient."""

    def __init__(self, count: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count, classes, device=device))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.logits[: len(x)]


def _mislabelled(exp: Experiment, x: Tensor, y: Tensor) -> tuple[float, float] | None:
    """Shares of the labels' weight that does not fit the images, and of the images that were mixed with others.

    Means over several draws; None if they cannot be seen.
    """
    off, other = [], []
    objective = copy.deepcopy(exp.objective)
    for draw in range(DRAWS):
        model = _StandIn(len(y), exp.num_classes, exp.device).train()
        try:
            batch = prepared(objective, Batch(x.clone(), y.clone(), epoch=draw, step=draw))
            value, _ = objective(model, data_loss(exp), batch)
            (slope,) = torch.autograd.grad(value, model.logits)
        except Exception:  # the objective wants a real network
            return None
        # the gradient of cross-entropy at zero is softmax - target, over the batch
        target = 1 / exp.num_classes - slope * len(y)
        sound = float((target.sum(1) - 1).abs().max()) < 0.02 and float(target.min()) > -0.02
        if not sound or len(model.seen) != 1 or model.seen[0].shape != x.shape:
            return None
        shares = torch.linalg.lstsq(x.flatten(1).T.double().cpu(), model.seen[0].flatten(1).T.double().cpu()).solution
        mixed = shares.T.clamp(0, 1)
        mixed = mixed / mixed.sum(1, keepdim=True).clamp_min(1e-6)
        fitting = mixed @ nn.functional.one_hot(y.cpu(), exp.num_classes).double()
        off.append(float((target.double().cpu() - fitting).abs().sum(1).mean()) / 2)
        other.append(1 - float(mixed.diagonal().mean()))
    return sum(off) / DRAWS, sum(other) / DRAWS
