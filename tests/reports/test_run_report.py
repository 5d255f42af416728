"""The page of a run and of a sweep: complete, harmless whatever the files say, alive in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from dlrun.analysis import verdicts
from dlrun.folders import disk, reading
from dlrun.folders.run import claim
from dlrun.run import execute
from support import warm
from support.commands import Outcome
from support.composed import SMALL, composed, recorded
from support.pages import CHROMIUM, EVIL, page, section
from support.stored import write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `dlrun train` leaves it, report and all."""
    folder = tmp_path_factory.mktemp("report") / "run"
    words = (
        *SMALL,
        "trainer.report=true",
        "check=default",
        "check.only=[initial_loss,outputs]",
        "optimizer.lr=0.00001",
    )
    assert execute.execute(composed(*words), claim(str(folder), "test"), record=recorded(*words)) == 0
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def changed(folder: Path, **values: Any) -> Path:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | values))
    return folder


# a report that stands still before its third file gets its final name
HELD = """
import os, time
from pathlib import Path
count, real = 3, os.replace
def replace(*names, **folders):
    global count
    if (count := count - 1) == 0:
        Path("held").touch()
        time.sleep(1000)
    real(*names, **folders)
os.replace = replace
from dlrun import cli
cli.main()
"""


def test_a_report_removes_what_a_killed_one_left_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    before = {file.relative_to(copy) for file in copy.rglob("*")}
    mine = {Path(name) for name in (".notes.tmp", "notes.7.tmp", ".7.tmp", "own/.x.7.tmp", "plots/x.tmp")}
    for name in mine:
        write(copy / name, "mine")
    dead = write(copy / "plots/.curves.png.7.tmp", "")  # of an older version, which locked nothing
    words = [sys.executable, "-c", HELD, "report", "copy"]
    held = warm.popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: (tmp_path / "held").exists())
        (left,) = copy.rglob(f".*.{held.pid}.tmp")
        disk.remove_leftovers(copy, "plots")
        assert (left.exists(), dead.exists()) == (True, False)  # its process lives
    finally:
        held.kill()
        held.communicate()
    assert left.exists()
    assert warm.call(tmp_path, "report", "copy").code == 0
    assert {file.relative_to(copy) for file in copy.rglob("*")} == before | mine | {Path("own")}


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_training_ends_with_a_page_that_has_everything(run: Path) -> None:
    result, text = reading.result(run), page(run)
    count = result["test_samples"]
    assert f"<b>{result['test_acc']:.3f} ({round(result['test_acc'] * count)} of {count})</b>test accuracy" in text
    assert f"<b>{result['best_epoch']} of 2</b>best epoch" in text
    assert ">completed<" in text
    for check in reading.checks(run):
        assert f"<td>{check['check']}</td>" in section(text, "Checks before training")
    assert len(re.findall("<tr>", section(text, "Every epoch"))) == 1 + 2
    assert section(text, "Result").count("data:image/png;base64,") == 4
    assert section(text, "Training in detail").count("data:image/png;base64,") == 8
    assert section(text, "Training in detail").count("class='card") == 1  # no unit is dead
    order = ["Verdicts", "Result", "Scores", "Most confused classes", "Scores by class", "Worst validation errors"]
    assert re.findall("<h2>([^<]*)</h2>", text)[:6] == order
    assert section(text, "Worst validation errors").count("<figure ") == len(reading.arrays(run, "showcase")["rows"])
    assert f"{run / 'report.html'}" in (run / "log.txt").read_text()


def test_verdicts_come_with_what_to_try(copy: Path, dlrun: Callable[..., Outcome]) -> None:
    finding = {"name": "slow", "severity": "warn", "sentence": "slow: 3 % a step", "number": 0.03}
    changed(copy, verdicts=[finding | {"try": "optimizer.lr=0.003"}])
    assert dlrun("report", str(copy)).code == 0
    shown = section(page(copy), "Verdicts")
    assert "slow: 3 % a step" in shown
    assert "<code>optimizer.lr=0.003</code>" in shown
    changed(copy, verdicts=[])
    dlrun("report", str(copy))
    shown = section(page(copy), "Verdicts")
    assert shown.count("class='card fine'") == 1
    assert "<code>" not in shown


def differing(folder: Path) -> dict[str, list[str]]:
    """The rows that the config section of a page leads with: the value and the default of a key."""
    shown = section(page(folder), "Config").split("<details>")[0]
    rows = re.findall(r"<tr><td>([^<]*)</td><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td>", shown)
    return {key: [unescape(cell) for cell in cells] for key, *cells in rows}


def test_config_leads_with_what_differs_from_the_defaults(run: Path) -> None:
    # trainer.report=true is the default, scheduler.epochs follows trainer.epochs
    assert differing(run) == {
        "dataset.limit": ["120", "0"],
        "model.width": ["4", "32"],
        "optimizer.lr": ["1e-05", "0.001"],
        "check.only": ['["initial_loss", "outputs"]', "[]"],
        "trainer.epochs": ["2", "30"],
        "trainer.threads": ["1", "0"],
    }
    assert "one_cycle" in section(page(run), "Config")


@pytest.mark.slow
def test_the_page_does_not_depend_on_the_folder_it_is_typed_in(
    copy: Path, tmp_path: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dlrun("report", str(copy)).code == 0
    first = page(copy)
    adam = "_target_: torch.optim.Adam\nlr: 0.00001\nbetas: [0.5, 0.9]\n"
    for folder in (tmp_path / "other/conf", tmp_path / "more"):
        write(folder / "optimizer/adam.yaml", adam)
        write(folder / "train.yaml", "seed: 9\ntrainer: {epochs: 2}\n")
    monkeypatch.setenv("DLRUN_CONF", str(tmp_path / "more"))
    monkeypatch.chdir(tmp_path / "other")
    assert dlrun("report", str(copy)).code == 0
    assert page(copy) == first


@pytest.mark.slow
def test_a_run_stored_without_its_defaults_shows_its_config_and_no_default(
    copy: Path, dlrun: Callable[..., Outcome]
) -> None:
    result = json.loads((copy / "result.json").read_text())
    del result["changed"], result["typed"]
    (copy / "result.json").write_text(json.dumps(result))
    assert dlrun("report", str(copy)).code == 0
    shown = section(page(copy), "Config")
    assert ">default<" not in shown
    assert differing(copy) == {}
    assert "lr: 1.0e-05\n" in shown
    (copy / "result.json").write_text(json.dumps(result | {"changed": {}}))
    assert dlrun("report", str(copy)).code == 0
    assert section(page(copy), "Config") != shown
    assert differing(copy) == {}


def test_nothing_in_a_file_becomes_markup_or_leaves_the_page(copy: Path, dlrun: Callable[..., Outcome]) -> None:
    result = reading.result(copy)
    result["config"]["dataset"]["name"] = EVIL
    result["config"][EVIL] = {"a": EVIL}
    result["config"]["choices"]["model"] = f"../../{EVIL}"
    result["data"]["classes"] = [EVIL] * 10
    verdict = {"name": EVIL, "severity": EVIL, "sentence": EVIL, "number": 1, "try": EVIL}
    more = {"verdicts": [verdict], "status": EVIL, "reason": EVIL, "started": EVIL}
    changed(copy, **result | more)
    checks = (copy / "checks.csv").read_text().replace("initial_loss", '"' + EVIL.replace('"', '""') + '"')
    (copy / "checks.csv").write_text(checks)
    outcome = dlrun("report", str(copy))
    assert (outcome.code, outcome.err) == (0, "")
    text = page(copy)
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert text.count("&lt;script&gt;") > 10
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*['"]?(?!data:)(?:https?:)?//""", text)


def test_an_interrupted_run_and_an_empty_one_have_pages_too(copy: Path, dlrun: Callable[..., Outcome]) -> None:
    for name in ("predictions.npz", "showcase.npz", "checks.csv", "histograms.npz"):
        (copy / name).unlink()
    changed(copy, status="running")
    assert dlrun("report", str(copy)).code == 0
    assert ">interrupted<" in page(copy)
    for name in ("metrics.csv", "layers.csv", "result.json"):
        (copy / name).unlink()
    assert dlrun("report", str(copy)).code == 0


@pytest.mark.parametrize("name", ["metrics", "layers"])
def test_words_among_the_numbers_are_one_line(name: str, copy: Path, dlrun: Callable[..., Outcome]) -> None:
    file = copy / f"{name}.csv"
    header, first, *rest = file.read_text().splitlines()
    cells = first.split(",")
    column = header.split(",").index("update_ratio")
    cells[column] = "lots"
    file.write_text("\n".join((header, ",".join(cells), *rest)))
    outcome = dlrun("report", str(copy))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert re.match(rf"dlrun: {name}\.csv: update_ratio .*\b1: .*'lots'$", outcome.err)


def test_what_a_real_run_was_told_stands_in_its_result_and_in_every_table(
    copy: Path, tmp_path: Path, dlrun: Callable[..., Outcome]
) -> None:
    result = reading.result(copy)
    parts = (reading.metrics(copy), reading.layers(copy), reading.config(copy), result["data"])
    again = [finding.record() for finding in verdicts.judge(*parts)]
    assert result["verdicts"] == again
    told = " ".join(finding["name"] for finding in again)
    assert told == "flat"
    (row,) = json.loads(dlrun("compare", str(copy), "--json").out)
    assert {"typed", "changed"} <= set(result)
    assert not {"typed", "changed"} & set(row)
    assert row["verdicts"] == told
    shutil.copytree(copy, tmp_path / "sweep/0000")
    assert dlrun("report", str(tmp_path / "sweep")).code == 0
    assert told in section(page(tmp_path / "sweep"), "Every trial")


def test_a_picture_that_fails_does_not_undo_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.reports import run_plots

    def broken(folder: Path) -> dict[str, Path]:
        raise RuntimeError("no ink")

    monkeypatch.setattr(run_plots, "draw", broken)
    folder = tmp_path / "run"
    cfg = composed(*SMALL, "trainer.report=true", "trainer.epochs=1")
    assert execute.execute(cfg, claim(str(folder), "test")) == 0
    assert reading.result(folder)["status"] == "completed"
    assert "no report: RuntimeError: no ink" in (folder / "log.txt").read_text()


def test_a_sweep_gets_a_table_and_its_curves(copy: Path, tmp_path: Path, dlrun: Callable[..., Outcome]) -> None:
    sweep = tmp_path / "sweep"
    for k in range(3):
        shutil.copytree(copy, sweep / f"{k:04d}")
        changed(sweep / f"{k:04d}", val_acc=0.1 * k)
    outcome = dlrun("report", str(sweep))
    assert outcome.out.strip() == str(sweep / "report.html")
    text = page(sweep)
    assert re.findall(r"<a href='([^']*)'>", section(text, "Every trial")) == [
        f"{k:04d}/report.html" for k in (2, 1, 0)
    ]
    assert (sweep / "plots" / "curves.png").exists()
    assert text.count("data:image/png") == 2  # nothing was varied: their curves, and the best by time


def test_a_folder_without_runs_is_one_line(tmp_path: Path, dlrun: Callable[..., Outcome]) -> None:
    (tmp_path / "empty").mkdir()
    outcome = dlrun("report", "empty")
    assert outcome.code == 2
    assert outcome.err.startswith("dlrun: empty: no runs here")
    assert outcome.err.count("\n") == 1


PROBE = """
<script>
const sections = [...document.querySelectorAll("section")];
const table = sections.find((s) => s.textContent.startsWith("Every")).querySelector("table");
const column = [...table.querySelectorAll("th")].findIndex((th) => th.textContent === "train_loss");
const read = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
const button = table.querySelectorAll("th button")[column], seen = [];
for (let k = 0; k < 2; k++) { button.click(); seen.push(read()); }
const wide = document.documentElement.scrollWidth <= innerWidth;
const images = [...document.images].every((i) => i.complete && i.naturalWidth > 0
  && i.getBoundingClientRect().right <= innerWidth);
const picture = document.querySelector("figure.picture img"), widths = [picture.naturalWidth];
for (let k = 0; k < 2; k++) { picture.click(); widths.push(picture.getBoundingClientRect().width); }
const still = document.documentElement.scrollWidth <= innerWidth;
document.body.dataset.seen = JSON.stringify([seen, wide && still, images, document.title, innerWidth, widths]);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1100, 390])  # a desk's and a phone's
def test_a_browser_opens_it_and_sorts(copy: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "probe.html").write_text(page(copy) + PROBE)
    frame = tmp_path / "frame.html"  # a window is never as narrow as a phone, a frame is
    seen_inside = "document.body.dataset.seen = this.contentDocument.body.dataset.seen"
    frame.write_text(f"<iframe src='probe.html' style='width: {width}px; border: 0' onload='{seen_inside}'></iframe>")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", "--window-size=1200,900", "--dump-dom", f"file://{frame}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None, done.stderr[-500:]
    (up, down), fits, images, title, inside, (natural, whole, fitted) = json.loads(unescape(seen[1]))
    assert inside == width
    assert whole == natural > fitted
    losses = sorted(float(row["train_loss"]) for row in reading.metrics(copy))
    assert up == losses
    assert down == losses[::-1]
    assert fits, "the page is wider than the window"
    assert images
    assert title == "dlrun digits cnn: completed"
