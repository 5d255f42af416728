"""D3: training, validation and test images are read alike, and as images; `dlrun check`.

Compares the pixels of up to 300 images of each split before they are normalised (test images only after the audit has
read them, and never their labels). Detects: channels in another order (BGR), a split that is mirrored or turned,
pixels in another order (a reshape for a transpose), noise in place of images, and images that use a few of their levels
(12 bits in 16). Cannot detect: differences that leave mean colour and mean image as they are; see `garbage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from torch import Tensor

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.data.splits import Split
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["splits"]

COUNT, LEAST = 300, 20
GRID = 4  # cells a side of the mean image
FAR, NEARER = 40.0, 4.0  # squared distance in standard errors, and how much nearer another order has to be
NOISE = 1.6  # squared difference of neighbours over the variance: 2 for noise, under 1 for images
SMOOTHER = 0.5  # of that, if the pixels are taken in another order
LEVELS = 24  # of 256: an image of the darkest tenth
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda x: x.flip(2),
    "upside down": lambda x: x.flip(1),
    "turned by 180°": lambda x: x.flip(1, 2),
    "turned by 90°": lambda x: x.transpose(1, 2).flip(1),
    "turned by 270°": lambda x: x.transpose(1, 2).flip(2),
    "transposed": lambda x: x.transpose(1, 2),
}


@check(order=45)
def splits(exp: Experiment) -> Verdict:
    """Look at the pixels of training images, and compare those of the other splits with them."""
    train, expected = _pixels(exp.data.train), "images, alike in every split"
    rough = _rough(train)
    shown = f"neighbours differ by {rough:.2f} of the variance"
    if (message := _order(train, rough) or _levels(exp, train)) is not None:
        return Verdict(Outcome.WARN, shown, expected, message)
    compared = 0
    for name, split in _others(exp):
        if len(split) < LEAST or split.images.shape != exp.data.train.images.shape:
            continue
        other = _pixels(split)
        compared += 1
        if (message := _channels(train, other) or _turned(train, other)) is not None:
            message = f"{name} images look {message} compared with training images: read every split by the same code"
            return Verdict(Outcome.WARN, shown, expected, message)
    return Verdict(Outcome.PASS, f"{shown}; {compared} compared", expected, "the splits look alike")


def _others(exp: Experiment) -> Iterator[tuple[str, Split]]:
    yield "val", exp.data.val
    if exp.data.audited is not None:
        yield "test", exp.data.test().split


def _pixels(split: Split) -> Tensor:
    """Images spread over a split (N, H, W, C), as numbers."""
    index = torch.linspace(0, len(split) - 1, min(COUNT, len(split))).long()
    return split.images.take(index).float()


def _rough(x: Tensor) -> float:
    """Mean squared difference of neighbouring pixels over the variance within channels; 0 for tiny images."""
    if min(x.shape[1:3]) < 4:
        return 0.0
    x = x - x.mean((0, 1, 2), keepdim=True)
    steps = [(x[:, 1:] - x[:, :-1]).square().mean(), (x[:, :, 1:] - x[:, :, :-1]).square().mean()]
    return float(sum(steps) / 2 / x.square().mean().clamp_min(1e-12))


def _order(x: Tensor, rough: float) -> str | None:
    """A sentence if the pixels would be smoother in another order of the axes, or are not smooth at all."""
    count, height, width, channels = x.shape
    planes = x.permute(0, 3, 1, 2).reshape(count, -1)  # as the model gets them: channel by channel
    orders = {"transpose(0, 3, 1, 2)": planes.reshape(count, height, width, channels)}
    orders["transpose(0, 2, 3, 1)"] = x.reshape(count, channels, height, width).permute(0, 2, 3, 1)
    for word, other in orders.items() if channels > 1 else ():
        if _rough(other) < SMOOTHER * rough and rough > 0.1:
            return (
                "neighbouring pixels do not belong together, but do if channels and pixels are taken in another order: "
                f"an array was reshaped where its axes had to be moved; use x.{word} on the array"
            )
    if rough > NOISE:
        return f"neighbouring pixels differ by {rough:.2g} times the variance, as in noise: look at some images"
    return None


def _levels(exp: Experiment, x: Tensor) -> str | None:
    """A sentence if images of 8 bits use the darkest tenth of their range alone."""
    if exp.data.units.dtype != "uint8" or not 1 < float(x.max()) < LEVELS:
        return None
    return (
        f"no pixel is above {float(x.max()):.0f} of 255, so most levels are lost: were images of 10 or 12 bits "
        "stored in 16? scale them by their own white level before they become 8 bits"
    )


def _channels(train: Tensor, other: Tensor) -> str | None:
    """The order of the channels of another split, if that fits the training images far better."""
    channels = train.shape[3]
    if channels not in (2, 3, 4):
        return None
    mine = _colours(train, tuple(range(channels)))
    found = {order: _distance(mine, _colours(other, order)) for order in permutations(range(channels))}
    now, best = found[tuple(range(channels))], min(found, key=lambda order: found[order])
    if now < FAR or found[best] * NEARER > now:
        return None
    backwards = tuple(reversed(range(channels)))  # by far the likeliest: OpenCV reads BGR
    if channels == 3 and found[backwards] * NEARER < now and found[backwards] < FAR + 2 * found[best]:
        return "BGR"
    return f"in the channel order {list(best)}"


def _colours(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Differences between channels of each image, in mean and spread, alike however it is turned (N, 2 C)."""
    x = x[..., list(order)]
    return torch.cat([v - v.mean(1, keepdim=True) for v in (x.mean((1, 2)), x.std((1, 2)))], 1)


def _turned(train: Tensor, other: Tensor) -> str | None:
    """How another split is turned, if that explains its mean image far better."""
    mine, now = _cells(train), _distance(_cells(train), _cells(other))
    if now < FAR * GRID:
        return None
    square = train.shape[1] == train.shape[2]
    found = {w: _distance(mine, _cells(t(other))) for w, t in TURNS.items() if square or "90" not in w}
    best = min(found, key=lambda word: found[word])
    return best if found[best] * NEARER < now else None


def _cells(x: Tensor) -> Tensor:
    """Brightness of the cells of each image, less its mean (N, GRID²)."""
    gray = x.mean(3, keepdim=True).permute(0, 3, 1, 2)
    cells = torch.nn.functional.adaptive_avg_pool2d(gray, GRID).flatten(1)
    return cells - cells.mean(1, keepdim=True)


def _distance(a: Tensor, b: Tensor) -> float:
    """Squared difference of the means, each feature in its standard error, summed."""
    error = a.var(0) / len(a) + b.var(0) / len(b)
    return float(((a.mean(0) - b.mean(0)).square() / error.clamp_min(1e-9)).sum())
