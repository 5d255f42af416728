"""The page of an evaluation, one self-contained file: the end of `dlrun evaluate`, `dlrun report EVALUATION` (S9).

Scores with intervals, confusion, calibration, scores of each class, the worst errors. Written from the files of the
folder alone, which are untrusted: every text is escaped. Nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis import scores
from dlrun.folders import evaluation, reading
from dlrun.reports import galleries, run_plots
from dlrun.reports.figures import BLUE, GREY, HALF, SHARP, canvas, number, save, styled
from dlrun.reports.page import attempted, card, pictures, table, text, write_page
from dlrun.reports.score_tables import by_target, scores_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["remarks", "write"]

ERRORS = 30  # images in the table of the worst
NAMED = 3  # images that could not be read
FOOLED = 5  # images in the picture of an attack
CAPTIONS = {
    "confusion_test": "Confusion, in % of each true class. Good: all on the diagonal.",
    "calibration": "Accuracy by confidence, in 15 bins; below, how many images are in each. Good: on the dashed line; "
    "points below it are overconfident.",
    "adversarial": "Accuracy on images changed to fool the model, by the largest change of a value. Good: a late fall.",
    "fooled": "The most certain errors under the largest attack: the original, the changed image, and their difference "
    "(grey: none).",
}
COLUMNS = ("rank", "id", "true", "predicted", "confidence", "p_true", "loss")


def write(folder: Path) -> Path:
    """Draw the pictures of an evaluation and write its page; return it."""
    result = reading.stored(folder)
    parts = [
        _head(result, folder),
        "".join(card(words, kind) for words, kind in remarks(result)),
        attempted("Scores", lambda: scores_table(result, {"test": "value"})),
        attempted("Scores by target", lambda: by_target(result)),
        attempted("Pictures", lambda: pictures(_draw(folder), CAPTIONS)),
        attempted("Under attack", lambda: pictures(_attacks(folder), CAPTIONS)),
        attempted("Most confused classes", lambda: table(_pairs(folder))),
        attempted("Scores by class", lambda: table(evaluation.rows(folder, "per_class"), tall=True)),
        attempted("Worst errors", lambda: galleries.worst(folder, "test") or _errors(folder)),
    ]
    return write_page(folder, f"{_name(result)}: evaluation", parts)


def remarks(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader of the scores must know, each with the kind of its card."""
    found: list[tuple[str, str]] = []
    seen = result.get("seen")
    if isinstance(seen, Mapping) and any(seen.values()):
        train, val = seen.get("train", 0), seen.get("val", 0)
        what = [f"{train:,} were trained on"] * bool(train) + [f"{val:,} chose its epoch (validation)"] * bool(val)
        words = f"of {result.get('test_samples', 0):,} images {' and '.join(what)}"
        found.append((f"{words}: the scores are not those on new images", "warn"))
    if isinstance(omitted := result.get("omitted"), Mapping) and omitted:
        named = "; ".join(f"{name}: {why}" for name, why in [*omitted.items()][:NAMED])
        more = f" and {len(omitted) - NAMED:,} more" if len(omitted) > NAMED else ""
        found.append((f"left out, could not be read: {named}{more}", "warn"))
    scaled = result.get("scaled")
    found += [(f"{name} {how}", "") for name, how in scaled.items()] if isinstance(scaled, Mapping) else []
    found += [(str(note), "") for note in result.get("notes") or ()]
    gap = result.get("largest_difference_from_stored_logits")
    if isinstance(gap, float):
        other = f"the logits differ from those that the end of training stored by up to {gap:.2g}"
        found.append(("the logits are those that the end of training stored", "fine") if gap == 0 else (other, ""))
    return found


def _name(result: Mapping[str, Any]) -> str:
    return f"{Path(str(result.get('model', '?'))).name} on {Path(str(result.get('on', '?'))).name}"


def _head(result: Mapping[str, Any], folder: Path) -> str:
    boxes = {
        "accuracy": scores.counted("test_acc", result.get("test_acc"), result),
        "balanced accuracy": _decimals(result.get("test_balanced_acc")),
        "F1, mean over classes": _decimals(result.get("test_macro_f1")),
        "log loss": _decimals(result.get("test_loss")),
        "calibration error": _decimals(result.get("test_ece")),
        "images": f"{result['test_samples']:,}" if isinstance(result.get("test_samples"), int) else "",
    }
    shown = "".join(f"<div><b>{escape(value)}</b>{name}</div>" for name, value in boxes.items() if value)
    split = f", {text(result['split'])}" if result.get("split") else ""
    where = f"{text(str(result.get('model')))} on {text(str(result.get('on')))}{split}; {escape(folder.resolve().name)}"
    return (
        f"<header><h1>{escape(_name(result))}</h1><p class=soft>an evaluation: {where}</p></header>"
        f"<div class=numbers>{shown}</div>"
    )


def _decimals(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def _pairs(folder: Path) -> list[dict[str, Any]]:
    """The confused classes; the images are of one split, whose name is not the user's."""
    return [
        {"images" if name == "test" else name: value for name, value in row.items()}
        for row in run_plots.confused(folder)
    ]


def _errors(folder: Path) -> str:
    rows = [row for row in evaluation.rows(folder, "errors") if row.get("true") != row.get("predicted")]
    shown: Sequence[Mapping[str, Any]] = [{c: row.get(c, "") for c in COLUMNS} for row in rows[:ERRORS]]
    said = f"{len(shown)} of {len(rows):,}; errors.csv has every image." if shown else ""
    return f"<p class=soft>{said}</p>{table(shown, tall=True)}" if shown else ""


def _draw(folder: Path) -> dict[str, Path | str]:
    found: dict[str, Path | str] = {}
    figures = {"confusion_test": run_plots.confusion(folder, split="test"), "calibration": _calibration(folder)}
    for name, figure in figures.items():
        if isinstance(figure, str):
            found[name] = figure.replace("test images", "images")
        elif figure is not None:
            figure.axes[0].set_title(figure.axes[0].get_title("left").removeprefix("Test: "), loc="left")
            found[name] = save(folder, name, figure, SHARP)
    return found


@styled
def _calibration(folder: Path) -> Figure | None:
    rows = [row for row in evaluation.rows(folder, "calibration") if row.get("confidence")]
    if not rows:
        return None
    sure, right, n = (
        np.array([number(row, name, "calibration.csv") for row in rows]) for name in ("confidence", "accuracy", "n")
    )
    figure = canvas(HALF - 0.6, width=HALF)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), "--", color=GREY, lw=1)
    axes.plot(sure, right, "o-", color=BLUE, ms=4)
    axes.set(title="Calibration", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.bar(sure, n, width=1 / 20, color=BLUE)
    below.set(xlabel="confidence", ylabel="images")
    return figure


def _attacks(folder: Path) -> dict[str, Path | str]:
    """The curve of an attack and the images that it fools; nothing if there was none."""
    curve, shown = _curve(folder), _fooled(folder)
    found: dict[str, Path | str] = {} if curve is None else {"adversarial": save(folder, "adversarial", curve, SHARP)}
    return found if shown is None else found | {"fooled": save(folder, "fooled", shown, SHARP)}


@styled
def _curve(folder: Path) -> Figure | None:
    rows = evaluation.rows(folder, "adversarial")
    if not rows:
        return None
    size, right = ([number(row, name, "adversarial.csv") for row in rows] for name in ("epsilon", "accuracy"))
    figure = canvas(HALF - 0.6, width=HALF)
    axes = figure.subplots()
    axes.plot(size, right, "o-", color=BLUE, ms=4)
    axes.set(title="Under attack", xlabel="largest change, in 255ths", ylabel="accuracy", ylim=(0, 1.02))
    return figure


@styled
def _fooled(folder: Path) -> Figure | None:
    found = reading.arrays(folder, "adversarial")
    if not len(found.get("x", ())):
        return None
    count = min(FOOLED, len(found["x"]))
    classes = run_plots.names(folder, int(max(found["y"].max(), found["predicted"].max())) + 1)
    figure = canvas(HALF - 0.6, width=HALF)
    grid = figure.subplots(3, count, squeeze=False)
    for k in range(count):
        before, after = (found[name][k].astype(np.float64) for name in ("original", "x"))
        most = max(before.max(), after.max(), 1e-9)
        change = (after - before) / max(2 * np.abs(after - before).max(), 1e-9) + 0.5
        for axes, image in zip(grid[:, k], (before / most, after / most, change), strict=True):
            axes.imshow(
                image[..., 0] if image.shape[-1] < 3 else image[..., :3].clip(0, 1), cmap="gray", vmin=0, vmax=1
            )
            axes.set(xticks=(), yticks=())
            axes.grid(False)
        grid[0, k].set_title(classes[found["y"][k]], fontsize=8)
        grid[1, k].set_title(classes[found["predicted"][k]], fontsize=8)
    for axes, word in zip(grid[:, 0], ("original", "changed", "difference"), strict=True):
        axes.set_ylabel(word)
    return figure
