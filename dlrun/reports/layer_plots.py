"""Pictures of the layers: update ratios, dead units, histograms, filters (B3–B6).

Part of `dlrun report RUN`, through run_plots. Many layers are coloured by depth, in cividis. Nothing imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrun.folders import reading
from dlrun.reports.figures import GREEN, GREY, OKABE_ITO, WIDTH, canvas, epochs_axis, headline, number, styled

__all__ = ["dead", "filters", "histograms", "ratios"]

MOST_LAYERS = 24  # ridges that fit a page


@styled
def ratios(folder: Path) -> Any:
    lines = {n: (x, np.where(y > 0, y, np.nan)) for n, (x, y) in _by_layer(folder, "update_ratio").items()}
    if not any(np.isfinite(y).any() for _, y in lines.values()):
        return None
    figure = canvas(3.8, right=_beside(lines))
    axes = figure.add_subplot()
    axes.axhspan(1e-3 / 3, 3e-3, color=GREEN, alpha=0.13, lw=0)
    axes.axhline(1e-3, color=GREEN, lw=1, ls="--")
    _layer_lines(figure, axes, lines)
    axes.set_yscale("log")
    epochs_axis(
        axes,
        "Update ratio: good stays in the green band around 0.001 until the learning rate falls",
        "‖step‖ / ‖weights‖",
    )
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 1e-4), max(high, 1e-2))
    return figure


@styled
def dead(folder: Path) -> Any:
    kinds = {
        "dead_fraction": ("Dead units: good stays below 10 % (dashed)", "units always zero, %", 10),
        "saturated_fraction": ("Saturated activations: good stays below 25 % (dashed)", "saturated activations, %", 25),
    }
    there = {kind: lines for kind in kinds if (lines := _by_layer(folder, kind))}
    if not there:
        return None
    figure = canvas(3.4 * len(there), right=max(map(_beside, there.values())))
    for k, (kind, lines) in enumerate(there.items()):
        title, what, limit = kinds[kind]
        axes = figure.add_subplot(len(there), 1, k + 1)
        axes.axhline(limit, color=GREY, lw=1, ls="--")
        _layer_lines(figure, axes, {layer: (x, 100 * y) for layer, (x, y) in lines.items()})
        epochs_axis(axes, title, what)
        axes.set_ylim(bottom=0)
        axes.set_ylim(-0.03 * axes.get_ylim()[1])  # so that a line at zero is not cut
        if not any(y.any() for _, y in lines.values()):
            none = f"all {len(lines)} layers lie at zero"
            axes.text(0.5, 0.5, none, transform=axes.transAxes, ha="center", color="#444444")
    return figure


@styled
def histograms(folder: Path) -> Any:
    arrays = reading.arrays(folder, "histograms")
    epochs = sorted({key.split("/")[0] for key in arrays})
    if not epochs:
        return None
    last = epochs[-1]
    layers = [str(name) for name in arrays[f"{last}/layers"]]
    shown = sorted({round(k) for k in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS))})
    figure = canvas(1.6 + 0.42 * len(shown), left=1.8, top=0.95)
    figure.subplots_adjust(wspace=0.06)
    headline(
        figure,
        f"Values by layer, the first at the top: epoch {int(last)} filled, epoch {int(epochs[0])} as a grey line\n"
        "Good: one broad hump per layer, whose width σ (on the right) varies by less than a factor of 100",
    )
    for k, kind in enumerate(("activations", "gradients", "weights")):
        axes = figure.add_subplot(1, 3, k + 1)
        for row, layer in enumerate(shown):
            low = -row - 1
            if (new := _density(arrays, last, kind, layer)) is not None:
                axes.fill_between(new[0], low, low + new[1], step="mid", color=OKABE_ITO[k], alpha=0.75, lw=0)
                axes.text(7.2, low + 0.1, f"{new[2]:.1g}", ha="right", fontsize=8, color="#444444")
            if last != epochs[0] and (old := _density(arrays, epochs[0], kind, layer)) is not None:
                axes.step(old[0], low + old[1], where="mid", color="#444444", lw=0.8)
        title = {"activations": "before the activation"}.get(kind, kind)
        axes.set(title=title, xlabel="value / σ", xlim=(-4.2, 7.4), ylim=(-len(shown) - 0.1, 0.1))
        axes.set_xticks((-4, -2, 0, 2, 4))
        axes.set_yticks(
            [-row - 0.9 for row in range(len(shown))], [layers[i][-24:] for i in shown] if k == 0 else [""] * len(shown)
        )
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.grid(axis="y", visible=False)
    return figure


@styled
def filters(folder: Path) -> Any:
    filters = reading.arrays(folder, "showcase").get("filters")
    if filters is None:
        return None
    tiles = filters.transpose(0, 2, 3, 1)
    tiles = tiles if tiles.shape[-1] == 3 else tiles.mean(-1, keepdims=True)
    top = np.abs(tiles).max((1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * tiles / np.where(top > 0, top, 1)
    count, height, width, depth = tiles.shape
    across = min(count, 16)
    sheet = np.ones((math.ceil(count / across), height + 1, across, width + 1, depth))
    for k, tile in enumerate(tiles):
        sheet[k // across, :height, k % across, :width] = tile
    sheet = sheet.reshape(sheet.shape[0] * (height + 1), across * (width + 1), depth)[:-1, :-1]
    figure = canvas(0.6 + (WIDTH - 0.4) * sheet.shape[0] / sheet.shape[1], left=0.2, bottom=0.1)
    axes = figure.add_subplot()
    axes.imshow(sheet.squeeze(-1) if depth == 1 else sheet, cmap="gray", vmin=0, vmax=1)
    axes.set_title(
        "Filters of the first layer, each on its own scale: good ones differ; blank or equal ones are useless"
    )
    axes.axis("off")
    return figure


def _by_layer(folder: Path, column: str) -> dict[str, tuple[Any, Any]]:
    """Epochs and values of a column for every layer that has it, the first layer first."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for row in reading.layers(folder):
        if row.get(column):
            found.setdefault(row["layer"], []).append(tuple(number(row, c, "layers.csv") for c in ("epoch", column)))
    return {layer: (np.array(v)[:, 0], np.array(v)[:, 1]) for layer, v in found.items()}


def _beside(lines: Mapping[str, Any]) -> float:
    """Inches beside a picture for the names of layers, or for a colour bar."""
    return 2.1 if len(lines) <= len(OKABE_ITO) else 0.3


def _layer_lines(figure: Any, axes: Any, lines: Mapping[str, tuple[Any, Any]]) -> None:
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
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
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
