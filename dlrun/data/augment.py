"""Augmentation of whole batches of images, with random draws per sample: `dlrun train augment=crop_flip` (D7).

An augmentation is any callable `(images, generator) -> images`: images (B, H, W, C) uint8 or float32 in raw
units, before normalisation, on any device; every random number comes from the generator, which lives on that
device. If its attribute `per_sample` is true, it gets `Draws` in place of the generator: numbers that do not depend on
the batch. If `alternates` is true, it is also given `mirrored`, one bool per image (B,), on the processor. If it has
`sides`, the images of the first epochs are shrunk: `sides` lists the pixels of the shorter side, one entry per epoch.
Only training batches are augmented. `dlrun show augment` draws the effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun.data import colour, crops, geometry, policies
from dlrun.data.draws import Draws, sent
from dlrun.data.held import Held, change
from dlrun.errors import UserError

__all__ = ["Augment", "CropFlip", "ResizedCrop"]

# what each of a sample's numbers between -1 and 1 is for; one call draws all, cheaper than one call per number
DRAWS: tuple[str, ...] = ("rotate", "shear_x", "shear_y", "scale", "shift_x", "shift_y", "skew_x", "skew_y")
DRAWS += ("brightness", "contrast", "saturation", "hue", "blur", "noise", "cutout_x", "cutout_y")
DRAWS += ("sharpness", "posterize", "grayscale", "solarize", "autocontrast", "equalize")

# values that a processor changes at a time, of a few images that stay in its cache; and if not all of them change
AT_ONCE, AT_ONCE_CHOSEN = 1 << 20, 1 << 23


class Augment:
    """Any combination of augmentations, all off by default; each sample gets its own random draws.

    In this order: crop and mirror image as in `ResizedCrop` or `CropFlip`; randaugment, trivialaugment, augmix; rotate,
    scale, shift, shear and skew in one resampling; blur, sharpness; brightness, contrast, saturation, hue; grayscale,
    autocontrast, equalize, posterize, solarize; noise; cutout, erase. Units and ranges are in conf/augment/none.yaml;
    each value is the maximum of a uniform draw, which starts at 0 for blur, noise and posterize and goes in both
    directions for all others, or the share of the images that are changed. `mean_colour` per channel is in raw units.
    `span`: black and white of float images, except for the border of a crop, which is 0; uint8 images are rounded once,
    at the end. Saturation and hue change only images with three channels. `progressive`: pairs of pixels of the shorter
    side and the number of epochs with that size, from epoch 1 on. Raises UserError if padding or cutout is too large
    for an image.
    """

    per_sample = True

    def __init__(
        self,
        *,
        crop: str | int | Sequence[int] = "none",
        crop_scale: Sequence[float] = (0.08, 1.0),
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
        eval_crop: str | int | Sequence[int] = "auto",
        pad: int = 0,
        flip: bool | Literal["alternating"] = False,
        flip_vertical: bool = False,
        padding: Literal["zero", "reflect"] = "zero",
        rotate: float = 0.0,
        shift: float = 0.0,
        shear: float = 0.0,
        scale: float = 0.0,
        skew: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        blur: float = 0.0,
        noise: float = 0.0,
        cutout: int = 0,
        sharpness: float = 0.0,
        grayscale: float = 0.0,
        autocontrast: float = 0.0,
        equalize: float = 0.0,
        posterize: int = 0,
        solarize: float = 0.0,
        erase: float = 0.0,
        erase_scale: Sequence[float] = (0.02, 0.33),
        erase_ratio: Sequence[float] = (0.3, 3.3),
        randaugment: int = 0,
        magnitude: int = 9,
        magnitude_std: float = 0.0,
        trivialaugment: bool = False,
        augmix: int = 0,
        repeats: int = 1,
        progressive: Sequence[Sequence[int]] = (),
        span: tuple[float, float] = (0.0, 1.0),
        mean_colour: Sequence[float] | None = None,
    ) -> None:
        resized = None if crop == "none" else (crop, crop_scale, crop_ratio)
        self.first = _first(resized, pad, padding, flip, flip_vertical)
        self.alternates = self.first is not None and self.first.alternates
        # eval_crop is of evaluation, which does not augment: see crops.evaluated
        self.sides, self.repeats, self.reflect, self.span = _sides(progressive), repeats, padding == "reflect", span
        self.moves = {"rotate": math.radians(rotate), "scale": scale}
        self.moves |= {"shear_x": math.tan(math.radians(shear)), "shift_x": shift, "skew_x": skew}
        self.moves |= {f"{name}_y": self.moves[f"{name}_x"] for name in ("shear", "shift", "skew")}
        self.tones = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.blur, self.noise, self.cutout, self.mean_colour = blur, noise, cutout, mean_colour
        self.sharpness, self.posterize, self.erase = sharpness, posterize, erase
        self.shares = {"grayscale": grayscale, "autocontrast": autocontrast, "equalize": equalize, "solarize": solarize}
        self.erase_scale, self.erase_ratio = crops.rising(erase_scale=erase_scale, erase_ratio=erase_ratio)
        self.policy = (randaugment, trivialaugment, augmix, magnitude, magnitude_std)
        strengths = {"blur": blur, "noise": noise, "sharpness": sharpness, "posterize": posterize}
        strengths |= {**self.tones, **self.shares}
        self.by_draws = [*self.moves] * any(self.moves.values()) + [name for name, most in strengths.items() if most]
        self.beyond_crop = self.changes or bool(cutout or erase)

    @property
    def changes(self) -> bool:
        """Whether it changes pixels other than by a crop and rectangles."""
        return any(self.policy[:3]) or bool(self.by_draws)

    @property
    def active(self) -> bool:
        """Whether it changes images."""
        return self.first is not None or self.beyond_crop

    def __call__(self, images: Tensor, draws: Draws | torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        draws, given = Draws.of(draws, len(images)), images
        if self.first is not None:
            images = self.first(images, draws, mirrored)
        if self.changes:
            images = self._changed(images, draws)
        if not (self.cutout or self.erase):
            return images
        images = images.clone() if images is given else images
        if self.cutout:
            black = torch.tensor(0.0 if images.dtype == torch.uint8 else self.span[0])
            images = crops.filled(images, self._square(draws, images.shape[1:3]), black)
        return self._erased(images, draws) if self.erase else images

    def _changed(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply everything between the crop and the cutout."""
        all_floats = not any(self.policy[:3]) and not {*self.by_draws} <= {*self.shares, *colour.CURVES}
        most = AT_ONCE if all_floats else AT_ONCE_CHOSEN
        count = min(len(images), -(-images.numel() // most)) if images.device.type == "cpu" else 1
        made, drawn = torch.empty_like(images), _drawn(draws).tensor_split(count, 1)
        parts = (draws.sample.tensor_split(count), drawn, images.tensor_split(count), made.tensor_split(count))
        for sample, numbers, part, out in zip(*parts, strict=True):
            own = Draws(draws.seed, draws.epoch, sample)
            change(part, self.span, partial(self._apply, source=own, drawn=numbers), out)
        return made

    def _apply(self, x: Held, source: Draws, drawn: Tensor) -> None:
        count, wide, severity, magnitude, spread = self.policy
        if count:
            policies.rand(x, count, magnitude, spread, source, reflect=self.reflect)
        if wide:
            policies.trivial(x, source, reflect=self.reflect)
        if severity:
            policies.augmix(x, severity, source, reflect=self.reflect)
        if not self.by_draws:
            return
        draws = {name: drawn[DRAWS.index(name)] for name in self.by_draws}
        here = {name: sent(draw, x.device) for name, draw in draws.items()}
        if any(self.moves.values()):
            self._move(x, here)
        if self.blur:
            x.pixels(partial(colour.blur, most=self.blur), None, self.blur * here["blur"].abs())
        self._tone(x, here)
        self._invert(x, draws, here)
        if self.noise:
            normal = source.normal("noise", tuple(x.shape[1:]), x.device)
            x.pixels(colour.noise, None, self.noise * here["noise"].abs(), normal)

    def _move(self, x: Held, draws: dict[str, Tensor]) -> None:
        by = {name: most * draws[name] for name, most in self.moves.items()}
        shear, shift, skew = ((by[f"{name}_x"], by[f"{name}_y"]) for name in ("shear", "shift", "skew"))
        matrix = geometry.matrices(by["rotate"], shear, 1 + by["scale"], shift, skew, (x.shape[2], x.shape[3]))
        x.pixels(partial(geometry.warp, reflect=self.reflect), None, matrix)

    def _tone(self, x: Held, draws: dict[str, Tensor]) -> None:
        if self.sharpness:
            x.tones("sharpness", None, 1 + self.sharpness * draws["sharpness"])
        for name in ("brightness", "contrast", "saturation"):
            if self.tones[name]:
                x.tones(name, None, (1 + self.tones[name] * draws[name]).clamp_(min=0))
        if self.tones["hue"]:
            x.tones("hue", None, self.tones["hue"] * draws["hue"])

    def _invert(self, x: Held, draws: dict[str, Tensor], here: dict[str, Tensor]) -> None:
        """Apply what changes a share of the images, and posterize."""
        rows = {n: ((draws[n] + 1) / 2 < share).nonzero().flatten() for n, share in self.shares.items() if share}
        for name in ("grayscale", "autocontrast", "equalize"):
            if name in rows:
                x.tones(name, rows[name])
        if self.posterize:
            x.tones("posterize", None, 8 - ((here["posterize"] + 1) / 2 * (self.posterize + 1)).floor())
        if "solarize" in rows:
            x.tones("solarize", rows["solarize"], torch.full((len(rows["solarize"]),), 0.5, device=x.device))

    def _erased(self, images: Tensor, draws: Draws) -> Tensor:
        inverse = [1 / side for side in reversed(self.erase_ratio)]  # here heights in widths
        where = (draws, (images.shape[1], images.shape[2]), self.erase_scale, inverse)
        top, left, height, width = crops.boxes(*where, purpose="erase", smaller=True)
        chosen = draws.uniform("erase whether")[0] < self.erase
        middle = 127.5 if images.dtype == torch.uint8 else sum(self.span) / 2
        mean = torch.tensor(middle if self.mean_colour is None else self.mean_colour)
        box = (top, left, height * chosen, width * chosen)
        return crops.filled(images, box, mean.round() if images.dtype == torch.uint8 else mean)

    def _square(self, draws: Draws, shape: Sequence[int]) -> crops.Boxes:
        height, width = shape
        if self.cutout >= min(height, width):
            raise UserError(f"augment.cutout={self.cutout}: must be smaller than the image, {height}×{width}")
        drawn, side = _drawn(draws), torch.full((len(draws),), self.cutout)
        top, left = (
            ((drawn[DRAWS.index(f"cutout_{axis}")] + 1) / 2 * size).long().clamp_(max=size - 1) - self.cutout // 2
            for axis, size in (("y", height), ("x", width))
        )
        return top, left, side, side


def _drawn(draws: Draws) -> Tensor:
    """Numbers from -1 to 1 for each of DRAWS and each sample."""
    return draws.uniform("changes", len(DRAWS)) * 2 - 1


def _first(
    resized: tuple[Any, Any, Any] | None, pad: int, padding: Any, flip: Any, vertical: bool
) -> CropFlip | ResizedCrop | None:
    """The crop, with flips; None if there is neither."""
    if resized:
        crop, scale, ratio = resized
        return ResizedCrop(crop, scale, ratio, flip, vertical)
    return CropFlip(pad, flip, padding, vertical) if pad or flip or vertical else None


def _sides(progressive: Sequence[Sequence[int]]) -> list[int]:
    """Return the shorter side of the images in each of the first epochs, in pixels."""
    for pair in progressive:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair)):
            raise UserError(f"augment.progressive: expected [pixels, epochs], such as [[24,4]], found {pair}")
    return [side for side, epochs in progressive for _ in range(epochs)]


class CropFlip:
    """Random crop after padding every side by `pad` pixels, and mirror images with probability ½ (`flip`).

    `padding`: zero (black) or reflect (the border row is not repeated; needs `pad` < height and width). With `flip`
    alternating the caller passes which images are `mirrored`: half of them in the first epoch, and each in every other
    epoch (Jordan 2024, 94% on CIFAR-10 in 3.29 seconds, §3.6); without it they are drawn. `flip_vertical`: upside
    down with probability ½.
    """

    per_sample = True

    def __init__(
        self,
        pad: int = 4,
        flip: bool | Literal["alternating"] = True,
        padding: Literal["zero", "reflect"] = "zero",
        flip_vertical: bool = False,
    ) -> None:
        if pad < 0:
            raise UserError(f"augment.pad={pad}: must be 0 or more pixels")
        if padding not in ("zero", "reflect"):
            raise UserError(f"augment.padding={padding}: must be zero or reflect")
        self.pad, self.flip, self.padding = pad, _Flip(flip, flip_vertical), padding
        self.alternates = self.flip.alternates

    def __call__(self, images: Tensor, draws: Draws | torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        batch, height, width, channels = images.shape
        device, draws = images.device, Draws.of(draws, batch)
        across, down = self.flip(draws, mirrored)
        if not self.pad and device.type == "cpu":
            return crops.flipped(images, across, down)
        top, left = sent(draws.integers("crop", 2 * self.pad + 1, 2), device)
        padded, places = self._padded(images), ((width, across), (height, down))
        cols, rows = (_reversed(size, sent(chosen, device)) for size, chosen in places)
        rows, cols = rows + top[:, None], cols + left[:, None]
        # rows first, as whole lines of memory, then columns: a third less time than one gather of pixels
        first_rows = torch.arange(batch, device=device)[:, None] * padded.shape[1]
        lines = padded.flatten(0, 1).flatten(1).index_select(0, (rows + first_rows).flatten())
        values = cols[:, :, None] * channels + torch.arange(channels, device=device)
        index = values.reshape(batch, 1, -1).expand(batch, height, width * channels)
        return lines.view(batch, height, -1).gather(2, index).view(batch, height, width, channels)

    def _padded(self, images: Tensor) -> Tensor:
        pad, (height, width) = self.pad, images.shape[1:3]
        if self.padding == "zero":
            return F.pad(images, (0, 0, pad, pad, pad, pad))
        if pad >= min(height, width):
            raise UserError(f"augment.pad={pad}: must be smaller than the image, {height}×{width}, to reflect it")
        # F.pad cannot reflect uint8
        rows, cols = _mirror(height, pad, images), _mirror(width, pad, images)
        return images.index_select(1, rows).index_select(2, cols)


class ResizedCrop:
    """A random part of each image, resized to `crop`: full, a side or height and width in pixels.

    `scale` is the range of its share of the area, `ratio` that of its width in heights; flips as in `CropFlip`.
    """

    per_sample = True

    def __init__(
        self,
        crop: str | int | Sequence[int] = "full",
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool | Literal["alternating"] = False,
        flip_vertical: bool = False,
    ) -> None:
        self.scale, self.ratio = crops.rising(crop_scale=scale, crop_ratio=ratio)
        self.crop, self.flip = crop, _Flip(flip, flip_vertical)
        self.alternates = self.flip.alternates

    def __call__(self, images: Tensor, draws: Draws | torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        height, width, channels = images.shape[1:]
        draws = Draws.of(draws, len(images))
        size = crops.fed({"crop": self.crop}, (height, width, channels))[:2]
        box = crops.boxes(draws, (height, width), self.scale, self.ratio)
        return crops.resized(images, box, size, *self.flip(draws, mirrored))


class _Flip:
    """Which images are mirrored, and which are upside down: two bools (B,) on the processor."""

    def __init__(self, flip: bool | Literal["alternating"], vertical: bool) -> None:
        if flip not in (True, False, "alternating"):
            raise UserError(f"augment.flip={flip}: must be true, false or alternating")
        self.flip, self.vertical, self.alternates = bool(flip), vertical, flip == "alternating"

    def __call__(self, draws: Draws, mirrored: Tensor | None) -> tuple[Tensor, Tensor]:
        none = torch.zeros(len(draws), dtype=torch.bool)
        across = draws.uniform("flip")[0] < 0.5 if self.flip and mirrored is None else mirrored
        down = draws.uniform("flip vertical")[0] < 0.5 if self.vertical else none
        return none if across is None or not self.flip else across, down


def _reversed(size: int, chosen: Tensor) -> Tensor:
    """The places (B, size) along one side, counted from the other end in the chosen images."""
    places = torch.arange(size, device=chosen.device)
    return torch.where(chosen[:, None], size - 1 - places, places)


def _mirror(size: int, pad: int, like: Tensor) -> Tensor:
    places = torch.arange(-pad, size + pad, device=like.device).abs()
    return (size - 1) - ((size - 1) - places).abs()
