"""Pixel values of a batch of images: colour, tone, sharpness, noise (`augment=colour`, `augment=blur`, D7).

Images are float32 (B, C, H, W), 0 black and 1 white; every other tensor has one value per image, (B,). Each function
does the same as the one of that name in torchvision.transforms.v2.functional. `saturation` and `hue` need colours:
they return images unchanged that do not have three channels. In place of images those of `CURVES` take the curves of
bytes (B, C, 1, 256), those of `OF_COUNTS` with `counts` (B, C, 256), how often each channel has each byte.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["COLOURS", "CURVES", "OF_COLOURS", "OF_COUNTS", "autocontrast", "blur", "brightness", "contrast"]
__all__ += ["equalize", "grayscale", "hue", "noise", "posterize", "saturation", "sharpness", "solarize"]

COLOURS = 3  # channels of images that have any
OF_COLOURS = ("saturation", "hue", "grayscale")
OF_COUNTS = ("contrast", "autocontrast", "equalize")
CURVES = (*OF_COUNTS, "brightness", "posterize", "solarize")


def _each(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`other` at factor 0, `x` at 1, extrapolated above 1."""
    return torch.lerp(other, x, _each(factor)).clamp_(0, 1)


def _gray(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x
    red, green, blue = (x[:, i : i + 1] for i in range(3))
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # ITU-R BT.601


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Exposure: every value times the factor."""
    return (x * _each(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor, counts: Tensor | None = None) -> Tensor:
    """Away from the image's mean gray at factors above 1, towards it below."""
    if counts is None:
        return _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), factor)
    mean = (x[:, :, 0] * counts).sum(2, dtype=torch.float64) / counts.sum(2)
    return _blend(x, _gray(mean.float()[:, :, None, None]).mean(1, keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Gray at factor 0, stronger colours above 1."""
    return x if x.shape[1] != 3 else _blend(x, _gray(x), factor)


def grayscale(x: Tensor) -> Tensor:
    """Gray in all channels, of which one is in memory."""
    return _gray(x).expand_as(x)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Hues rotated by `turn`, a fraction of the colour circle."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)
    value, least = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    chroma = value - least
    per = chroma.clamp(min=1e-9).reciprocal_()
    angle = torch.where(value == green, (blue - red).mul_(per).add_(2), (red - green).mul_(per).add_(4))
    angle = torch.where(value == red, (green - blue).mul_(per), angle).add_(6 * turn[:, None, None])
    # hue, chroma and value back to RGB: Smith (1978), in closed form with offsets 5, 3 and 1; in place, since
    # allocating a tensor as large as the batch costs more than computing it
    out = torch.empty_like(x)
    for channel, place in enumerate((5.0, 3.0, 1.0)):
        sixths = angle + place
        sixths.sub_((sixths / 6).floor_().mul_(6))
        torch.minimum(sixths, 4 - sixths, out=sixths).clamp_(0, 1)
        torch.sub(value, sixths.mul_(chroma), out=out[:, channel])
    return out


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Smoothed at factor 0, sharpened above 1; the outermost pixels stay unchanged."""
    if min(x.shape[2:]) <= 2:
        return x
    inner = x[:, :, 1:-1, 1:-1]
    rows = x[:, :, :-2] + x[:, :, 1:-1]
    rows += x[:, :, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth.add_(rows[..., 2:]).add_(inner, alpha=4).div_(13)
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = _blend(inner, smooth, factor)
    return out


def autocontrast(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """Each channel stretched from black to white; a constant one stays unchanged."""
    if counts is None:
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    else:
        there = counts[:, :, None] > 0
        low = x.masked_fill(~there, math.inf).amin(3, keepdim=True)
        high = x.masked_fill(~there, -math.inf).amax(3, keepdim=True)
    varied = high > low
    low, high = low.where(varied, torch.zeros_like(low)), high.where(varied, torch.ones_like(high))
    return (x - low).div_(high - low).clamp_(0, 1)


def equalize(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """Each channel with its histogram of 256 tones equalised; one of too few pixels for that stays unchanged."""
    planes = x.shape[0] * x.shape[1]
    tones = (x * 255).round().long().view(planes, -1)
    ones = torch.ones_like(tones) if counts is None else counts.view(planes, 256)
    # in one dimension, which CUDA counts deterministically
    bins = (tones + 256 * torch.arange(planes, device=x.device)[:, None]).flatten()
    found = torch.zeros(planes * 256, dtype=torch.long, device=x.device).scatter_add_(0, bins, ones.flatten())
    found = found.view(planes, 256)
    brightest = tones.where(ones > 0, 0).amax(1, keepdim=True)
    step = (found.sum(1, keepdim=True) - found.gather(1, brightest)) // 255
    table = F.pad((found.cumsum(1)[:, :-1] + step // 2) // step.clamp(min=1), (1, 0)).clamp(0, 255)
    done = (table.gather(1, tones) / 255).view_as(x)
    return torch.where((step > 0).view(x.shape[0], -1, 1, 1), done, x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Only the highest `bits` of 8; with 8 an image stays unchanged."""
    step = _each(2.0 ** (8 - bits))
    return torch.where(step > 1, ((x * 255).round() / step).floor() * step / 255, x)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Values at or above the threshold inverted; none if it is above 1."""
    return torch.where(x >= _each(threshold), 1 - x, x)


def blur(x: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Gaussian blur with standard deviation `sigma` pixels, at most `most`.

    The kernel extends 3·most to every side, or as far as a mirrored border allows.
    """
    batch, channels, height, width = x.shape
    radius = min(math.ceil(3 * most), height - 1, width - 1)
    taps = torch.arange(-radius, radius + 1, device=x.device)
    kernel = (-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2).softmax(1).repeat_interleave(channels, 0)
    padded = F.pad(x, (radius,) * 4, mode="reflect").view(1, batch * channels, height + 2 * radius, -1)
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=batch * channels)
    return F.conv2d(rows, kernel[:, None, None, :], groups=batch * channels).view_as(x)


def noise(x: Tensor, sigma: Tensor, drawn: Tensor) -> Tensor:
    """Gaussian noise of standard deviation `sigma` added to every value; `drawn` (B, C, H, W) has 1."""
    return x.addcmul(drawn, _each(sigma)).clamp_(0, 1)
