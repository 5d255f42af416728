"""Pictures of a run in `plots/`, from its files alone: `dlrun report RUN`, the end of `dlrun train` (B1–B4, D11).

Each is legible alone: its title says what good looks like. Colours are Okabe and Ito's, which colour-blind
readers can tell apart; where there are many layers or classes, cividis. Nothing here imports torch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrun import rundir

__all__ = ["curves", "draw", "names"]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
OKABE_ITO = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A900")
WIDTH, DPI = 8.6, 110
MOST_LAYERS = 24  # ridges that fit a page
NUMBERED = 20  # classes up to which a confusion matrix has room for its numbers
STYLE: Any = {
    **{"font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "figure.titlesize": 11},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25},
    **{"axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False, "axes.unicode_minus": False},
}


def draw(run_folder: Path) -> list[Path]:
    """Draw every picture whose numbers the run has, in the order in which one reads them; return the files."""
    found = []
    for name, picture in PICTURES.items():
        figure = picture(run_folder)
        if figure is not None:
            found.append(_write(run_folder, name, figure))
    return found


def curves(folder: Path, runs: Mapping[str, Path]) -> Path | None:
    """Draw the learning curves of labelled runs, best first, into the plots of `folder`."""
    from matplotlib import rc_context

    tables = {label: table for label, path in runs.items() if (table := _columns(rundir.metrics(path)))}
    if not tables:
        return None
    with rc_context(STYLE):
        figure = _figure(4.2, top=0.75)
        for place, (column, what) in enumerate((("val_loss", "validation loss"), ("val_acc", "validation accuracy"))):
            axes = figure.add_subplot(1, 2, place + 1)
            for k, (label, table) in reversed(list(enumerate(tables.items()))):
                named = k < len(OKABE_ITO)
                look = {"color": OKABE_ITO[k] if named else "#BBBBBB", "linewidth": 1.8 if named else 0.8}
                axes.plot(table["epoch"], table[column], label=label if named else None, **look)
            _epochs(axes, "lower is better" if place == 0 else "higher is better", what)
            if column == "val_loss" and all(_positive(t[column]) for t in tables.values()):
                axes.set_yscale("log")
        handles, labels = axes.get_legend_handles_labels()
        lines = -(-len(handles) // 2)
        figure.set_figheight(3.6 + 0.2 * lines)
        figure.subplots_adjust(bottom=(0.75 + 0.2 * lines) / figure.get_figheight())
        figure.legend(handles[::-1], [label[-50:] for label in labels[::-1]], loc="lower center", ncols=2, fontsize=8)
        more = f"; the best {len(OKABE_ITO)} in colour" if len(tables) > len(OKABE_ITO) else ""
        figure.suptitle(f"Learning curves of {len(tables)} runs, best first{more}")
        return _write(folder, "curves", figure)


def names(run_folder: Path, count: int) -> list[str]:
    """Return the names of the classes, or their numbers where the run does not say."""
    found = rundir.stored(run_folder).get("data", {}).get("classes") or []
    return [str(name) for name in found] if len(found) == count else [str(k) for k in range(count)]


def _write(folder: Path, name: str, figure: Any) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 3})
    file = rundir.pictures(folder) / f"{name}.png"
    rundir.write_atomic(file, buffer.getvalue())
    return file


def _styled(picture: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return picture(folder)

    return call


def _figure(
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


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Numbers of a table by column, nan where a cell is empty."""
    if not rows:
        return {}
    return {c: np.array([float(row[c]) if row.get(c) else math.nan for row in rows]) for c in rows[0] if c != "layer"}


def _positive(values: Any) -> bool:
    return bool(np.any(values > 0)) and not bool(np.any(values <= 0))


def _epochs(axes: Any, title: str, what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _best_epoch(folder: Path) -> int | None:
    epoch = rundir.stored(folder).get("best_epoch")
    return epoch if isinstance(epoch, int) else None


def _both(axes: Any, table: Mapping[str, Any], what: str) -> None:
    dots = "o" if len(table["epoch"]) < 15 else None
    axes.plot(table["epoch"], table[f"train_{what}"], color=BLUE, marker=dots, markersize=4, label="train")
    axes.plot(
        table["epoch"], table[f"val_{what}"], color=ORANGE, marker=dots, markersize=4, label="validation", ls="--"
    )


@_styled
def _loss(folder: Path) -> Any:
    table = _columns(rundir.metrics(folder))
    if not table:
        return None
    figure, best = _figure(3.6, top=0.68), _best_epoch(folder)
    figure.suptitle("Loss: good falls steeply, then flattens; validation stays close to train")
    for k, scale in enumerate(("linear", "log")):
        axes = figure.add_subplot(1, 2, k + 1)
        _both(axes, table, "loss")
        _epochs(axes, f"{scale} scale", "loss per image")
        if best is not None:
            axes.axvline(best, color=GREY, lw=1, ls=":", label=f"best epoch, {best}")
        if scale == "log" and _positive(np.append(table["train_loss"], table["val_loss"])):
            axes.set_yscale("log")
        if k == 0:
            axes.legend()
    return figure


@_styled
def _accuracy(folder: Path) -> Any:
    table = _columns(rundir.metrics(folder))
    if not table:
        return None
    figure, best = _figure(3.6), _best_epoch(folder)
    axes = figure.add_subplot()
    _both(axes, table, "acc")
    at = np.flatnonzero(table["epoch"] == best)
    if len(at):
        value = float(table["val_acc"][at[0]])
        label = f"best epoch, {best}: validation {value:.4f}"
        axes.plot(best, value, "D", color=GREEN, markersize=8, label=label, zorder=5)
    _epochs(axes, "Accuracy: good rises to a plateau with a narrow gap between the two", "share of images right")
    axes.legend(loc="lower right")
    return figure


def _by_layer(folder: Path, column: str) -> dict[str, tuple[Any, Any]]:
    """Epochs and values of a column for every layer that has it, first layer first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rundir.layers(folder):
        if row.get(column):
            found.setdefault(row["layer"], []).append((float(row["epoch"]), float(row[column])))
    return {layer: (np.array(v)[:, 0], np.array(v)[:, 1]) for layer, v in found.items()}


def _beside(lines: Mapping[str, Any]) -> float:
    """Inches beside a picture for the names of layers, or for a bar of colours."""
    return 2.1 if len(lines) <= len(OKABE_ITO) else 0.3


def _layer_lines(figure: Any, axes: Any, lines: Mapping[str, tuple[Any, Any]]) -> None:
    """A line a layer: named while colours last, else coloured by depth."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    few = len(lines) <= len(OKABE_ITO)
    depths = ListedColormap(colormaps["cividis"](np.linspace(0, 0.8, 256)))  # the last yellows are pale on paper
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


@_styled
def _ratios(folder: Path) -> Any:
    lines = {n: (x, np.where(y > 0, y, np.nan)) for n, (x, y) in _by_layer(folder, "update_ratio").items()}
    if not any(np.isfinite(y).any() for _, y in lines.values()):
        return None
    figure = _figure(3.8, right=_beside(lines))
    axes = figure.add_subplot()
    axes.axhspan(1e-3 / 3, 3e-3, color=GREEN, alpha=0.13, lw=0)
    axes.axhline(1e-3, color=GREEN, lw=1, ls="--")
    _layer_lines(figure, axes, lines)
    axes.set_yscale("log")
    _epochs(
        axes, "Update ratio: good stays inside the green band around 0.001 until the rate falls", "‖step‖ / ‖weights‖"
    )
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 1e-4), max(high, 1e-2))
    return figure


@_styled
def _dead(folder: Path) -> Any:
    kinds = {
        "dead_fraction": ("Dead units: good stays under 10 % (dashed)", "units that never fire, %", 10),
        "saturated_fraction": ("Saturated activations: good stays under 25 % (dashed)", "flat activations, %", 25),
    }
    there = {kind: lines for kind in kinds if (lines := _by_layer(folder, kind))}
    if not there:
        return None
    figure = _figure(3.4 * len(there), right=max(map(_beside, there.values())))
    for k, (kind, lines) in enumerate(there.items()):
        title, what, limit = kinds[kind]
        axes = figure.add_subplot(len(there), 1, k + 1)
        axes.axhline(limit, color=GREY, lw=1, ls="--")
        _layer_lines(figure, axes, {layer: (x, 100 * y) for layer, (x, y) in lines.items()})
        _epochs(axes, title, what)
        axes.set_ylim(bottom=0)
        axes.set_ylim(-0.03 * axes.get_ylim()[1])  # a line at zero is seen whole
    return figure


@_styled
def _histograms(folder: Path) -> Any:
    arrays = rundir.arrays(folder, "histograms")
    epochs = sorted({key.split("/")[0] for key in arrays})
    if not epochs:
        return None
    last = epochs[-1]
    layers = [str(name) for name in arrays[f"{last}/layers"]]
    shown = sorted({round(k) for k in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS))})
    figure = _figure(1.6 + 0.42 * len(shown), left=1.8, top=0.95)
    figure.subplots_adjust(wspace=0.06)
    figure.suptitle(
        f"Values by layer, the first at the top: epoch {int(last)} filled, epoch {int(epochs[0])} as a grey line\n"
        "Good: one broad hump a layer; its width σ, on the right, within a factor of 100 from layer to layer"
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
        title = {"activations": "what enters the activation"}.get(kind, kind)
        axes.set(title=title, xlabel="value / σ", xlim=(-4.2, 7.4), ylim=(-len(shown) - 0.1, 0.1))
        axes.set_xticks((-4, -2, 0, 2, 4))
        axes.set_yticks(
            [-row - 0.9 for row in range(len(shown))], [layers[i][-24:] for i in shown] if k == 0 else [""] * len(shown)
        )
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.grid(axis="y", visible=False)
    return figure


def _density(arrays: Mapping[str, Any], epoch: str, kind: str, layer: int) -> Any:
    """Middles of the bins in units of the standard deviation, heights up to 0.85, that deviation; None of nothing."""
    counts, edges = arrays[f"{epoch}/{kind}_counts"][layer], arrays[f"{epoch}/{kind}_edges"][layer].astype(float)
    if not counts.sum():
        return None
    middles = (edges[1:] + edges[:-1]) / 2
    mean = np.average(middles, weights=counts)
    scale = float(np.sqrt(np.average((middles - mean) ** 2, weights=counts))) or 1.0
    near = abs(middles) <= 4 * scale  # a mean beyond four deviations leaves the picture
    return middles[near] / scale, 0.85 * counts[near] / counts.max(), scale


@_styled
def _confusion(folder: Path) -> Any:
    from matplotlib.colors import PowerNorm

    arrays = rundir.arrays(folder, "predictions")
    if "val_logits" not in arrays:
        return None
    logits, labels = arrays["val_logits"], arrays["val_labels"]
    count = logits.shape[1]
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    classes = names(folder, count)
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(3.4 + 0.22 * count, 6.5)
    figure = _figure(side, left=1.6, top=0.6, width=side + 1.8)
    axes = figure.add_subplot()
    # the square root lets a few errors stand out beside a full diagonal
    image = axes.imshow(share, cmap="cividis", norm=PowerNorm(0.5, 0, 100))
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("% of the true class")
    if count <= NUMBERED:
        for i, j in zip(*table.nonzero(), strict=True):
            color = "black" if share[i, j] > 25 else "white"
            axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=8.5, color=color)
        turn = 0 if max(map(len, classes)) < 3 else 45
        short = [name[:18] for name in classes]
        axes.set_xticks(range(count), short, rotation=turn, ha="right" if turn else "center")
        axes.set_yticks(range(count), short)
    wrong = int((labels != logits.argmax(1)).sum())
    title = f"Confusion on validation: {wrong} of {len(labels)} images wrong\ngood has all on the diagonal"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)
    return figure


@_styled
def _errors(folder: Path) -> Any:
    shown, found = rundir.arrays(folder, "showcase"), rundir.arrays(folder, "predictions")
    if "val_logits" not in found or not len(shown.get("images", ())):
        return None
    classes = names(folder, found["val_logits"].shape[1])
    count = len(shown["images"])
    columns, rows = min(count, 8), math.ceil(count / 8)
    figure = _figure(0.7 + 1.6 * rows, left=0.1, right=0.1, top=0.75, bottom=0.05)
    figure.subplots_adjust(wspace=0.1, hspace=0.35)
    figure.suptitle("Worst validation errors, by loss: look for wrong labels and for what the classes share")
    for k, (row, image, loss) in enumerate(zip(shown["rows"], shown["images"], shown["losses"], strict=True)):
        axes = figure.add_subplot(rows, max(columns, 4), k + 1)
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        true, guess = found["val_labels"][row], found["val_logits"][row].argmax()
        title = f"{classes[true][:14]}, taken for\n{classes[guess][:14]}, loss {loss:.1f}"
        axes.set_title(title, fontsize=7.5, loc="center")
        axes.axis("off")
    return figure


@_styled
def _filters(folder: Path) -> Any:
    filters = rundir.arrays(folder, "showcase").get("filters")
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
    figure = _figure(0.6 + (WIDTH - 0.4) * sheet.shape[0] / sheet.shape[1], left=0.2, bottom=0.1)
    axes = figure.add_subplot()
    axes.imshow(sheet.squeeze(-1) if depth == 1 else sheet, cmap="gray", vmin=0, vmax=1)
    axes.set_title("First layer's filters, each to its own scale: good is varied; blank or equal ones do nothing")
    axes.axis("off")
    return figure


@_styled
def _time(folder: Path) -> Any:
    table = _columns(rundir.metrics(folder))
    if not table:
        return None
    figure = _figure(3.3, top=0.68)
    figure.suptitle("Time: good is level; a rise is another program or a full disk")
    axes = figure.add_subplot(1, 2, 1)
    axes.bar(table["epoch"], table["train_seconds"], color=BLUE, width=0.8, label="training")
    axes.bar(table["epoch"], table["eval_seconds"], bottom=table["train_seconds"], color="#E69F00", label="validation")
    _epochs(axes, "a whole epoch", "seconds")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=2)
    axes = figure.add_subplot(1, 2, 2)
    axes.plot(table["epoch"], table["samples_per_second"], color=BLUE, marker="o", markersize=3)
    _epochs(axes, "speed of training", "images per second")
    axes.set_ylim(bottom=0)
    return figure


PICTURES: dict[str, Callable[[Path], Any]] = {
    **{"loss": _loss, "accuracy": _accuracy, "update_ratios": _ratios, "dead": _dead, "histograms": _histograms},
    **{"confusion": _confusion, "errors": _errors, "filters": _filters, "time": _time},
}
