"""What the pictures share: colours, margins, the axis of epochs, and how a figure becomes a file in `plots/`.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. Nothing here imports torch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrun import rundir

__all__ = ["BLUE", "GREEN", "GREY", "OKABE_ITO", "ORANGE", "STYLE", "WIDTH"]
__all__ += ["canvas", "columns", "epochs_axis", "positive", "save", "styled"]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
OKABE_ITO = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A900")
WIDTH, DPI = 8.6, 110
STYLE: Any = {
    **{"font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "figure.titlesize": 11},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25},
    **{"axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False, "axes.unicode_minus": False},
}


def styled(picture: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return picture(folder)

    return call


def canvas(
    height: float,
    *,
    left: float = 0.8,
    right: float = 0.2,
    top: float = 0.4,
    bottom: float = 0.6,
    width: float = WIDTH,
) -> Any:
    """A figure with margins in inches: an automatic layout draws everything twice, which is half of the time."""
    # a figure without pyplot belongs to nobody's screen and needs no closing
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    edges = (left / width, bottom / height, 1 - right / width, 1 - top / height)
    figure.subplots_adjust(*edges, wspace=0.24, hspace=0.4)
    return figure


def save(folder: Path, name: str, figure: Any) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 3})
    file = rundir.pictures(folder) / f"{name}.png"
    rundir.write_atomic(file, buffer.getvalue())
    return file


def columns(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Numbers of a table by column, nan where a cell is empty."""
    if not rows:
        return {}
    return {c: np.array([float(row[c]) if row.get(c) else math.nan for row in rows]) for c in rows[0] if c != "layer"}


def positive(values: Any) -> bool:
    return bool(np.any(values > 0)) and not bool(np.any(values <= 0))


def epochs_axis(axes: Any, title: str, what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
