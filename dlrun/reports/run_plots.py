"""Pictures of a run in `plots/`, from its files alone: `dlrun report RUN`, the end of `dlrun train` (B1, B2, B7, D11).

The title of each describes what good looks like. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrun.folders import reading
from dlrun.reports import layer_plots
from dlrun.reports.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    canvas,
    columns,
    epochs_axis,
    headline,
    positive,
    save,
    styled,
)

__all__ = ["draw", "names"]

NUMBERED = 20  # classes up to which a confusion matrix has room for its numbers


def draw(run_folder: Path) -> list[Path]:
    """Draw every picture for which the run has numbers, in reading order; return the files."""
    found = []
    for name, picture in PICTURES.items():
        figure = picture(run_folder)
        if figure is not None:
            found.append(save(run_folder, name, figure))
    return found


def names(run_folder: Path, count: int) -> list[str]:
    """Return the names of the classes, or their numbers if the run does not name them."""
    found = reading.stored(run_folder).get("data", {}).get("classes") or []
    return [str(name) for name in found] if len(found) == count else [str(k) for k in range(count)]


@styled
def _loss(folder: Path) -> Any:
    from matplotlib.ticker import StrMethodFormatter

    table = columns(reading.metrics(folder))
    if not table:
        return None
    figure, best = canvas(3.6, top=0.68), _best_epoch(folder)
    headline(figure, "Loss: good falls steeply, then flattens; validation stays close to train")
    for k, scale in enumerate(("linear", "log")):
        axes = figure.add_subplot(1, 2, k + 1)
        _both(axes, table, "loss")
        epochs_axis(axes, f"{scale} scale", "loss per image")
        if best is not None:
            axes.axvline(best, color=GREY, lw=1, ls=":", label=f"best epoch, {best}")
        if scale == "log" and positive(np.append(table["train_loss"], table["val_loss"])):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high < 10 * low:  # within a decade 2 is easier to read than 2 × 10⁰
                axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if k == 0:
            axes.legend()
    return figure


@styled
def _accuracy(folder: Path) -> Any:
    table = columns(reading.metrics(folder))
    if not table:
        return None
    figure, best = canvas(3.6), _best_epoch(folder)
    axes = figure.add_subplot()
    _both(axes, table, "acc")
    at = np.flatnonzero(table["epoch"] == best)
    if len(at):
        value = float(table["val_acc"][at[0]])
        label = f"best epoch, {best}: validation {value:.4f}"
        axes.plot(best, value, "D", color=GREEN, markersize=8, label=label, zorder=5)
    epochs_axis(
        axes,
        "Accuracy: good rises to a plateau with a narrow gap between the two",
        "share of images classified correctly",
    )
    axes.legend(loc="lower right")
    return figure


@styled
def _confusion(folder: Path) -> Any:
    from matplotlib.colors import PowerNorm

    arrays = reading.arrays(folder, "predictions")
    if "val_logits" not in arrays:
        return None
    logits, labels = arrays["val_logits"], arrays["val_labels"]
    count = logits.shape[1]
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    classes = names(folder, count)
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(3.4 + 0.22 * count, 6.5)
    named = count <= NUMBERED
    short = [name[:18] for name in classes]
    longest = max(map(len, short)) if named else 0
    turned = longest > 2
    below = 0.6 + (0.055 * longest if turned else 0.0)
    figure = canvas(side + below - 0.6, left=1.6, top=0.6, bottom=below, width=side + 1.8)
    axes = figure.add_subplot()
    # on a square-root scale a few errors stand out beside a full diagonal
    image = axes.imshow(share, cmap="cividis", norm=PowerNorm(0.5, 0, 100))
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("% of the true class")
    if named:
        for i, j in zip(*table.nonzero(), strict=True):
            color = "black" if share[i, j] > 25 else "white"
            axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=8.5, color=color)
        axes.set_xticks(range(count), short, rotation=45 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(count), short)
    wrong = int((labels != logits.argmax(1)).sum())
    title = f"Confusion on validation: {wrong} of {len(labels)} images wrong\ngood: all on the diagonal"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)
    return figure


@styled
def _errors(folder: Path) -> Any:
    shown, found = reading.arrays(folder, "showcase"), reading.arrays(folder, "predictions")
    if "val_logits" not in found or not len(shown.get("images", ())):
        return None
    classes = names(folder, found["val_logits"].shape[1])
    count = len(shown["images"])
    across, rows = min(count, 8), math.ceil(count / 8)
    figure = canvas(0.8 + 1.75 * rows, left=0.1, right=0.1, top=0.9, bottom=0.05)
    figure.subplots_adjust(wspace=0.1, hspace=0.5)
    headline(figure, "Validation errors with the highest loss: look for wrong labels and for similar classes")
    for k, (row, image, loss) in enumerate(zip(shown["rows"], shown["images"], shown["losses"], strict=True)):
        axes = figure.add_subplot(rows, max(across, 4), k + 1)
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        true, guess = found["val_labels"][row], found["val_logits"][row].argmax()
        title = f"{classes[true][:14]}, predicted\n{classes[guess][:16]}\nloss {loss:.1f}"
        axes.set_title(title, fontsize=7.5, loc="center")
        axes.axis("off")
    return figure


@styled
def _time(folder: Path) -> Any:
    table = columns(reading.metrics(folder))
    if not table:
        return None
    memory = table.get("memory_mb")  # older runs lack it
    shown = 3 if memory is not None and np.isfinite(memory).any() else 2
    figure = canvas(3.3, top=0.68)
    figure.subplots_adjust(wspace=0.4)
    headline(figure, "Time and memory: good is level; a rise means another program, a full disk or a memory leak")
    axes = figure.add_subplot(1, shown, 1)
    axes.bar(table["epoch"], table["train_seconds"], color=BLUE, width=0.8, label="training")
    axes.bar(table["epoch"], table["eval_seconds"], bottom=table["train_seconds"], color="#E69F00", label="validation")
    epochs_axis(axes, "a whole epoch", "seconds")
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])
    axes.legend(loc="upper left", fontsize=8.5)
    for place, column, title, what in (
        (2, "samples_per_second", "speed of training", "images per second"),
        (3, "memory_mb", "peak memory", "MiB"),
    ):
        if place <= shown:
            axes = figure.add_subplot(1, shown, place)
            axes.plot(table["epoch"], table[column], color=BLUE, marker="o", markersize=3)
            epochs_axis(axes, title, what)
            axes.set_ylim(0, 1.15 * np.nanmax(table[column]))
    return figure


def _best_epoch(folder: Path) -> int | None:
    epoch = reading.stored(folder).get("best_epoch")
    return epoch if isinstance(epoch, int) else None


def _both(axes: Any, table: Mapping[str, Any], what: str) -> None:
    dots = "o" if len(table["epoch"]) < 15 else None
    axes.plot(table["epoch"], table[f"train_{what}"], color=BLUE, marker=dots, markersize=4, label="train")
    axes.plot(
        table["epoch"], table[f"val_{what}"], color=ORANGE, marker=dots, markersize=4, label="validation", ls="--"
    )


PICTURES: dict[str, Callable[[Path], Any]] = {
    **{"loss": _loss, "accuracy": _accuracy},
    **{"update_ratios": layer_plots.ratios, "dead": layer_plots.dead, "histograms": layer_plots.histograms},
    **{"confusion": _confusion, "errors": _errors, "filters": layer_plots.filters, "time": _time},
}
