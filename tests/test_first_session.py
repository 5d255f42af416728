"""The first session of README.md, typed as it is printed: from the first training to photos of one's own."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SESSION = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## A first session\n")[1].split("\n## ")[0]
LINES = re.findall(r"^\$ (.*)$", SESSION, re.M)
OURS = [line for line in LINES if line.startswith("dlrun ")]


def test_it_is_short() -> None:
    assert len(OURS) < 10
    verbs = [line.split()[1] for line in OURS]
    assert verbs.index("train") < verbs.index("compare") < verbs.index("ensemble") < verbs.index("predict")
    assert {"init", "explain"} <= {*verbs}
    assert any("experiment=mine" in line for line in OURS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder but for photos of two classes that a colour tells apart."""
    for k in range(40):
        pixels = np.random.default_rng(k).integers(0, 80, (60, 80, 3), dtype=np.uint8)
        pixels[..., k % 2] += 150
        path = tmp_path / "photos" / ("apple", "leaf")[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


@pytest.mark.slow
def test_every_line_does_what_it_says(folder: Path) -> None:
    bin_of_ours = folder / ".bin"
    bin_of_ours.mkdir()
    for name, words in (("dlrun", "-m dlrun"), ("python", "")):
        file = bin_of_ours / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        file.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if k not in ("DLRUN_CONF", "COLUMNS")}
    env = clean | {"PATH": f"{bin_of_ours}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    said = {}
    for line in LINES:
        done = subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said[line] = done.stdout
    trained, searched, compared, voted = (
        next(text for line, text in said.items() if line.startswith(words))
        for words in ("dlrun train", "dlrun train -m", "dlrun compare rates", "dlrun ensemble")
    )
    assert re.search(r"^test accuracy 0\.9\d+ \(\d+ of 359 images\)", trained, re.M)
    assert "8 completed" in searched
    best = re.search(r"^best: (\d{4})", compared, re.M)
    assert best is not None
    assert compared.splitlines()[1].startswith(best[1])
    assert f"rates/{best[1]}" in voted
    with open(folder / "predictions.csv", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["0", "1", "2", "3", "4"]
    with open(folder / "photos.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    right = [row["class"] in row["file"] for row in rows]
    assert sum(right) > 30
