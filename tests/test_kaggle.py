"""A competition walked with the commands of README: groups, few images of a class, a test without labels, a sample."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import Outcome

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
SMALL = ("trainer.epochs=2", "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false", "check=none")
SMALL += ("model=mlp", "model.width=4", "dataset.image_size=8", "dataset.cache=none", "hydra.launcher.workers=1")
SMALLER = {
    "dataset.image_size=64": "dataset.image_size=8",
    "dataset.folds=5": "dataset.folds=3",
    "dataset.fold=range:0:5": "dataset.fold=range:0:3",
}
CLASSES = ("benign", "malignant", "scar")


def commands() -> list[list[str]]:
    """The commands of the section, with settings that make them fast."""
    block = re.search(r"^## A competition\n\n```sh\n(.*?)^```", README, re.M | re.S)
    assert block is not None
    made = []
    for line in block[1].splitlines():
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words = [SMALLER.get(word, word) for word in words]
            words += [word for word in SMALL if word not in words] if "-m" in words else []
        made.append(words)
    return made


@pytest.fixture
def competition(here: Path) -> Path:
    """Forty patients with three images each, one in twelve images is a scar, and a test without labels."""
    made = np.random.default_rng(0)
    rows = ["image_id,diagnosis,patient_id"]
    for name in ("train_images", "test_images"):
        (here / name).mkdir()
    for n in range(132):
        kind = 2 if n % 12 == 0 else n % 2
        pixels = made.integers(0, 80, (9, 7, 3), dtype=np.uint8) + np.uint8(85 * kind)
        folder = "train_images" if n < 120 else "test_images"
        Image.fromarray(pixels).save(here / folder / f"{n:05}.jpg")
        if n < 120:
            rows.append(f"{n:05},{CLASSES[kind]},P{n // 3}")
    ids = [f"{n:05}" for n in range(120, 132)]
    (here / "train.csv").write_text("\n".join(rows) + "\n")
    (here / "test.csv").write_text("\n".join(["image_id", *ids]) + "\n")
    sample = [f"{one},0.33,0.33,0.33" for one in reversed(ids)]
    (here / "sample_submission.csv").write_text("\n".join(["image_id,scar,benign,malignant", *sample]) + "\n")
    return here


def split_of(run: Path) -> dict[str, str]:
    with np.load(run / "identity.npz") as found:
        return dict(zip(found["ids"].tobytes().decode().split("\0"), found["splits"].tolist(), strict=True))


@pytest.mark.slow
def test_a_competition(competition: Path, dlrun: Callable[..., Outcome]) -> None:
    for words in commands():
        done = dlrun(*words)
        assert done.code == 0, (words, done.err)
    validated = set()
    for fold in range(3):
        splits = split_of(competition / f"cv/000{fold}")
        for patient in range(40):
            assert len({splits[f"{n:05}.jpg"] for n in range(3 * patient, 3 * patient + 3)}) == 1
        validated |= {name for name, split in splits.items() if split == "val"}
    held = {name for name, split in splits.items() if split == "test"}
    assert (len(splits), len(validated | held), len(validated & held)) == (120, 120, 0)
    head, *rows = csv.reader(Path("submission.csv").read_text().splitlines())
    assert head == ["image_id", "scar", "benign", "malignant"]
    assert [row[0] for row in rows] == [f"{n:05}" for n in range(131, 119, -1)]
    assert all(sum(map(float, row[1:])) == pytest.approx(1, abs=1e-4) for row in rows)
    final = json.loads(Path("final/result.json").read_text())
    assert final["data"]["train"] + final["test_samples"] == 120
    assert final["epochs"] == json.loads(Path("cv/0000/result.json").read_text())["best_epoch"]
    Path("test_images/00125.jpg").unlink()
    words = next(words for words in commands() if words[0] == "predict")
    failed = dlrun(*words, "--force")
    assert (failed.code, "00125" in failed.err, len(Path("submission.csv").read_text().splitlines())) == (1, True, 13)
