"""Pictures of the layers: update ratios, dead units, histograms, filters (B3–B6).

Part of `dlrun report RUN`, through run_plots. Many layers are coloured by depth, in cividis. Nothing imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.folders import reading
from dlrun.reports.figures import GREEN, GREY, HALF, OKABE_ITO, canvas, epochs_axis, number, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["filters", "histograms", "idle", "ratios", "weights_by_epoch"]

MOST_LAYERS = 24  # ridges that fit a page
PANELS = 6  # layers whose weights are drawn by epoch
OVERLAP = 2.4  # height of a ridge, in distances of two
FEW = 2000  # weights below which a histogram is smoothed
NAME = 18  # characters of a layer's name that fit beside them, its end
KINDS = {
    "activations": ("Before the activation", OKABE_ITO[0]),
    "gradients": ("Gradients", OKABE_ITO[1]),
    "weights": ("Weights", OKABE_ITO[2]),
}


@styled
def ratios(folder: Path) -> Figure | None:
    """Update : weight ratio by layer and epoch (B3); None without numbers."""
    lines = {n: (x, np.where(y > 0, y, np.nan)) for n, (x, y) in _by_layer(folder, "update_ratio").items()}
    if not any(np.isfinite(y).any() for _, y in lines.values()):
        return None
    figure = _framed(lines)
    axes = figure.add_subplot()
    axes.axhspan(1e-3 / 3, 3e-3, color=GREEN, alpha=0.13, lw=0)
    axes.axhline(1e-3, color=GREEN, lw=1, ls="--")
    _layer_lines(figure, axes, lines)
    axes.set_yscale("log")
    epochs_axis(axes, "Update ratio", "‖step‖ / ‖weights‖")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 1e-4), max(high, 1e-2))
    return figure


@styled
def idle(folder: Path, column: str = "dead_fraction") -> Figure | str | None:
    """Share of dead or saturated units by layer and epoch (B4); a sentence if it is zero throughout."""
    title, what, limit = {
        "dead_fraction": ("Dead units", "units always zero, %", 10),
        "saturated_fraction": ("Saturated activations", "saturated activations, %", 25),
    }[column]
    lines = {layer: (x, 100 * y) for layer, (x, y) in _by_layer(folder, column).items()}
    if not lines:
        return None
    if not any(y.any() for _, y in lines.values()):
        return f"{title}: none in {len(lines)} layer{'s' * (len(lines) > 1)}."
    figure = _framed(lines)
    axes = figure.add_subplot()
    axes.axhline(limit, color=GREY, lw=1, ls="--")
    _layer_lines(figure, axes, lines)
    epochs_axis(axes, title, what)
    axes.set_ylim(bottom=0)
    axes.set_ylim(-0.03 * axes.get_ylim()[1])  # so that a line at zero is not cut
    return figure


@styled
def histograms(folder: Path, kind: str = "activations") -> Figure | None:
    """Histograms of `activations` (before the activation), `gradients` or `weights`, one row per layer (B4, B6)."""
    arrays = reading.arrays(folder, "histograms")
    epochs = _epochs(arrays, kind)
    if not epochs:
        return None
    last = epochs[-1]
    layers = [str(name) for name in arrays[f"{last}/layers"]]
    shown = sorted({round(k) for k in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS))})
    shown = [layer for layer in shown if arrays[f"{last}/{kind}_counts"][layer].sum()]
    if not shown:
        return None
    longest = max(len(layers[k][-NAME:]) for k in shown)
    figure = canvas(1.35 + 0.36 * len(shown), left=0.3 + 0.07 * longest, top=0.62, width=HALF)
    axes = figure.add_subplot()
    for row, layer in enumerate(shown):
        low, new = -row - 1, _density(arrays, last, kind, layer)
        axes.fill_between(new[0], low, low + new[1], step="mid", color=KINDS[kind][1], alpha=0.75, lw=0)
        axes.text(5.9, low + 0.1, f"{new[2]:.1g}", ha="right", fontsize=8, color="#444444")
        if last != epochs[0] and (old := _density(arrays, epochs[0], kind, layer)) is not None:
            axes.step(old[0], low + old[1], where="mid", color="#444444", lw=0.8)
    before = f", epoch {int(epochs[0])} as a grey line" if last != epochs[0] else ""
    title = f"{KINDS[kind][0]}\nepoch {int(last)} filled{before}"
    axes.set(title=title, xlabel="value / σ", xlim=(-4.2, 6.0), ylim=(-len(shown) - 0.1, 0.1))
    axes.set_xticks((-4, -2, 0, 2, 4))
    axes.set_yticks([-row - 0.9 for row in range(len(shown))], [layers[k][-NAME:] for k in shown])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(axis="y", visible=False)
    return figure


@styled
def weights_by_epoch(folder: Path) -> Figure | None:
    """Histograms of the weights as ridges, one per epoch, the first at the top, for some layers (B6)."""
    arrays = reading.arrays(folder, "histograms")
    epochs = _epochs(arrays, "weights")
    if len(epochs) < 2:
        return None
    names = [str(name) for name in arrays[f"{epochs[-1]}/layers"]]
    shown = sorted({round(k) for k in np.linspace(0, len(names) - 1, min(len(names), PANELS))})
    rows = math.ceil(len(shown) / 2)
    figure = canvas(0.95 + 2.1 * rows, left=0.55, top=0.4, width=HALF)
    for place, layer in enumerate(shown):
        axes = figure.add_subplot(rows, 2, place + 1)
        _ridges(axes, arrays, epochs, layer)
        axes.set_title(names[layer][-NAME:], fontsize=9)
        if place % 2 == 0:
            axes.set_ylabel("epoch")
        if place + 2 >= len(shown):
            axes.set_xlabel("weight")
    return figure


def _ridges(axes: Axes, arrays: Mapping[str, Any], epochs: Sequence[str], layer: int) -> None:
    """One filled curve per epoch, as high as its largest bin; later ones cover earlier ones."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    widest = 0.0
    for row, epoch in enumerate(epochs):
        counts = arrays[f"{epoch}/weights_counts"][layer].astype(float)
        edges = arrays[f"{epoch}/weights_edges"][layer].astype(float)
        if not counts.sum():
            continue
        middles, low = (edges[1:] + edges[:-1]) / 2, float(-row)
        if counts.sum() < FEW:
            counts = np.convolve(counts, (1, 2, 3, 2, 1), "same")
        widest = max(widest, float(np.sqrt(np.average(middles**2, weights=counts))))
        colour = colormaps["cividis"](0.8 * row / (len(epochs) - 1))
        axes.fill_between(
            middles, low, low + OVERLAP * counts / counts.max(), color=colour, alpha=0.85, lw=0, zorder=row
        )
        axes.plot(middles, low + OVERLAP * counts / counts.max(), color="white", lw=0.7, zorder=row)
    axes.set(xlim=(-3.5 * widest, 3.5 * widest) if widest else None, ylim=(1 - len(epochs) - 0.1, OVERLAP + 0.1))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], symmetric=True))
    every = max(1, math.ceil(len(epochs) / 6))
    axes.set_yticks([-row for row in range(0, len(epochs), every)], [str(int(e)) for e in epochs[::every]])
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", visible=False)


def _epochs(arrays: Mapping[str, Any], kind: str) -> list[str]:
    """The epochs that have histograms of a kind."""
    return sorted(key.partition("/")[0] for key in arrays if key.endswith(f"/{kind}_counts"))


@styled
def filters(folder: Path) -> Figure | None:
    """Filters of the first layer (B5); None if it is no convolution."""
    filters = reading.arrays(folder, "showcase").get("filters")
    if filters is None:
        return None
    tiles = filters.transpose(0, 2, 3, 1)
    tiles = tiles if tiles.shape[-1] == 3 else tiles.mean(-1, keepdims=True)
    top = np.abs(tiles).max((1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * tiles / np.where(top > 0, top, 1)
    count, height, width, depth = tiles.shape
    across = min(count, 8)
    sheet = np.ones((math.ceil(count / across), height + 1, across, width + 1, depth))
    for k, tile in enumerate(tiles):
        sheet[k // across, :height, k % across, :width] = tile
    sheet = sheet.reshape(sheet.shape[0] * (height + 1), across * (width + 1), depth)[:-1, :-1]
    figure = canvas(0.5 + (HALF - 0.4) * sheet.shape[0] / sheet.shape[1], left=0.2, bottom=0.1, width=HALF)
    axes = figure.add_subplot()
    axes.imshow(sheet.squeeze(-1) if depth == 1 else sheet, cmap="gray", vmin=0, vmax=1)
    axes.set_title(f"Filters of the first layer ({count})")
    axes.axis("off")
    return figure


def _by_layer(folder: Path, column: str) -> dict[str, tuple[Any, Any]]:
    """Epochs and values of a column for every layer that has it, the first layer first."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for row in reading.layers(folder):
        if row.get(column):
            found.setdefault(row["layer"], []).append(tuple(number(row, c, "layers.csv") for c in ("epoch", column)))
    return {layer: (np.array(v)[:, 0], np.array(v)[:, 1]) for layer, v in found.items()}


def _framed(lines: Mapping[str, Any]) -> Figure:
    """A canvas with room below for the names of layers, or beside for a colour bar."""
    few = len(lines) <= len(OKABE_ITO)
    rows = math.ceil(len(lines) / 2) if few else 0
    return canvas(3.1 + 0.19 * rows, right=0.2, bottom=0.6 + 0.19 * rows, width=HALF)


def _layer_lines(figure: Figure, axes: Axes, lines: Mapping[str, tuple[Any, Any]]) -> None:
    """One line per layer: named if there are enough colours, else coloured by depth."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    few = len(lines) <= len(OKABE_ITO)
    depths = ListedColormap(colormaps["cividis"](np.linspace(0, 0.8, 256)))  # the last yellows are too pale on white
    for k, (layer, (x, y)) in enumerate(lines.items()):
        color = OKABE_ITO[k] if few else depths(k / (len(lines) - 1))
        dots = "o" if len(x) < 15 else None
        axes.plot(x, y, color=color, marker=dots, markersize=3, label=layer[-20:], lw=1.8 if few else 1.1)
    if few:
        look = {"labelspacing": 0.25, "columnspacing": 1.2, "borderaxespad": 0.2}
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=2, fontsize=8, **look)
        return
    bar = figure.colorbar(ScalarMappable(Normalize(1, len(lines)), depths), ax=axes, pad=0.02, fraction=0.05)
    bar.set_label("layer, counted from the input")
    bar.locator = MaxNLocator(integer=True)


def _density(arrays: Mapping[str, Any], epoch: str, kind: str, layer: int) -> Any:
    """Bin centres in standard deviations, heights up to 0.85, that deviation; None if there are no values."""
    counts, edges = arrays[f"{epoch}/{kind}_counts"][layer], arrays[f"{epoch}/{kind}_edges"][layer].astype(float)
    if not counts.sum():
        return None
    middles = (edges[1:] + edges[:-1]) / 2
    mean = np.average(middles, weights=counts)
    scale = float(np.sqrt(np.average((middles - mean) ** 2, weights=counts))) or 1.0
    near = abs(middles) <= 4 * scale  # bins farther out are cut off
    return middles[near] / scale, 0.85 * counts[near] / counts.max(), scale
