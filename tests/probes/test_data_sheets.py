"""`dlrun show data`: a sheet per class, a page of all, and their numbers (D6)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dlrun.data.arrays import arrays
from dlrun.data.splits import prepare
from dlrun.probes import data_sheets
from support.commands import Outcome


def test_show_data_draws_a_sheet_per_class_with_counts_sizes_and_kinds(
    here: Path, dlrun: Callable[..., Outcome]
) -> None:
    for label, count in (("$x$ y", 12), ("bee", 4)):
        (here / "photos" / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / f"photos/{label}/{number:02}.{('png', 'jpg')[number % 2]}")
    words = ("dataset=image_folder", "dataset.root=photos", "dataset.image_size=16", "dataset.cache=none")
    words = (*words, "dataset.split=position", "dataset.test_fraction=0.25", "dataset.val_fraction=0.25")
    done = dlrun("show", "data", *words, "run.dir=shown")
    assert (done.code, done.err) == (0, ""), done.err
    assert "shown/data.png" in done.out
    assert sorted(file.name for file in (here / "shown").iterdir()) == [
        "000-_x_y.png", "001-bee.png", "data.csv", "data.png",
    ]  # fmt: skip
    with open("shown/data.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert [(int(row["train"]), int(row["val"])) for row in rows.values()] == [(7, 2), (2, 1)]
    assert float(rows["bee"]["share"]) == round(2 / 9, 4)
    for row in rows.values():
        heights = [int(row[name].split("×")[0]) for name in ("smallest", "median", "largest")]
        assert heights == sorted(heights)
        assert 20 <= heights[0] <= heights[2] < 32
        assert sum(int(part.split()[0]) for part in row["kinds"].split(", ")) == int(row["train"])
    for name in ("data.png", "001-bee.png"):
        with Image.open(f"shown/{name}") as picture:
            assert picture.size[0] > 900
    Path("shown/mine.txt").touch()
    again = dlrun("show", "data", *words, "run.dir=shown")
    assert again.code == 2
    assert "mine.txt" in again.err


def test_of_many_classes_the_largest_and_the_smallest_are_drawn(tmp_path: Path) -> None:
    counts = [4 + label for label in range(60)]
    np.savez(tmp_path / "a.npz", x=np.zeros((sum(counts), 2, 2)), y=np.repeat(np.arange(60), counts))
    raw = arrays(str(tmp_path / "a.npz"))
    data = prepare(raw, val_fraction=0.25, test_fraction=0.25, split_seed=0, split="position")
    assert len(data_sheets._ends(list(range(60)), 50)) == 50
    assert data_sheets._ends(list(range(60)), 4) == [0, 1, 58, 59]
    row = data_sheets._row(data, 59)
    assert (row["class"], row["median"], row["kinds"]) == ("59", "2×2", "1 channel")
