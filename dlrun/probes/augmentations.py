"""Training images next to augmented versions of them, as one picture (`dlrun show augment`, D7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dlrun.data.draws import Draws
from dlrun.errors import UserError
from dlrun.reports.figures import SHARP, figure_bytes
from dlrun.training.experiment import Experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

Shown: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

ROWS, DRAWS = 6, 7
PLAIN = (("padding", "zero"), ("repeats", 1))
SIDE, NAME, HEAD = 1.15, 1.1, 0.75  # inches: one image, the class names, the titles


def draw(exp: Experiment, title: str) -> bytes:
    """Return a PNG with one row per image: the original and DRAWS augmented versions; the classes alternate.

    Uses the seed of the run. Raises UserError if augmentation is off.
    """
    chosen = _classes_in_turn(exp.data.train.labels)
    originals = exp.data.train.images.take(chosen)
    changed = _changed(exp, originals.to(exp.device), chosen)
    if all(torch.equal(drawn.cpu(), originals) for drawn in changed):
        raise UserError("augmentation is off: choose augment=crop_flip or set, for example, augment.rotate=15")
    shown = [_displayable(images.cpu(), originals) for images in (originals, *changed)]
    names = [exp.data.word(int(label)) for label in exp.data.train.labels[chosen]]
    return figure_bytes(_figure(shown, names, f"{title}: {_settings(exp.cfg.augment)}"), SHARP)


def _changed(exp: Experiment, originals: Tensor, chosen: Tensor) -> list[Tensor]:
    """What the first epochs of training make of the images (N, H, W, C); of another augmentation, draws like them."""
    augment, epochs, seed = exp.train.augment, range(1, DRAWS + 1), exp.cfg.seed
    if augment is None:
        return [originals]
    if getattr(augment, "per_sample", False):
        return [augment(originals, Draws(seed, epoch, chosen)) for epoch in epochs]
    generator = torch.Generator(exp.device).manual_seed(seed)
    return [augment(originals, generator) for _ in epochs]


def _classes_in_turn(labels: Tensor) -> Tensor:
    """The indices of up to ROWS samples: the first of each class, then the second, and so on."""
    firsts = [np.flatnonzero(labels.numpy() == label)[:ROWS] for label in np.unique(labels.numpy())]
    turns = sorted((turn, label, number) for label, mine in enumerate(firsts) for turn, number in enumerate(mine))
    return torch.tensor([int(number) for _, _, number in turns[:ROWS]])


def _displayable(images: Tensor, originals: Tensor) -> Shown:
    """Images (N, H, W, C) scaled to 0 to 1: bytes by 255, floats by the smallest and largest value of the originals.

    If there are not three channels, returns their mean (N, H, W).
    """
    values = images.double().numpy()
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else (float(originals.min()), float(originals.max()))
    values = ((values - low) / ((high - low) or 1.0)).clip(0, 1)
    return values if values.shape[-1] == 3 else values.mean(-1)


def _settings(augment: Mapping[str, Any]) -> str:
    """The augmentations that are on, as overrides without `augment.`."""
    hidden = {"_target_", "eval_crop"} | (set() if augment.get("randaugment") else {"magnitude", "magnitude_std"})
    hidden |= set() if augment.get("erase") else {"erase_scale", "erase_ratio"}
    hidden |= {"crop", "crop_scale", "crop_ratio"} if augment.get("crop", "none") == "none" else {"pad", "padding"}
    on = {k: v for k, v in augment.items() if v and k not in hidden and (k, v) not in PLAIN}
    return "  ".join(f"{k}={str(v).lower()}" for k, v in on.items())


def _figure(shown: list[Shown], names: list[str], title: str) -> Figure:
    from matplotlib.figure import Figure

    rows, columns = len(names), len(shown)
    tallest = max(images.shape[1] / images.shape[2] for images in shown)
    width, height = NAME + columns * SIDE, HEAD + rows * SIDE * tallest
    figure = Figure(figsize=(width, height))
    edges = {"left": NAME / width, "right": 0.995, "bottom": 0.01, "top": 1 - HEAD / height}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={**edges, "wspace": 0.06, "hspace": 0.06})
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for column in range(columns):
            # nearest: shows the pixels that the network sees
            axes[row, column].imshow(shown[column][row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
    for column in range(columns):
        axes[0, column].set_title(f"epoch {column}" if column else "original", fontsize=10)
    figure.suptitle(title, x=0.01, y=1 - 0.08 / height, ha="left", va="top", fontsize=11, wrap=True)
    return figure
