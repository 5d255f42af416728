"""Pictures from the files of a real small run: all of them, readable PNGs, and none without its numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.reports import run_plots
from dlrun.reports.figures import epochs_axis
from dlrun.run import execute
from support.commands import without_torch
from support.composed import SMALL, composed

NAMES = ["accuracy", "loss", "confusion_val", "confusion_test", "errors", "loss_log", "update_ratios", "dead"]
NAMES += ["saturated", "activations", "gradients", "weights", "filters", "time"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that makes mistakes."""
    folder = tmp_path_factory.mktemp("plots") / "run"
    assert execute.execute(composed(*SMALL, "trainer.epochs=3"), claim(str(folder), "test")) == 0
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_every_picture_is_drawn_and_shows_something(copy: Path) -> None:
    drawn = run_plots.draw(copy)
    assert [file.stem for file in drawn] == NAMES
    assert {file.parent for file in drawn} == {copy / "plots"}
    for file in drawn:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert min(picture.size) > 60, file
        assert max(picture.size) < 1600, file
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, file
        # nothing is cut off: the outermost pixels are paper
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == 255).all(), file


def test_titles_begin_at_the_left_and_layers_without_dead_units_say_so(copy: Path) -> None:
    figures = {name: run_plots.PICTURES[name](copy) for name in ("loss", "time", "histograms", "errors")}
    for name, figure in figures.items():
        assert figure._suptitle.get_ha() == "left", name
        assert figure._suptitle.get_position()[0] < 0.1, name
    table = (copy / "layers.csv").read_text().splitlines()
    column = table[0].split(",").index("dead_fraction")
    rows = [line.split(",") for line in table]
    for row in rows[1:]:
        row[column] = row[column] and "0.0"
    (copy / "layers.csv").write_text("\n".join(map(",".join, rows)))
    (axes, *_) = run_plots.PICTURES["dead"](copy).axes
    assert "zero" in axes.texts[0].get_text()


@pytest.mark.parametrize(
    ("file", "lost"),
    [
        ("metrics.csv", {"loss", "accuracy", "time"}),
        ("layers.csv", {"update_ratios", "dead"}),
        ("histograms.npz", {"histograms"}),
        ("predictions.npz", {"confusion", "errors"}),
        ("showcase.npz", {"errors", "filters"}),
        ("result.json", set()),
    ],
)
def test_a_picture_is_skipped_only_where_its_numbers_are_missing(copy: Path, file: str, lost: set[str]) -> None:
    (copy / file).unlink()
    # what is drawn, not how: writing files takes most of the time
    assert {name for name, picture in run_plots.PICTURES.items() if picture(copy) is None} == lost


def test_the_showcase_holds_the_worst_errors_of_validation(run: Path) -> None:
    shown, found = reading.arrays(run, "showcase"), reading.arrays(run, "predictions")
    logits, labels = found["val_logits"].astype(float), found["val_labels"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    assert len(wrong) > 0
    worst = wrong[np.argsort(-losses[wrong])][:24]
    assert set(shown["rows"]) == set(worst)
    np.testing.assert_allclose(shown["losses"], np.sort(losses[worst])[::-1], rtol=1e-4)
    assert shown["images"].shape == (len(worst), 8, 8, 1)
    assert shown["images"].dtype == np.uint8
    assert 200 < shown["images"].max() <= 255


def test_many_classes_and_many_layers_still_fit(copy: Path) -> None:
    count, rng = 100, np.random.default_rng(0)
    labels = rng.integers(0, count, 500)
    arrays = {"val_logits": rng.normal(size=(500, count)), "val_labels": labels, "val_ids": labels.astype(str)}
    np.savez(copy / "predictions.npz", **arrays)
    rows = ["epoch,layer,update_ratio,dead_fraction,saturated_fraction"]
    rows += [f"{epoch},block{k}.a.long.name.conv,1e-{1 + k % 5},{k / 60},0.5" for epoch in (1, 2) for k in range(60)]
    (copy / "layers.csv").write_text("\n".join(rows) + "\n")
    for name in ("confusion", "update_ratios", "dead"):
        figure = run_plots.PICTURES[name](copy)
        assert figure is not None
        assert max(figure.get_size_inches()) < 10
    numbers = [t.get_text() for t in run_plots.PICTURES["confusion"](copy).axes[0].texts]
    assert numbers == []


def test_long_names_of_classes_stay_inside_the_picture(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    result["data"]["classes"] = [f"automobile number {k}" for k in range(10)]
    (copy / "result.json").write_text(json.dumps(result))
    figure = run_plots.PICTURES["confusion"](copy)
    FigureCanvasAgg(figure).draw()
    for text in (*figure.axes[0].get_xticklabels(), figure.axes[0].xaxis.label, figure.axes[0].yaxis.label):
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text


def test_a_diverged_run_has_pictures_too(copy: Path) -> None:
    text = (copy / "metrics.csv").read_text().splitlines()
    cells = text[-1].split(",")
    cells[2] = cells[4] = "nan"
    (copy / "metrics.csv").write_text("\n".join([*text[:-1], ",".join(cells)]) + "\n")
    assert [file.stem for file in run_plots.draw(copy)] == NAMES


def test_drawing_needs_no_torch(copy: Path, here: Path, dlrun: Callable[..., object]) -> None:
    (outcome,) = without_torch([("report", str(copy))], here)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.strip() == str(copy / "report.html")


def test_names_fall_back_on_numbers(copy: Path) -> None:
    assert run_plots.names(copy, 10) == [str(k) for k in range(10)]
    result = json.loads((copy / "result.json").read_text())
    result["data"]["classes"] = list("abcdefghij")
    (copy / "result.json").write_text(json.dumps(result))
    assert run_plots.names(copy, 10) == list("abcdefghij")
    assert run_plots.names(copy, 3) == ["0", "1", "2"]


@pytest.mark.parametrize(("epochs", "ticks"), [(1, [1]), (3, [1, 2, 3]), (30, [4, 8, 12, 16, 20, 24, 28])])
def test_an_axis_of_epochs_has_none_before_the_first(epochs: int, ticks: list[int]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.plot(range(1, epochs + 1), range(epochs))
    epochs_axis(axes, "title", "what")
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == ticks
