"""Pictures of a run in `plots/`, from its files alone: `dlrun report RUN`, the end of `dlrun train` (B1, B2, B7, D11).

Each is narrow enough for a phone; its caption on the page describes a good one. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis import scores
from dlrun.errors import UserError, first_line, legible
from dlrun.folders import reading
from dlrun.folders.opener import Unreadable
from dlrun.reports import layer_plots
from dlrun.reports.figures import (
    BLUE,
    GREEN,
    GREY,
    HALF,
    ORANGE,
    SHARP,
    canvas,
    columns,
    epochs_axis,
    headline,
    positive,
    save,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CAPTIONS", "LARGEST", "RESULT", "confused", "confusion", "draw", "names"]

LARGEST = 24  # images that a run stores for their loss alone
NUMBERED = 20  # classes up to which a confusion matrix has room for its numbers
SPLITS = {"val": "validation", "test": "test"}
RESULT = ("accuracy", "loss", "confusion_val", "confusion_test")  # the pictures of the result; the others explain it
CAPTIONS = {
    "accuracy": "Accuracy by epoch. Good rises to a plateau with a narrow gap between the two.",
    "loss": "Loss by epoch. Good falls steeply, then flattens; validation stays close to train.",
    "loss_log": "The same losses on a logarithmic scale, which shows late progress.",
    "confusion_val": "Confusion on validation, in % of each true class. Good: all on the diagonal.",
    "confusion_test": "Confusion on test, in % of each true class.",
    "update_ratios": "Length of a step relative to the weights. Good stays in the green band around 0.001 until the "
    "learning rate falls.",
    "dead": "Units that are always zero. Good stays below 10 % (dashed).",
    "saturated": "Saturated activations. Good stays below 25 % (dashed).",
    "activations": "Values before the activation, by layer, the first at the top; σ on the right. Good: one broad "
    "hump per layer, with widths within a factor of 100.",
    "gradients": "Gradients by layer; σ on the right. Good: widths within a factor of 100.",
    "weights": "Weights by layer; σ on the right.",
    "weights_by_epoch": "Weights by epoch, the first at the top. Good widens slowly; a spike at 0 is sparsity.",
    "filters": "Filters of the first layer, each on its own scale. Good ones differ; blank or equal ones are useless.",
    "time": "Time and memory by epoch. Good is level; a rise means another program, a full disk or a memory leak.",
}


def draw(run_folder: Path) -> dict[str, Path | str]:
    """Draw every picture for which the run has numbers; return the files by name, in reading order.

    A picture that would show nothing is a sentence instead.
    """
    found: dict[str, Path | str] = {}
    for name, picture in PICTURES.items():
        try:
            figure = picture(run_folder)
        except Unreadable as error:
            found[name] = f"{name} is left out: {error.reason}"
            continue
        except UserError:
            raise
        except Exception as error:  # arrays and tables of somebody else, or damaged ones
            found[name] = f"{name} is left out: {type(error).__name__}: {first_line(error)[:120]}"
            continue
        if isinstance(figure, str):
            found[name] = figure
        elif figure is not None:
            found[name] = save(run_folder, name, figure, SHARP)
    return found


def names(run_folder: Path, count: int) -> list[str]:
    """Return the names of the classes, or their numbers if the run does not name them."""
    found = reading.stored(run_folder).get("data", {}).get("classes") or []
    return [legible(name) for name in found] if len(found) == count else [str(k) for k in range(count)]


def _answers(folder: Path, split: str) -> Any:
    """The number of images by true and predicted class (K, K); None without predictions."""
    arrays = reading.arrays(folder, "predictions")
    if f"{split}_logits" not in arrays or not len(arrays.get(f"{split}_labels", ())):
        return None
    logits, labels = arrays[f"{split}_logits"], arrays[f"{split}_labels"]
    table = np.zeros((logits.shape[1],) * 2, int)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    return table


def confused(run_folder: Path, most: int = 8) -> list[dict[str, Any]]:
    """Return the pairs of classes that are confused most often, with their number of images by split (D11)."""
    tables = {split: table for split in SPLITS if (table := _answers(run_folder, split)) is not None}
    if not tables or len({table.shape for table in tables.values()}) > 1:
        return []
    total = sum(tables.values())
    np.fill_diagonal(total, 0)
    classes, order = names(run_folder, len(total)), np.argsort(-total, axis=None, kind="stable")[:most]
    pairs = [divmod(int(k), len(total)) for k in order if total.flat[k] > 0]
    return [
        {"true": classes[i], "predicted": classes[j]} | {SPLITS[s]: str(t[i, j]) for s, t in tables.items()}
        for i, j in pairs
    ]


@styled
def _loss(folder: Path, scale: str = "linear") -> Figure | str | None:
    from matplotlib.ticker import StrMethodFormatter

    table = columns(reading.metrics(folder))
    if len(table.get("epoch", ())) < 2:
        return _one_epoch(table, "loss") if scale == "linear" else None
    figure, best = canvas(3.2, width=HALF), _best_epoch(folder)
    axes = figure.add_subplot()
    _both(axes, table, "loss")
    epochs_axis(axes, "Loss" if scale == "linear" else "Loss, logarithmic", "loss per image")
    if best is not None:
        axes.axvline(best, color=GREY, lw=1, ls=":", label=f"best epoch, {best}")
    if scale == "log":
        validated = np.isfinite(table["val_loss"]).any()
        if not positive(np.append(table["train_loss"], table["val_loss"] if validated else [])):
            return None
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 10 * low:  # within a decade 2 is easier to read than 2 × 10⁰
            axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend()
    return figure


@styled
def _accuracy(folder: Path) -> Figure | str | None:
    table = columns(reading.metrics(folder))
    if len(table.get("epoch", ())) < 2:
        return _one_epoch(table, "acc", reading.stored(folder))
    figure, best = canvas(3.2, width=HALF), _best_epoch(folder)
    axes = figure.add_subplot()
    _both(axes, table, "acc")
    at = np.flatnonzero((table["epoch"] == best) & np.isfinite(table["val_acc"]))
    if len(at):
        value = float(table["val_acc"][at[0]])
        label = f"best epoch, {best}: {scores.counted('val_acc', value, reading.stored(folder))}"
        axes.plot(table["epoch"][at[0]], value, "D", color=GREEN, markersize=8, label=label, zorder=5)
    epochs_axis(axes, "Accuracy", "share of images right")
    axes.legend()
    return figure


def _one_epoch(table: Mapping[str, Any], what: str, result: Mapping[str, Any] | None = None) -> str | None:
    """The numbers of a run whose curve would be a dot, accuracies with the counts of its `result`."""
    if not table or not len(table["epoch"]):
        return None
    word = {"acc": "accuracy"}.get(what, what)
    found = {short: float(table[f"{short}_{what}"][0]) for short in _CURVES}
    numbers = (
        f"{split} {word} {scores.counted(f'{short}_{what}', found[short], result or {})}"
        for short, split in _CURVES.items()
        if np.isfinite(found[short])
    )
    return f"One epoch, so no curve: {', '.join(numbers)}."


_CURVES = {"train": "train", "val": "validation"}


@styled
def confusion(folder: Path, split: str = "val") -> Figure | str | None:
    """Confusion matrix of a run or an ensemble in % of each true class (K, K); a sentence if nothing is wrong."""
    table = _answers(folder, split)
    if table is None:
        return None
    count, images = len(table), int(table.sum())
    wrong = images - int(table.trace())
    if not wrong:
        return f"All {images:,} {SPLITS[split]} images are classified correctly: no confusion to show."
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    named = count <= NUMBERED
    short = [name[:14] for name in names(folder, count)]
    longest = max(map(len, short)) if named else 0
    turned = longest > 2
    left, below = (0.95 + 0.062 * longest if named else 0.75), 0.55 + (0.055 * longest if turned else 0.0)
    right = 0.1 if named else 0.75
    figure = canvas(HALF - left - right + below + 0.4, left=left, right=right, bottom=below, width=HALF)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if named:
        size = 8.5 if count <= 12 else 6
        for i, j in zip(*table.nonzero(), strict=True):
            color = "white" if share[i, j] > 55 else "black"
            text = f"{share[i, j]:.0f}" if share[i, j] >= 0.5 else "<1"
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=color)
        axes.set_xticks(range(count), short, rotation=45 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(count), [f"{name} ({n})" for name, n in zip(short, table.sum(1), strict=True)])
    else:
        bar = figure.add_axes((1 - 0.62 / HALF, 0.3, 0.12 / HALF, 0.4))
        figure.colorbar(image, cax=bar).ax.set_title("%", fontsize=9, loc="center")
    axes.set(title=f"{SPLITS[split].capitalize()}: {wrong:,} of {images:,} wrong", xlabel="predicted class")
    axes.set_ylabel("true class (images)" if named else "true class")
    axes.grid(visible=False)
    return figure


@styled
def _errors(folder: Path) -> Figure | None:
    shown, found = reading.arrays(folder, "showcase"), reading.arrays(folder, "predictions")
    if "val_logits" not in found or not len(shown.get("images", ())):
        return None
    classes = names(folder, found["val_logits"].shape[1])
    count = min(len(shown["images"]), LARGEST)  # beyond it are the worst of single classes and pairs
    across, rows = min(count, 8), math.ceil(count / 8)
    figure = canvas(0.8 + 1.75 * rows, left=0.1, right=0.1, top=0.9, bottom=0.05)
    figure.subplots_adjust(wspace=0.1, hspace=0.5)
    headline(figure, "Validation errors with the highest loss: look for wrong labels and for similar classes")
    found_images = zip(shown["rows"], shown["images"], shown["losses"], strict=True)
    for k, (row, image, loss) in enumerate(islice(found_images, count)):
        axes = figure.add_subplot(rows, max(across, 4), k + 1)
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        true, guess = found["val_labels"][row], found["val_logits"][row].argmax()
        title = f"{classes[true][:14]}, predicted\n{classes[guess][:16]}\nloss {loss:.1f}"
        axes.set_title(title, fontsize=7.5, loc="center")
        axes.axis("off")
    return figure


@styled
def _time(folder: Path) -> Figure | None:
    table = columns(reading.metrics(folder))
    if len(table.get("epoch", ())) < 2:
        return None
    memory = table.get("memory_mb")  # older runs lack it
    shown = 3 if memory is not None and np.isfinite(memory).any() else 2
    figure = canvas(0.5 + 1.6 * shown, width=HALF)
    figure.subplots_adjust(hspace=0.75)
    axes = figure.add_subplot(shown, 1, 1)
    axes.bar(table["epoch"], table["train_seconds"], color=BLUE, width=0.8, label="training")
    axes.bar(table["epoch"], table["eval_seconds"], bottom=table["train_seconds"], color="#E69F00", label="validation")
    epochs_axis(axes, "A whole epoch", "seconds")
    axes.set_ylim(top=1.5 * axes.get_ylim()[1])
    axes.legend(loc="upper right", fontsize=8.5, ncols=2)
    for place, column, title, what in (
        (2, "samples_per_second", "Speed of training", "images / s"),
        (3, "memory_mb", "Peak memory", "MiB"),
    ):
        if place <= shown:
            axes = figure.add_subplot(shown, 1, place)
            axes.plot(table["epoch"], table[column], color=BLUE, marker="o", markersize=3)
            epochs_axis(axes, title, what)
            axes.set_ylim(0, 1.15 * np.nanmax(table[column]))
    for axes in figure.axes[:-1]:
        axes.set_xlabel("")
    return figure


def _best_epoch(folder: Path) -> int | None:
    epoch = reading.stored(folder).get("best_epoch")
    return epoch if isinstance(epoch, int) else None


def _both(axes: Axes, table: Mapping[str, Any], what: str) -> None:
    dots = "o" if len(table["epoch"]) < 15 else None
    axes.plot(table["epoch"], table[f"train_{what}"], color=BLUE, marker=dots, markersize=4, label="train")
    if np.isfinite(val := table[f"val_{what}"]).any():  # of a run without a validation split there are none
        axes.plot(table["epoch"], val, color=ORANGE, marker=dots, markersize=4, label="validation", ls="--")


PICTURES: dict[str, Callable[[Path], Figure | str | None]] = {
    **{"accuracy": _accuracy, "loss": _loss},
    **{f"confusion_{split}": partial(confusion, split=split) for split in SPLITS},
    **{"errors": _errors, "loss_log": partial(_loss, scale="log"), "update_ratios": layer_plots.ratios},
    **{kind: partial(layer_plots.idle, column=f"{kind}_fraction") for kind in ("dead", "saturated")},
    **{kind: partial(layer_plots.histograms, kind=kind) for kind in ("activations", "gradients", "weights")},
    **{"weights_by_epoch": layer_plots.weights_by_epoch, "filters": layer_plots.filters, "time": _time},
}
