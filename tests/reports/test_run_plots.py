"""Pictures from the files of a real small run: all of them, readable PNGs, and none without its numbers (B5, B6)."""

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
NAMES += ["activations", "gradients", "weights", "weights_by_epoch", "filters", "time"]


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
    assert list(drawn) == NAMES
    files = [file for file in drawn.values() if isinstance(file, Path)]
    assert [file.stem for file in files] == [name for name in NAMES if name != "dead"]
    assert {file.parent for file in files} == {copy / "plots"}
    assert set(run_plots.RESULT) < set(drawn)
    assert set(drawn) - set(run_plots.CAPTIONS) == {"errors"}, "the page has those images themselves"
    for file in files:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert min(picture.size) > 60, file
        assert max(picture.size) < 1600, file
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, file
        # nothing is cut off: the outermost pixels are paper
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == 255).all(), file


def test_pictures_fit_a_phone_and_titles_begin_at_the_left(copy: Path) -> None:
    for name, picture in run_plots.PICTURES.items():
        if name == "errors" or isinstance(figure := picture(copy), str | None):
            continue
        assert figure.get_size_inches()[0] <= 4.7, name
        assert figure.axes[0].get_title(loc="left"), name
        FigureCanvasAgg(figure).draw()
        assert figure.axes[0]._left_title.get_window_extent().x1 <= figure.bbox.x1, name


def test_what_would_show_nothing_is_a_sentence(copy: Path) -> None:
    table = (copy / "layers.csv").read_text().splitlines()
    column = table[0].split(",").index("dead_fraction")
    rows = [line.split(",") for line in table]
    count = len({row[1] for row in rows[1:] if row[column]})
    assert run_plots.PICTURES["dead"](copy).count(f" {count} layers") == 1
    for row in rows[1:]:
        row[column] = row[column] and "0.5"
    (copy / "layers.csv").write_text("\n".join(map(",".join, rows)))
    assert len(run_plots.PICTURES["dead"](copy).axes[0].lines) == count + 1
    (copy / "metrics.csv").write_text("\n".join((copy / "metrics.csv").read_text().splitlines()[:2]) + "\n")
    (row,) = reading.metrics(copy)
    assert f" ({round(12 * float(row['val_acc']))} of 12)" in run_plots.PICTURES["accuracy"](copy)
    assert f"{float(row['train_loss']):.4f}" in run_plots.PICTURES["loss"](copy)
    labels = np.arange(50) % 10
    np.savez(copy / "predictions.npz", val_logits=np.eye(10)[labels], val_labels=labels, val_ids=labels.astype(str))
    assert "50" in run_plots.PICTURES["confusion_val"](copy)
    assert run_plots.PICTURES["confusion_test"](copy) is None
    assert run_plots.confused(copy) == []


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_confusion_matrix_is_in_per_cent_of_each_true_class_on_a_linear_scale(copy: Path, split: str) -> None:
    guesses = np.array([[3, 1, 0], [0, 1, 0], [2, 0, 6]])
    labels, predicted = (np.concatenate([np.full(guesses[i, j], (i, j)[k]) for i in range(3) for j in range(3)])
                         for k in (0, 1))  # fmt: skip
    arrays = {f"{s}_logits": np.eye(3)[predicted if s == split else labels] for s in ("val", "test")}
    np.savez(copy / "predictions.npz", **arrays, val_labels=labels, test_labels=labels)
    axes = run_plots.PICTURES[f"confusion_{split}"](copy).axes[0]
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), [[75, 25, 0], [0, 100, 0], [25, 0, 75]])
    assert (type(image.norm).__name__, image.norm.vmin, image.norm.vmax) == ("Normalize", 0, 100)
    assert [t.get_text() for t in axes.texts] == ["75", "25", "100", "25", "75"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0 (4)", "1 (1)", "2 (8)"]
    assert {"3", "13"} <= set(axes.get_title(loc="left").replace(",", "").split())
    other = {"val": "test", "test": "validation"}[split]
    first, second = run_plots.confused(copy)
    assert (first["true"], first["predicted"], second["true"], second["predicted"]) == ("2", "0", "0", "1")
    assert (first.pop(other), second.pop(other)) == ("0", "0")
    assert ("2" in first.values(), "1" in second.values()) == (True, True)


@pytest.mark.parametrize(("side", "expected"), [(8, 8), (200, 200), (256, 256), (300, 150)])
def test_errors_are_kept_as_the_network_gets_them(side: int, expected: int) -> None:
    from types import SimpleNamespace

    import torch

    from dlrun.data.images import InMemory
    from dlrun.data.splits import Split
    from dlrun.run.final_test import showcase

    images = torch.randint(0, 255, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    val = Split(InMemory(images), torch.zeros(3, dtype=torch.int64), ["a", "b", "c"])
    exp = SimpleNamespace(data=SimpleNamespace(val=val), model=torch.nn.ReLU())
    found = SimpleNamespace(logits=torch.tensor([[9.0, 0], [0, 1], [0, 9]]), labels=torch.tensor([1, 1, 0]))
    shown = showcase(exp, found)  # type: ignore[arg-type]
    assert sorted(shown["rows"]) == [0, 2]
    assert shown["images"].shape == (2, expected, expected, 3)
    if side == expected:
        assert (shown["images"] == images[shown["rows"]].numpy()).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("file", "lost"),
    [
        ("metrics.csv", {"loss", "loss_log", "accuracy", "time"}),
        ("layers.csv", {"update_ratios", "dead"}),
        ("histograms.npz", {"activations", "gradients", "weights", "weights_by_epoch"}),
        ("predictions.npz", {"confusion_val", "confusion_test", "errors"}),
        ("showcase.npz", {"errors", "filters"}),
        ("result.json", set()),
    ],
)
def test_a_picture_is_skipped_only_where_its_numbers_are_missing(copy: Path, file: str, lost: set[str]) -> None:
    (copy / file).unlink()
    # what is drawn, not how: writing files takes most of the time
    lost |= {"saturated"}  # ReLU does not saturate
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
    for name in ("confusion_val", "update_ratios", "dead"):
        figure = run_plots.PICTURES[name](copy)
        assert figure is not None
        assert max(figure.get_size_inches()) < 10
    numbers = [t.get_text() for t in run_plots.PICTURES["confusion_val"](copy).axes[0].texts]
    assert numbers == []


def test_long_names_of_classes_stay_inside_the_picture(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    result["data"]["classes"] = [f"automobile number {k}" for k in range(10)]
    (copy / "result.json").write_text(json.dumps(result))
    figure = run_plots.PICTURES["confusion_val"](copy)
    FigureCanvasAgg(figure).draw()
    for text in (*figure.axes[0].get_xticklabels(), figure.axes[0].xaxis.label, figure.axes[0].yaxis.label):
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text


@pytest.mark.slow
def test_a_diverged_run_has_pictures_too(copy: Path) -> None:
    text = (copy / "metrics.csv").read_text().splitlines()
    cells = text[-1].split(",")
    cells[2] = cells[4] = "nan"
    (copy / "metrics.csv").write_text("\n".join([*text[:-1], ",".join(cells)]) + "\n")
    assert list(run_plots.draw(copy)) == NAMES


@pytest.mark.slow
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
