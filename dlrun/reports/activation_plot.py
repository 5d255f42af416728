"""Images beside the maps of what a class depends on (`dlrun explain-image`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlrun.reports import figures

__all__ = ["draw"]

SIDE = 2.1  # inches of an image


class Explained(Protocol):
    """The fields of dlrun.inference.activation.Activation."""

    @property
    def heat(self) -> NDArray[np.float32]: ...
    @property
    def label(self) -> int: ...
    @property
    def predicted(self) -> int: ...
    @property
    def probabilities(self) -> NDArray[np.float64]: ...


def draw(names: Sequence[str], images: NDArray[Any], found: Sequence[Explained], classes: Sequence[str]) -> bytes:
    """Return a PNG: two images in a row, each beside its map."""
    from matplotlib import rc_context

    with rc_context(figures.STYLE):
        across = min(2, len(found))
        rows = -(-len(found) // across)
        height, width = rows * (SIDE + 0.45) + 0.1, across * (2 * SIDE + 0.3) + 0.1
        figure = figures.canvas(height, width=width)
        for number, (name, image, one) in enumerate(zip(names, images, found, strict=True)):
            row, column = divmod(number, across)
            left, bottom = 0.1 + column * (2 * SIDE + 0.3), height - (row + 1) * (SIDE + 0.45)
            shown = _shown(image)
            for place in range(2):
                box = ((left + place * (SIDE + 0.05)) / width, bottom / height, SIDE / width, SIDE / height)
                axes = figure.add_axes(box)
                axes.set_axis_off()
                axes.imshow(shown, interpolation="nearest")
                if place:
                    axes.imshow(one.heat, cmap="jet", alpha=0.45, vmin=0, vmax=1, interpolation="bilinear")
                else:
                    axes.set_title(_title(name, one, classes), fontsize=8.5)
        return figures.figure_bytes(figure)


def _title(name: str, one: Explained, classes: Sequence[str]) -> str:
    said = f"{classes[one.predicted]} {one.probabilities[one.predicted]:.2f}"
    if one.label != one.predicted:
        said += f"; map of {classes[one.label]} {one.probabilities[one.label]:.2f}"
    return f"{PurePath(name).name[-34:]}: {said}"


def _shown(image: NDArray[Any]) -> NDArray[np.float64]:
    """An image (H, W, C) in any units as 0 to 1, (H, W, 3)."""
    values = image.astype(np.float64)
    top = 255.0 if image.dtype == np.uint8 else values.max()
    values = np.clip((values - min(values.min(), 0.0)) / max(top - min(values.min(), 0.0), 1e-12), 0, 1)
    return np.broadcast_to(values, (*values.shape[:2], 3)) if values.shape[2] == 1 else values[..., :3]
