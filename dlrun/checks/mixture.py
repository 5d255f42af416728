"""D7, R3: what augmentation and objective make of images and labels; `dlrun check`.

Nothing is trained: the objective gets a stand-in for the network (`targets`), which shows what images it is fed and
which labels the loss wants for them. Augmented images are compared with their originals in scale and range. Detects:
mixup and cutmix that mix labels by another permutation or share than images, labels that stay behind when images move,
labels that do not sum to 1 or are smoothed twice; augmentation in another scale or shape, clipped to black and white,
without effect, the same in every epoch, or that exchanges images. Cannot detect: objectives that look into the network,
or an augmentation that is merely too strong.
"""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor, nn

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import in_turn
from dlrun.checks.targets import Aim, aim
from dlrun.data.batches import Batches
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["mixture"]

COUNT = 8
# of the labels' weight that does not fit, in all and of what was mixed: patches on a plain ground are known within half
WRONG = 0.05, 0.25, 0.7
UNEVEN, SMOOTH = 0.1, 0.02  # of a label's weight
SAME, SLIGHT = 1e-6, 0.01  # of the contrast: two epochs are alike, and nothing happens
OWN, THEIRS, MOVED = 0.9, 0.98, 0.25  # correlation with the own image and another, and the share of such images
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
        shown, message = _augmented(exp, plain[0], [_fed(exp, index, augmented=True)[0] for _ in range(2)])
        if message:
            return Verdict(Outcome.WARN, shown, expected, message)
    found = aim(exp, *plain)
    if found is None:
        return Verdict(Outcome.PASS, shown, expected, "augmented images are like their originals")
    shown = f"{found.off:.0%} of the labels' weight off"
    if (marked := _weighed(exp, found)) is not None:
        return Verdict(Outcome.WARN, marked[0], expected, marked[1])
    if found.off > WRONG[0] and found.off > WRONG[1 if found.exact else 2] * found.mixed:
        message = (
            f"{found.off:.0%} of the labels' weight belongs to images that are not in the input, of which "
            f"{found.mixed:.0%} is mixed in: mix images and labels by the same permutation and the same share (of a "
            "pasted box its area, after it is cut at the border), and give both to the loss of the same samples"
        )
        return Verdict(Outcome.FAIL, shown, expected, message)
    return Verdict(Outcome.PASS, shown, expected, "the labels fit what is mixed")


def _weighed(exp: Experiment, found: Aim) -> tuple[str, str] | None:
    """What was measured and a sentence if the labels of a sample do not sum to 1, or are smoothed twice."""
    least, most = found.sums
    even = getattr(exp.loss, "class_weight", None) is None and getattr(exp.loss, "weight", None) is None
    if most - least > UNEVEN and even:
        message = (
            f"the labels of a sample sum to {least:.2g} to {most:.2g}: some count more than others; share 1 among the "
            "classes: lam and 1 - lam"
        )
        return f"labels sum to {least:.2g} to {most:.2g}", message
    smoothing = float(getattr(exp.loss, "label_smoothing", 0.0) or 0.0)
    if found.smoothed > SMOOTH and smoothing > 0:
        message = (
            f"labels are smoothed twice, by {found.smoothed:.2g} in the objective and by {smoothing:g} in the loss"
            + advice(exp, "loss.label_smoothing=0", "regularizer=none")
        )
        return f"smoothed by {found.smoothed:.2g} and {smoothing:g}", message
    return None


def _fed(exp: Experiment, index: Tensor, *, augmented: bool) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) as the model is fed them, with or without augmentation, and their labels (B,)."""
    options = {"augment": exp.train.augment, "seed": int(torch.randint(1 << 20, ()))} if augmented else {}
    batches: Batches = exp.batches(exp.data.train.subset(index), batch_size=len(index), **options)
    with closing(batches.epoch(99)) as epoch:  # type: ignore[type-var]
        x, y, _ = next(epoch)
    return x, y


def _augmented(exp: Experiment, plain: Tensor, draws: list[Tensor]) -> tuple[str, str]:
    """What was measured, and a sentence if augmented images (B, C, H, W) are unlike their originals."""
    if any(x.ndim != 4 or x.shape[1] != plain.shape[1] for x in draws):
        shapes = f"{tuple(draws[0].shape[1:])}, not {tuple(plain.shape[1:])}"
        return shapes, (
            f"after augmentation the model gets {shapes}, channels first: an augmentation gets images (B, H, W, C) and "
            "has to return them so"
        )
    changed = torch.cat(draws)
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
    ours = str(type(exp.train.augment).__module__).startswith("dlrun.")
    return shown, "" if ours or any(x.shape != plain.shape for x in draws) else _varied(plain, draws)


def _varied(plain: Tensor, draws: list[Tensor]) -> str:
    """A sentence if an augmentation of others does nothing, the same in every epoch, or exchanges images."""
    scale = float(plain.std().clamp_min(1e-6))
    if all(float((x - plain).abs().max()) < SLIGHT * scale for x in draws):
        return (
            f"the augmentation changes no pixel by more than {SLIGHT:.0%} of the contrast: it gets images in the units "
            "of the dataset (0 to 255 for most), for which noise of 0.1 is nothing"
        )
    if float((draws[0] - draws[1]).abs().max()) < SAME * scale:
        return (
            "the augmentation does the same to an image in every epoch, so it adds no variety, and validation does "
            "not get it: draw from the generator that it is given, not from one with a fixed seed; what all images "
            "need belongs into the dataset"
        )
    moved = []
    for x in draws:
        both = [v.flatten(1) - v.flatten(1).mean(1, keepdim=True) for v in (x, plain)]
        alike = nn.functional.normalize(both[0]) @ nn.functional.normalize(both[1]).T
        moved.append((alike.amax(1) > THEIRS) & (alike.diagonal() < OWN))
    share = float(torch.cat(moved).float().mean())
    if share > MOVED:
        return (
            f"{share:.0%} of the augmented images are those of other samples, whose labels they do not get: an "
            "augmentation must keep the order of the batch"
        )
    return ""
