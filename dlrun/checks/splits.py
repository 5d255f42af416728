"""D3: training, validation and test images are read alike, and as images; `dlrun check`.

Compares the pixels of up to 300 images of each split before they are normalised (test images only after the audit has
read them, and never their labels). Detects: pixels in another order (a reshape for a transpose), noise in place of
images, images that use a few of their levels (12 bits in 16), and a split that was read in another way (`unlike`): in
another scale, normalised already, gray, inverted, mirrored or turned, its channels in another order (BGR). Cannot
detect: differences that leave mean colour and mean image as they are; see `garbage` and `numbering`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.unlike import noisy, order, rough, unlike
from dlrun.data.splits import Split
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["splits"]

COUNT, LEAST = 300, 20
PIXELS, MANY = COUNT * 96 * 96, 100  # in all: fewer images if they are large, down to so many
LEVELS = 24  # of 256: an image of the darkest tenth
WHITE = 65535


@check(order=45, labels=False)
def splits(exp: Experiment) -> Verdict:
    """Look at the pixels of training images, and compare those of the other splits with them."""
    train, expected = _pixels(exp.data.train), "images, alike in every split"
    shown = f"neighbours differ by {rough(train):.2f} of the variance"
    if (message := _order(train) or _levels(exp, train)) is not None:
        return Verdict(Outcome.WARN, shown, expected, message)
    compared = 0
    for name, split in _others(exp):
        if len(split) < LEAST or split.images.shape != exp.data.train.images.shape:
            continue
        other = _pixels(split)
        compared += 1
        if (word := unlike(train, other)) is not None:
            message = f"{name} images look {word} compared with training images: read every split by the same code"
            return Verdict(Outcome.WARN, shown, expected, message)
    return Verdict(Outcome.PASS, f"{shown}; {compared} compared", expected, "the splits look alike")


def _others(exp: Experiment) -> Iterator[tuple[str, Split]]:
    yield "val", exp.data.val
    if exp.data.audited is not None:
        yield "test", exp.data.test().split


def _pixels(split: Split) -> Tensor:
    """Images spread over a split (N, H, W, C), as numbers."""
    height, width, *_ = split.images.shape
    count = min(COUNT, max(MANY, PIXELS // (height * width)), len(split))
    index = torch.linspace(0, len(split) - 1, count).long()
    return split.images.take(index).float()


def _order(x: Tensor) -> str | None:
    """A sentence if the pixels would be smoother in another order of the axes, or are not smooth at all."""
    if (found := order(x)) is not None:
        way = {"HWC NCHW": "x.transpose(0, 3, 1, 2)", "CHW NHWC": "x.transpose(0, 2, 3, 1)"}.get(found)
        way = way or "x.transpose(…) with the order of the axes"
        return (
            "neighbouring pixels do not belong together, but do if channels, rows and columns are taken in another "
            f"order ({found[:3]}): an array was reshaped where its axes had to be moved; use {way} on the array"
        )
    if noisy(x):
        return (
            "neighbouring pixels are as different as any two, as in noise: an array reshaped where its "
            "axes had to be moved (x.transpose(3, 0, 1, 2) if the last one numbers the images)? look at some images"
        )
    return None


def _levels(exp: Experiment, x: Tensor) -> str | None:
    """A sentence if images of 8 bits use the darkest tenth of their range alone, or those of 16 bits lack some."""
    units, most = exp.data.units, float(x.max())
    if units.dtype == "uint16" and units.white is not None and 255 < units.white < WHITE:
        bits = round(math.log2(units.white + 1))
        return (
            f"no value is above {units.high:,.0f} of {WHITE:,}: images of {bits} bits stored in 16. dlrun takes "
            f"{units.white:,.0f} for white, but a reader that divides by {WHITE:,} or keeps the upper 8 bits sees them "
            f"almost black, and images that use more bits do not fit them: multiply all by {2 ** (16 - bits)}"
        )
    if units.dtype != "uint8" or not 1 < most < LEVELS:
        return None
    return (
        f"no pixel is above {most:.0f} of 255, so most levels are lost: were images of 10 or 12 bits "
        "stored in 16? scale them by their own white level before they become 8 bits"
    )
