"""D3: how the images of one split differ from those of another, named by its likely cause (`dlrun check`).

Each cause is a change of the pixels, such as another order of the channels. It is named if the images differ by far
more than two samples of one source do, and the change undone explains most of that. So images of another camera or
place, which no such change explains, are not marked.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from math import log

import torch
from torch import Tensor

__all__ = ["TURNS", "alike", "noisy", "order", "rough", "unlike"]

GRID = 4  # cells a side of the mean image
FAR, NEARER = 40.0, 4.0  # squared distance in standard errors, and how much nearer another order has to be
SMOOTHER = 0.5  # of the roughness, if the pixels are taken in another order
OTHER_SCALE, ALONG = 3.0, 0.5  # times the contrast, and |ln| by which brightness may differ from that
GRAY, COLOURED = 0.95, 0.5  # share of images without colour in one split, and in the other
BLANK = 0.05, 0.2  # share of images of one colour in one split, and in the other
LIKE, ROUGHER, ROUGH = 0.3, 2.5, 0.15  # of the contrast; squared differences of neighbours, in the other's and in all
NOISE = 1.8  # squared difference of neighbours over the variance: 2 for noise, 0.2 for photos, 1.4 for digits of 8
READ = 1_000_000  # values that are read in other orders
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda x: x.flip(2),
    "upside down": lambda x: x.flip(1),
    "turned by 180°": lambda x: x.flip(1, 2),
    "turned by 90°": lambda x: x.transpose(1, 2).flip(2),
    "turned by 270°": lambda x: x.transpose(1, 2).flip(1),
    "transposed (height and width swapped)": lambda x: x.transpose(1, 2),
}


def unlike(train: Tensor, other: Tensor) -> str | None:
    """Return how images (N, H, W, C) differ from training images, to stand after "images look"; None if alike."""
    for differs in (_constant, _noisier, _scale, _gray, _order, _inverted, _channels, _turned):
        if (word := differs(train, other)) is not None:
            return word
    return None


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether images (N, C, H, W) of two splits have the same colours and mean image, as two samples of one source."""
    a, b = (x.permute(0, 2, 3, 1) for x in (a, b))
    return all(_distance(made(a), made(b)) < FAR for made in (_brightness, _cells, _colours))


def rough(x: Tensor) -> float:
    """Mean squared difference of neighbouring pixels over the variance within channels; 0 for tiny images."""
    if min(x.shape[1:3]) < 4:
        return 0.0
    x = x - x.mean((0, 1, 2), keepdim=True)
    steps = [(x[:, 1:] - x[:, :-1]).square().mean(), (x[:, :, 1:] - x[:, :, :-1]).square().mean()]
    return float(sum(steps) / 2 / x.square().mean().clamp_min(1e-12))


def noisy(x: Tensor) -> bool:
    """Whether neighbouring pixels of (N, H, W, C) are unrelated, apart from the mean of an image and the mean image."""
    x = x - x.mean((1, 2), keepdim=True)
    return rough(x - x.mean(0, keepdim=True)) > NOISE


def order(x: Tensor) -> str | None:
    """How an array was read in another order of its axes: "HWC", as which memory would be smoother; None if it is not.

    The values of each image are taken as they lie in memory, channels first and last, and read in every order.
    """
    height, width, channels = x.shape[1:]
    x = x[: max(8, READ // x[0].numel())]
    if (now := rough(x)) < 0.1:
        return None
    sizes, found = {"H": height, "W": width, "C": channels}, dict[str, float]()
    for held, memory in (("NHWC", x), ("NCHW", x.permute(0, 3, 1, 2))):
        flat = memory.reshape(len(x), -1)
        for axes in permutations("HWC"):
            other = flat.view(len(x), *(sizes[a] for a in axes))
            other = other.permute(0, *(1 + axes.index(a) for a in "HWC"))
            found[f"{''.join(axes)} {held}"] = rough(other)
    best = min(found, key=lambda name: found[name])
    return best if found[best] < SMOOTHER * now else None


def _constant(train: Tensor, other: Tensor) -> str | None:
    """Whether many images of one split alone have a single value per channel."""
    share = [float((x.flatten(1, 2).std(1).amax(1) <= 1e-3 * x.std()).float().mean()) for x in (train, other)]
    if share[1] < BLANK[1] or share[0] > BLANK[0]:
        return None
    return f"blank ({share[1]:.0%} of them have one colour all over: were they read, or only their frames?)"


def _noisier(train: Tensor, other: Tensor) -> str | None:
    """Whether neighbouring pixels of one split differ far more, at the same brightness."""
    (mean, std), (other_mean, other_std) = ((float(x.mean()), float(x.std())) for x in (train, other))
    if not std > 0 or abs(other_mean - mean) > LIKE * std or not std <= other_std * 1.05 <= OTHER_SCALE * std:
        return None
    steps = [rough(x) * float((x - x.mean((0, 1, 2))).square().mean()) for x in (train, other)]
    if not steps[0] > 0 or steps[1] < ROUGHER * steps[0] or rough(other) < ROUGH or _another_order(other):
        return None
    return (
        f"noisier (neighbouring pixels differ {(steps[1] / steps[0]) ** 0.5:.2g} times as much: was noise added, or "
        "were they sharpened or resized in another way?)"
    )


def _another_order(x: Tensor) -> bool:
    """Whether the pixels are in another order, which looks like noise."""
    return noisy(x) or order(x) is not None


def _order(train: Tensor, other: Tensor) -> str | None:
    if rough(other) * SMOOTHER > rough(train) and (found := order(other)) is not None:
        return f"scrambled (an array of axes {found[:3]} that was reshaped instead of transposed)"
    return "like noise (pixels in another order)" if noisy(other) and not noisy(train) else None


def _scale(train: Tensor, other: Tensor) -> str | None:
    (mean, std), (other_mean, other_std) = ((float(x.mean()), float(x.std())) for x in (train, other))
    if not std > 0 or not other_std > 0:
        return None
    ranges = f"from {float(other.min()):.3g} to {float(other.max()):.3g}, not {float(train.min()):.3g} to "
    ranges += f"{float(train.max()):.3g},"
    raw = [float(x.min()) >= 0 for x in (train, other)]
    if raw[0] != raw[1] and min(float(x.min() / x.std()) for x in (train, other)) < -0.5:
        if abs(other_mean - mean) < LIKE * std and 0.9 * std < other_std < OTHER_SCALE * std:
            return f"noisier ({ranges} about the same mean, so noise was added)"
        word = "normalised already" if raw[0] else "not normalised"
        return f"{word} ({ranges} so divided or normalised once more, or once less)"
    ratio = other_std / std
    other_scale = not 1 / OTHER_SCALE < ratio < OTHER_SCALE
    if other_scale and mean * other_mean > 0 and abs(log(other_mean / mean / ratio)) < ALONG:
        times = f"{ratio:.3g} times as bright" if ratio > 1 else f"{1 / ratio:.3g} times darker"
        return f"{times} ({ranges} so divided by 255 once more or once less, or of other bits)"
    return None


def _gray(train: Tensor, other: Tensor) -> str | None:
    """Whether one of both has no colours."""
    if train.shape[3] < 3:
        return None
    spans = ((x[..., :3].amax(3) - x[..., :3].amin(3)).flatten(1).amax(1) / x.std() for x in (train, other))
    share = [float((span <= 0.01).float().mean()) for span in spans]
    if share[1] >= GRAY and share[0] <= COLOURED:
        return "gray"
    return "coloured, those of training gray," if share[0] >= GRAY and share[1] <= COLOURED else None


def _inverted(train: Tensor, other: Tensor) -> str | None:
    """Whether dark and bright are exchanged, which colours and mean image show together, better than any turn."""

    def far(x: Tensor, sign: float = 1.0) -> float:
        colours = _colours(x)
        means, spreads = colours.chunk(2, 1)
        return _distance(mine, torch.cat([sign * means, spreads, sign * _cells(x)], 1))

    mine = torch.cat([_colours(train), _cells(train)], 1)
    if (now := far(other)) < FAR * GRID or (then := far(other, -1.0)) * NEARER > now:
        return None
    return "inverted (black for white)" if then < min(far(t(other)) for t in TURNS.values()) else None


def _channels(train: Tensor, other: Tensor) -> str | None:
    """The order of the channels of another split, if that fits the training images far better."""
    channels = train.shape[3]
    if channels not in (2, 3, 4):
        return None
    mine, theirs = _colours(train), _spreads(other)
    found = {order: _distance(mine, _apart(theirs, order)) for order in permutations(range(channels))}
    now, best = found[tuple(range(channels))], min(found, key=lambda order: found[order])
    if now < FAR or found[best] * NEARER > now:
        return None
    backwards = tuple(reversed(range(channels)))  # by far the likeliest: OpenCV reads BGR
    if channels == 3 and found[backwards] * NEARER < now and found[backwards] < FAR + 2 * found[best]:
        return "BGR"
    return f"in the channel order {list(best)}"


def _colours(x: Tensor) -> Tensor:
    """Differences between channels of each image, in mean and spread, alike however it is turned (N, 2 C)."""
    return _apart(_spreads(x), tuple(range(x.shape[3])))


def _spreads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each image (N, C)."""
    return x.mean((1, 2)), x.std((1, 2))


def _apart(spreads: tuple[Tensor, Tensor], order: tuple[int, ...]) -> Tensor:
    """What `_colours` is with the channels in another order."""
    return torch.cat([v - v.mean(1, keepdim=True) for v in (s[:, list(order)] for s in spreads)], 1)


def _turned(train: Tensor, other: Tensor) -> str | None:
    """How another split is turned or inverted, if that explains its mean image far better."""
    mine, now = _cells(train), _distance(_cells(train), _cells(other))
    if now < FAR * GRID:
        return None
    square = train.shape[1] == train.shape[2]
    found = {w: _distance(mine, _cells(t(other))) for w, t in TURNS.items() if square or t(other).shape == other.shape}
    best = min(found, key=lambda word: found[word])
    return best if found[best] * NEARER < now else None


def _brightness(x: Tensor) -> Tensor:
    """Mean and spread of each image (N, 2)."""
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)


def _cells(x: Tensor) -> Tensor:
    """Brightness of the cells of each image, less its mean (N, GRID²)."""
    gray = x.mean(3, keepdim=True).permute(0, 3, 1, 2)
    cells = torch.nn.functional.adaptive_avg_pool2d(gray, GRID).flatten(1)
    return cells - cells.mean(1, keepdim=True)


def _distance(a: Tensor, b: Tensor) -> float:
    """Squared difference of the means, each feature in its standard error, summed."""
    error = a.var(0) / len(a) + b.var(0) / len(b)
    return float(((a.mean(0) - b.mean(0)).square() / error.clamp_min(1e-9)).sum())
