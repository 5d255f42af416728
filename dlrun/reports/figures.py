"""Shared by all pictures: colours, margins, the axis of epochs, and files in `plots/` (`dlrun report`).

Colours are Okabe and Ito's, which colour-blind readers can tell apart. Nothing here imports torch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.errors import UserError, legible
from dlrun.folders import reading
from dlrun.folders.disk import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "HALF",
    "OKABE_ITO",
    "ORANGE",
    "SHARP",
    "STYLE",
    "WIDTH",
    "canvas",
    "columns",
    "epochs_axis",
    "figure_bytes",
    "headline",
    "number",
    "positive",
    "save",
    "styled",
]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
OKABE_ITO = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A900")
WIDTH, DPI = 8.6, 110
HALF, SHARP = 4.7, 140  # inches of a picture that a phone can show, two side by side on a screen; its resolution
STYLE: Any = {
    **{"font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "figure.titlesize": 11},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25},
    **{"axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False, "axes.unicode_minus": False},
}


def styled(picture: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the style of all pictures in force."""

    def call(folder: Path, **options: Any) -> Any:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return picture(folder, **options)

    return call


def canvas(
    height: float,
    *,
    left: float = 0.8,
    right: float = 0.2,
    top: float = 0.4,
    bottom: float = 0.6,
    width: float = WIDTH,
) -> Figure:
    """A figure with margins in inches: an automatic layout would draw everything twice and double the time."""
    # a figure without pyplot has no window and needs no closing
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    edges = (left / width, bottom / height, 1 - right / width, 1 - top / height)
    figure.subplots_adjust(*edges, wspace=0.24, hspace=0.4)
    return figure


def headline(figure: Figure, text: str) -> None:
    """Title a whole figure, left-aligned like the titles of axes, so that a narrow screen shows the beginning."""
    figure.suptitle(text, x=min(figure.subplotpars.left, 0.8 / WIDTH), ha="left")


def save(folder: Path, name: str, figure: Figure, dpi: int = DPI) -> Path:
    """Write a figure into the pictures of a folder; return the file."""
    file = reading.pictures(folder) / f"{name}.png"
    write_atomic(file, figure_bytes(figure, dpi), within=folder)
    return file


def figure_bytes(figure: Figure, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a PNG."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        said = text.get_text()
        if not said.isprintable():  # fonts have no control characters, and no halves of surrogate pairs
            text.set_text(legible(said))
        if "$" in said and "mathdefault" not in said:  # a name; only ticks of log axes are formulas
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()


def columns(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Numbers of metrics.csv by column, nan if a cell is empty; cells beyond the header are ignored."""
    if not rows:
        return {}
    names = [name for name in rows[0] if isinstance(name, str)]
    return {
        name: np.array([number(row, name, "metrics.csv") if row.get(name) else math.nan for row in rows])
        for name in names
    }


def number(row: Mapping[str, str], column: str, file: str) -> float:
    """Return a cell as a number. Raises UserError, with its place, for text: the file may have been edited."""
    try:
        return float(row[column])
    except ValueError:
        where = f"{file}: {column} of epoch {row.get('epoch')}"
        raise UserError(f"{where}: expected a number, found {row[column]!r}") from None


def positive(values: Any) -> bool:
    """Whether a log axis can show an array: no value is zero or below, and not all are nan."""
    return bool(np.any(values > 0)) and not bool(np.any(values <= 0))


def epochs_axis(axes: Axes, title: str, what: str) -> None:
    """Label an axis of epochs: whole numbers from 1."""
    from matplotlib.ticker import MaxNLocator

    class Epochs(MaxNLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            return [tick for tick in super().tick_values(vmin, vmax) if tick >= 1]

    axes.set(title=title, xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(Epochs(integer=True, min_n_ticks=1))
