"""README.md's first session: few commands, and all of them work as printed in a fresh environment (`pytest -m slow`).

The slow test lends the packages of this interpreter to the new environment, so that pip installs dlrun alone; with
DLRUN_FIRST_SESSION=download pip downloads everything, as for a reader.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.vocabulary import Status
from support.session import Done, Step, missing, outcomes, programs, script, steps

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SESSION = steps(README)
TITLES = ("noise:", "edge:", "importance", "next:", "  dlrun ", "no room", "this machine")
VERDICTS = ("capacity:", "flat:", "gap:", "slow:", "noisy:", "dead:", "update_ratio:", "unfinished:", "exploding:")
OFFLINE = ("Could not fetch", "No matching distribution", "Failed to establish", "name resolution", "ConnectionError")


def test_it_is_short() -> None:
    started = programs(SESSION)
    assert len(started) < 10
    assert started[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    install = " && ".join(started[:4])
    assert README.split("```sh\n")[1].startswith(install)


def test_it_has_a_preset_photos_an_ensemble_and_predictions() -> None:
    later = " ".join(programs(SESSION)[4:]).split()
    assert {"init", "-m", "experiment=mine", "dataset=mine", "compare", "ensemble", "predict"} <= set(later)


def test_its_output_is_read() -> None:
    block = "```\n$ a 1 && b\nval 0.5 (12 of 24)\n…\n$ c\nx\n```"
    found = steps(f"\n## A first session\n\n{block}\ntext\n```\na file\n```\n```\n$ d\n```\n## Next\n")
    assert found == [Step("a 1 && b", ["val 0.5 (12 of 24)", "…"]), Step("c", ["x"]), Step("d", [])]
    assert programs(found) == ["a 1", "b", "c", "d"]
    done = subprocess.run(
        ["bash", "-c", script([Step("echo one && false", []), Step("x=2", []), Step("echo $x", [])])],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert outcomes(done.stdout) == [Done(1, ["one"]), Done(0, []), Done(0, ["2"])]


def test_another_shape_is_found() -> None:
    printed = ["epoch 1/30  train loss 2.2", "…", "test accuracy 0.98 (355 of 359 images)", "noise: whatever"]
    assert (
        missing(printed, ["epoch 1/9  train loss 1.75", "else", "test accuracy 1.0 (2 of 2 images)"], ["noise"]) == []
    )
    assert (
        missing(printed, ["test accuracy 1.0 (2 of 2 images)", "epoch 1/9  train loss 1.75"], ["noise"]) == printed[2:3]
    )
    assert missing(printed, ["Traceback (most recent call last):"], ["noise"]) == [printed[0], printed[2]]


def photos(folder: Path) -> Iterator[tuple[Path, Image.Image]]:
    """Thirty photos in each of three classes and two new ones of each: discs, bars, or a plain ground."""
    rows, columns = np.mgrid[:72, :96] - np.array([36, 48])[:, None, None]
    shapes = {"discs": np.hypot(rows, columns) < 24, "bars": abs(rows) < 9, "plain": rows > 99}
    random = np.random.default_rng(1)
    for name, shape in shapes.items():
        for number in range(32):
            ground, ink = random.integers(0, 120, 3), random.integers(136, 256, 3)
            image = np.where(shape[..., None], ink, ground) + random.normal(0, 9, (72, 96, 3))
            picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            new = number >= 30
            yield folder / ("new-photos" if new else f"photos/{name}") / f"{name}-{number}.jpg", picture


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files of this checkout, with photos beside them."""
    folder = tmp_path_factory.mktemp("reader") / "dlrun"
    for name in ("README.md", "pyproject.toml", "dlrun", "conf"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "mine.yaml"))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder)
    for file, picture in photos(folder):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, quality=90)
    return folder


@pytest.fixture(scope="module")
def done(clone: Path) -> list[Done]:
    """The session, run in the copy as it is printed."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DLRUN_CONF", "COLUMNS")
    env = {key: value for key, value in os.environ.items() if key not in left_out}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "HOME": str(clone.parent)}
    if os.environ.get("DLRUN_FIRST_SESSION") != "download":
        env["PYTHONPATH"] = sysconfig.get_path("purelib")
    ran = subprocess.run(
        ["bash", "-c", script(SESSION)], cwd=clone, env=env, stdout=subprocess.PIPE, text=True, timeout=3600
    )
    found = outcomes(ran.stdout)
    if found and found[0].code and any(sign in line for line in found[0].lines for sign in OFFLINE):
        pytest.skip(f"pip cannot install here: {found[0].lines[-1]}")
    return found


@pytest.mark.slow
def test_every_command_works_as_printed(done: list[Done]) -> None:
    assert [one.code for one in done] == [0] * len(SESSION), "\n".join(done[-1].lines[-20:])
    left = {
        step.command: lines
        for step, one in zip(SESSION, done, strict=True)
        if (lines := missing(step.lines, one.lines, [*TITLES, *VERDICTS]))
    }
    assert left == {}
    assert not [line for one in done for line in one.lines if "Traceback" in line or "Warning" in line]


@pytest.mark.slow
def test_one_trial_is_best_everywhere(done: list[Done]) -> None:
    assert any(re.match(r"test accuracy 0\.9\d+ \(\d+ of 359 images\)", line) for line in done[0].lines)
    searched, compared, voted = ("\n".join(one.lines) for one in done[2:5])
    assert "6 completed" in searched
    best = re.search(r"^best: (\d{4})", compared, re.M)
    assert best is not None
    assert compared.splitlines()[1].startswith(best[1])
    assert f"rates/{best[1]}" in voted


@pytest.mark.slow
def test_it_leaves_what_it_names(clone: Path, done: list[Done]) -> None:
    for name in ("outputs/latest/result.json", "outputs/compare.csv", "rates/report.html", "votes/table.csv"):
        assert (clone / name).is_file(), name
    assert len([*clone.glob("outputs/runs/*/report.html")]) == 1
    with open(clone / "rates/table.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert {row["status"] for row in trials} == {Status.COMPLETED}
    with open(clone / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    new = sorted(path.name for path in (clone / "new-photos").iterdir())
    assert [Path(row["file"]).name for row in rows] == new
    assert {row["class"] for row in rows} <= {"discs", "bars", "plain"}
    assert sum(row["class"] in row["file"] for row in rows) > len(rows) / 2
    assert list(rows[0])[:3] == ["file", "class", "confidence"]
    assert (clone / ".venv/bin/dlrun").is_file()
