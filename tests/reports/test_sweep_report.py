"""The pictures and the page of a sweep: from one trial to many, whatever became of them, alive in a browser."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.analysis import importance, sweeps
from dlrun.reports import axis_plots, sweep_plots
from dlrun.reports.figures import GREEN
from support.commands import Outcome, without_torch
from support.pages import CHROMIUM, EVIL, page, section
from support.stored import write
from support.swept import rate, trial

ALL = ["sweep_axes", "sweep_map", "sweep_parallel", "sweep_importance", "sweep_time", "curves"]


def many(folder: Path) -> Path:
    """Every kind of axis and of ending."""
    rate(folder, 40, model__activation="relu")
    for k, (act, opt) in enumerate([("tanh", "sgd"), ("gelu", "adam"), ("tanh", "adam"), ("gelu", "sgd")]):
        more = {"optimizer__momentum": 0.5 + 0.1 * k} if opt == "sgd" else {}
        changes = {"model__activation": act, "choices__optimizer": opt, **more}
        trial(folder, 0.5 + 0.1 * k, optimizer__lr=0.01, regularizer__l2=1e-3, **changes)
    trial(folder, 0.2, "pruned", "below the median", optimizer__lr=1e-4, regularizer__l2=1e-3)
    trial(folder, None, "failed", "no memory", optimizer__lr=1e-2, regularizer__l2=1e-3)
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep of `many` with its page, written by the command, which needs no torch for it."""
    folder = many(tmp_path_factory.mktemp("sweep") / "my sweep")
    write(folder / "0003" / "report.html", "a report")
    (outcome,) = without_torch([("report", str(folder))], folder.parent)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{folder / 'report.html'}\n", "")
    return folder


def drawn(folder: Path) -> list[str]:
    found = sweeps.read(folder)
    return [file.stem for file in sweep_plots.draw(folder, found, importance.measure(found))]


def test_every_picture_is_whole(sweep: Path) -> None:
    assert sorted(file.stem for file in (sweep / "plots").iterdir()) == sorted(ALL)
    for file in (sweep / "plots").iterdir():
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert max(pixels.shape[:2]) < 1600, file
        assert len(np.unique(pixels @ (65536, 256, 1))) > 10, file
        # nothing is cut off: the outermost pixels are paper
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == 255).all(), file


def test_what_few_trials_can_show(here: Path) -> None:
    trial(here / "s", 0.5, optimizer__lr=0.1)
    assert drawn(here / "s") == ["curves"]
    trial(here / "s", 0.6, optimizer__lr=0.2)
    assert drawn(here / "s") == ["sweep_axes", "sweep_time", "curves"]
    trial(here / "s", 0.7, optimizer__lr=0.3, regularizer__l2=0.1)
    trial(here / "s", 0.7, optimizer__lr=0.3, regularizer__l2=0.2)
    assert drawn(here / "s") == ["sweep_axes", "sweep_parallel", "sweep_time", "curves"]


def test_a_sweep_in_which_everything_failed(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for lr in (0.1, 0.2):
        trial(here / "s", None, "failed", "no memory", optimizer__lr=lr)
    assert dlrun("report", "s").code == 0
    text = page(here / "s")
    assert "<table>" not in section(text, "The best")
    assert "failed: 2 of 2 " in text
    assert "no memory" in text
    assert "data:image/png" not in text


def test_all_scores_equal(here: Path) -> None:
    for lr in (0.1, 0.2, 0.3):
        trial(here / "s", 0.5, optimizer__lr=lr, regularizer__l2=lr / 2)
    assert drawn(here / "s") == ["sweep_axes", "sweep_map", "sweep_parallel", "sweep_time", "curves"]


def test_by_loss_the_lowest_is_best_and_the_diverged_do_not_stretch_it(here: Path) -> None:
    for k, loss in enumerate((0.3, 0.2, 0.4, 0.25, 0.35, 1e6)):
        path = trial(here / "s", 0.5, optimizer__lr=10.0**-k, trainer__monitor="val_loss")
        result = json.loads((path / "result.json").read_text())
        write(path / "result.json", json.dumps(result | {"val_loss": loss}))
    found = sweeps.read(here / "s")
    assert found.metric == "val_loss"
    assert found.scores[0] == 0.2
    from dlrun.reports.axis_plots import span

    assert span(found)[1] < 1  # a million would flatten the rest
    assert "sweep_axes" in drawn(here / "s")


def test_the_page_has_the_best_the_warnings_and_every_trial(sweep: Path) -> None:
    text, found = page(sweep), sweeps.read(sweep)
    best = re.findall(
        r"<tr><td class=number data-value='(\d)\.0'>\d</td><td>(?:<a[^>]*>)?(\d+)", section(text, "The best 3")
    )
    assert [name for _, name in best] == [found.entries[k].path.name for k in found.best[:3]]
    assert "in common" in section(text, "The best 3")
    warnings = section(text, "Warnings")
    assert " optimizer.lr above " in warnings
    assert "failed: 1 of 46 " in warnings
    assert "no memory" in warnings
    assert section(text, "Pictures").count("data:image/png;base64,") == len(ALL)
    every = section(text, "Every trial")
    assert len(re.findall("<tr>", every)) == 1 + 46
    assert "<a href='0003/report.html'>0003</a>" in every
    assert every.count("<a ") == 1  # the others have no report
    assert "<td class='long'>below the median</td>" in every


@pytest.mark.sampled(2)
@pytest.mark.parametrize("text", ["", "epoch\n1\n", "epoch,val_loss,val_acc\n1,x,2\n", "a,a\n1,2,3\n", "\0"])
def test_a_broken_file_in_one_run_costs_the_others_nothing(
    here: Path, dlrun: Callable[..., Outcome], text: str
) -> None:
    for k in range(3):
        path = trial(here / "s", 0.5 + 0.1 * k, optimizer__lr=0.1 * k)
    result = json.loads((path / "result.json").read_text())
    write(path / "metrics.csv", text)
    write(path / "result.json", json.dumps({k: v for k, v in result.items() if k not in ("test_acc", "seconds")}))
    outcome = dlrun("report", "s")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(re.findall("<tr>", section(page(here / "s"), "Every trial"))) == 4
    assert section(page(here / "s"), "Pictures").count("data:image/png") == 3


def test_too_few_trials_for_importance_are_said(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k in range(5):
        trial(here / "s", 0.5 + 0.01 * k, optimizer__lr=0.1 * k, regularizer__l2=0.1 / (k + 1))
    dlrun("report", "s")
    shown = section(page(here / "s"), "Pictures")
    assert [number for number in (" 20 ", " 2 ", " 5.") if number not in shown] == []


def test_seeds_are_taken_together(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for lr, scores in ((0.1, (0.90, 0.92, 0.94)), (0.01, (0.88, 0.91, 0.90))):
        for seed, acc in enumerate(scores):
            trial(here / "s", acc, seed=seed, optimizer__lr=lr)
    dlrun("report", "s")
    shown = section(page(here / "s"), "Means over seeds")
    assert re.search("<td class=number data-value='0.92'>0.9200\u00a0±\u00a00.0200</td>", shown)  # sorts by its mean
    assert "within noise" in shown
    assert "paired t-tests by seed" in shown


def test_nothing_in_a_file_becomes_markup(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k in range(4):
        path = trial(here / "s", 0.5 + 0.1 * k, optimizer__lr=0.1 * k, model__activation=EVIL if k else "relu")
        if k == 3:
            result = json.loads((path / "result.json").read_text())
            more = {"status": EVIL, "reason": EVIL, "verdicts": [{"name": EVIL}], "started": EVIL, "epochs": EVIL}
            write(path / "result.json", json.dumps(result | more))
    outcome = dlrun("report", "s")
    assert (outcome.code, outcome.err) == (0, "")
    text = page(here / "s")
    assert text.count("<script") == 1
    assert "<img src=x" not in text


PROBE = """
<script>
const sections = [...document.querySelectorAll("section")];
const table = sections.find((s) => s.textContent.startsWith("Every trial")).querySelector("table");
const column = [...table.querySelectorAll("th")].findIndex((th) => th.textContent === "optimizer.lr");
const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
const button = table.querySelectorAll("th button")[column], seen = [];
for (let k = 0; k < 2; k++) { button.click(); seen.push(read()); }
const wide = document.documentElement.scrollWidth <= innerWidth;
const images = [...document.images].every((i) => i.complete && i.naturalWidth > 0);
document.body.dataset.seen = JSON.stringify([seen, wide, images, document.title]);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1100, 500])
def test_a_browser_opens_it_and_sorts(sweep: Path, tmp_path: Path, width: int) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text(page(sweep) + PROBE)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", f"file://{probe}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None, done.stderr[-500:]
    (up, down), fits, images, title = json.loads(unescape(seen[1]))
    rates = sorted(float(entry.config["optimizer.lr"]) for entry in sweeps.read(sweep).entries)
    assert up == rates
    assert down == rates[::-1]
    assert fits, "the page is wider than the window"
    assert images
    assert title == "dlrun my sweep"


@pytest.mark.parametrize("direction", ["min", "max"])
def test_pictures_follow_scale_and_direction(here: Path, direction: str) -> None:
    from matplotlib.colors import to_hex

    for k, acc in enumerate((0.5, 0.7, 0.6)):
        trial(here / "s", acc, optimizer__lr=10.0**-k, regularizer__dropout=(0.0, 0.2, 0.3)[k])
    asked = {"search": {"metric": "val_acc", "direction": direction}}
    write(here / "s/sweep.yaml", json.dumps(asked))
    found = sweeps.read(here / "s")
    panels = axis_plots.against_axes(found, found.axes).axes
    titles = [(a.get_title(loc="left") or a.get_title()).partition(": ") for a in panels]
    assert [key for key, _, _ in titles] == ["optimizer.lr", "regularizer.dropout"]
    assert [a.get_xscale() for a in panels] == ["log", "linear"]
    assert ["edge" in note for _, _, note in titles] == [direction == "min"] * 2
    best = next(c for a in panels[:1] for c in a.collections if c.get_label() == "best")
    assert best.get_offsets()[0][1] == {"min": 0.5, "max": 0.7}[direction]
    time = sweep_plots._time(found).axes[0]
    assert f"{'lower' if direction == 'min' else 'higher'} is better" in time.get_title(loc="left") + time.get_title()
    (so_far,) = (line for line in time.lines if to_hex(line.get_color()) == to_hex(GREEN))
    assert list(so_far.get_ydata())[:3] == {"min": [0.5, 0.5, 0.5], "max": [0.5, 0.7, 0.7]}[direction]
