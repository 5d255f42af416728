"""The classes of a dataset as pictures: one sheet per class, and one page with all of them (`dlrun show data`, D6).

Images are shown as the network gets them: decoded and resized, before augmentation. The test split is not shown (D4).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.data import Data
from dlrun.data.headers import looked_at
from dlrun.data.images import files_of
from dlrun.errors import UserError
from dlrun.reports.figures import BLUE, SHARP, figure_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Sheets", "draw"]

SHEETS, ROWS = 50, 40  # classes with a sheet of their own, and on the page: the largest and the smallest
ACROSS, DOWN = 6, 4  # images on a sheet
THUMBS = 8  # images of a class on the page
SIDE, NAME, BARS, HEAD = 1.5, 1.7, 2.4, 0.7  # inches: image, class names, bars, titles
LONGEST = 24  # letters of a name


class Sheets(NamedTuple):
    """The pictures by file name, PNG; a row per class; how many classes have no sheet."""

    pictures: dict[str, bytes]
    rows: list[dict[str, Any]]
    left_out: int


def draw(data: Data, title: str) -> Sheets:
    """Return the page data.png, a sheet for each of at most 50 classes, and a row of numbers for every class."""
    if data.tasks is not None:
        names = ",".join(data.tasks.names)
        raise UserError(
            f"dataset.targets=[{names}]: a sheet shows one label per image; "
            f"type dataset.targets=[] dataset.label_column={data.tasks.names[0]}"
        )
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    by_size = counts.argsort(descending=True, stable=True).tolist()
    rows = [_row(data, label) for label in range(len(data.classes))]
    chosen = sorted(_ends(by_size, SHEETS))
    pictures = {"data.png": figure_bytes(_page(data, rows, _ends(by_size, ROWS), title), SHARP)}
    for label in chosen:
        safe = re.sub(r"[^\w.-]+", "_", data.classes[label])[:40]
        pictures[f"{label:03}-{safe}.png"] = figure_bytes(_sheet(data, rows[label], label), SHARP)
    return Sheets(pictures, rows, len(rows) - len(chosen))


def _ends(ordered: list[int], most: int) -> list[int]:
    """The first and the last of a list, half each, if it is longer than `most`."""
    return ordered if len(ordered) <= most else ordered[: most // 2] + ordered[-(most - most // 2) :]


def _row(data: Data, label: int) -> dict[str, Any]:
    mine = (data.train.labels == label).nonzero().flatten()
    row: dict[str, Any] = {
        "class": data.classes[label],
        "train": len(mine),
        "val": int((data.val.labels == label).sum()),
        "share": round(len(mine) / len(data.train), 4),
    }
    height, width, channels = data.shape
    files = files_of(data.train.images)
    found = None if files is None else looked_at(files.subset(mine))
    if files is None or found is None:
        return (
            row
            | dict.fromkeys(("smallest", "median", "largest"), f"{height}×{width}")
            | {"kinds": "1 channel" if channels == 1 else f"{channels} channels"}
        )
    kinds = Counter(files.files[number].suffix.lower().lstrip(".") for number in mine.tolist())
    sizes = {name: "{}×{}".format(*getattr(found, name)) for name in ("smallest", "median", "largest")}
    return row | sizes | {"kinds": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())}


def _some(data: Data, label: int, most: int) -> tuple[NDArray[np.float64], list[str]]:
    """At most so many training images of a class, at equal distances, scaled to 0 to 1, and their ids."""
    mine = (data.train.labels == label).nonzero().flatten()
    chosen = mine[torch.linspace(0, len(mine) - 1, min(most, len(mine))).long()]
    values, units = data.train.images.take(chosen).double().numpy(), data.units
    low, high = (0.0, units.white) if units.white and units.low >= 0 else (units.low, units.high)
    values = np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)
    values = values if values.shape[-1] == 3 else values.mean(-1)
    return values, [data.train.ids[number] for number in chosen.tolist()]


def _shown(axis: Axes, image: NDArray[np.float64]) -> None:
    # nearest: shows the pixels that the network sees
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _short(name: str) -> str:
    """The end of a file's name."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _sheet(data: Data, row: dict[str, Any], label: int) -> Figure:
    """One class: its numbers above, some of its images below, with their names."""
    from matplotlib.figure import Figure

    images, names = _some(data, label, ACROSS * DOWN)
    down = -(-len(images) // ACROSS)
    tall = SIDE * min(2.0, images.shape[1] / images.shape[2]) + 0.25
    height = HEAD + down * tall
    figure = Figure(figsize=(ACROSS * SIDE, height))
    edges = {"left": 0.01, "right": 0.99, "bottom": 0.2 / height, "top": 1 - HEAD / height}
    axes = figure.subplots(down, ACROSS, squeeze=False, gridspec_kw={**edges, "wspace": 0.05, "hspace": 0.2})
    for axis in axes.flat[len(images) :]:
        axis.set_axis_off()
    for axis, image, name in zip(axes.flat, images, names, strict=False):
        _shown(axis, image)
        axis.set_xlabel(_short(name), fontsize=6, labelpad=2)
    head: dict[str, Any] = {"x": 0.01, "ha": "left", "va": "top"}
    figure.text(y=1 - 0.1 / height, s=f"{row['class']}: {_counted(row)}", fontsize=11, parse_math=False, **head)
    figure.text(y=1 - 0.42 / height, s=_about(row), fontsize=8.5, color="#555555", parse_math=False, **head)
    return figure


def _counted(row: dict[str, Any]) -> str:
    return f"{row['train']:,} train and {row['val']:,} val images, {row['share']:.1%} of the training split"


def _about(row: dict[str, Any]) -> str:
    if row["smallest"] == row["largest"]:
        sizes = f"all {row['median']} pixels (height×width)"
    else:
        sizes = f"{row['smallest']} to {row['largest']}, median {row['median']} (height×width)"
    return f"{sizes}; {row['kinds']}"


def _page(data: Data, rows: list[dict[str, Any]], labels: list[int], title: str) -> Figure:
    """All classes, largest first: a bar for the number of images, and the first of them."""
    from matplotlib.figure import Figure

    side = SIDE / 2
    width, height = NAME + BARS + THUMBS * side, HEAD + len(labels) * side + 0.1
    figure = Figure(figsize=(width, height))
    most = max(row["train"] + row["val"] for row in rows)
    for place, label in enumerate(labels):
        row, bottom = rows[label], 1 - (HEAD + (place + 1) * side) / height
        tall = 0.9 * side / height
        bars = figure.add_axes((NAME / width, bottom + 0.25 * tall, (BARS - 0.9) / width, 0.5 * tall))
        bars.barh([0], [row["train"]], color=BLUE)
        bars.barh([0], [row["val"]], left=[row["train"]], color=BLUE, alpha=0.4)
        bars.set(xlim=(0, most), xticks=[], yticks=[])
        bars.set_axis_off()
        middle, numbers = bottom + tall / 2, f"{row['train']:,} + {row['val']:,}"
        name = data.classes[label]
        name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        figure.text((NAME - 0.08) / width, middle, name, ha="right", va="center", fontsize=9, parse_math=False)
        figure.text((NAME + BARS - 0.85) / width, middle, numbers, va="center", fontsize=8, color="#555555")
        for number, image in enumerate(_some(data, label, THUMBS)[0]):
            left = (NAME + BARS + number * side) / width
            _shown(figure.add_axes((left, bottom, 0.95 * side / width, tall)), image)
    head: dict[str, Any] = {"x": 0.01, "ha": "left", "va": "top"}
    total = f"{len(data.train):,} train and {len(data.val):,} val images of {len(rows)} classes"
    figure.text(y=1 - 0.1 / height, s=f"{title}: {total}", fontsize=11, parse_math=False, **head)
    sizes = sorted(row["train"] for row in rows)
    ratio = f"largest : smallest class {sizes[-1] / max(1, sizes[0]):.1f}; numbers are train + val"
    some = "" if len(labels) == len(rows) else f"; the {len(labels)} largest and smallest classes"
    figure.text(y=1 - 0.4 / height, s=ratio + some, fontsize=8.5, color="#555555", **head)
    return figure
