"""A disk that fails, or a kill, at any operation: checkpoints load, one line is said, and what follows is the same.

A sample is in the suite. The whole, every operation of six commands and seven faults, is `pytest -m slow tests/faults`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support import faults
from support.commands import TINY
from support.faults import KILL, SHORT, Scenario

FEW = tuple(word for word in TINY if not word.startswith("trainer.epochs"))
KINDS = (KILL, SHORT, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
PHOTOS = ("dataset=image_folder", "dataset.root=photos", "dataset.cache=cache", "check=none", "model.width=4")
PHOTOS += ("trainer.threads=1", "trainer.report=false", "trainer.epochs=1", "run.dir=run")
TRAIN = ("train", *FEW, "trainer.epochs=2", "trainer.keep=top3", "run.dir=run")
SWEEP = ("train", "-m", *TINY, "optimizer.lr=0.001,0.01", "sweep.dir=s", "hydra.launcher.workers=1")
ENSEMBLE, PREDICT = ("ensemble", "s", "--out", "e"), ("predict", "run", "photos/train/ant", "--out", "p.csv", "--force")
SCENARIOS = {
    "train": Scenario("train", TRAIN, ("resume", "run"), "run/config.yaml"),
    "sweep": Scenario("sweep", SWEEP, ("resume", "s"), "s/sweep.yaml", results=("s",)),
    "ensemble": Scenario("ensemble", ENSEMBLE, ("ensemble", "s", "--out", "e2"), given=("s",), results=("s",)),
    "report": Scenario("report", ("report", "run"), ("report", "run"), given=("run",)),
    "cache": Scenario("cache", ("train", *PHOTOS), ("resume", "run"), "run/config.yaml", given=("photos",)),
    "predict": Scenario("predict", PREDICT, PREDICT, given=("run", "photos"), files=("p.csv",)),
}


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Photos, a run of them and a sweep, made by processes that have the shim."""
    top = tmp_path_factory.mktemp("donors")
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in ("ant", "bee"):
            (top / "photos" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(top / "photos" / split / label / f"{number}.png")
    with faults.preloaded(faults.built(top)):
        yield top


def made(donors: Path, name: str) -> Scenario:
    """A scenario, and what it needs."""
    scenario = SCENARIOS[name]
    if "s" in scenario.given and not (donors / "s").exists():
        assert faults.run(donors, *SWEEP).code == 0
    if "run" in scenario.given and not (donors / "run").exists():
        assert faults.run(donors, "train", *PHOTOS).code == 0
    return scenario


def straight(scenario: Scenario, donors: Path, top: Path) -> tuple[list[str], dict[str, Any]]:
    """The operations of a command that nothing disturbs, and what it leaves."""
    here = scenario.place(donors, top / "straight")
    return faults.operations(here, *scenario.words), scenario.found(here)


def places(done: list[str], *endings: str) -> list[int]:
    """The numbers of the first operations on files of these names."""
    return [next(n for n, line in enumerate(done, 1) if line.endswith(ending)) for ending in endings]


def test_a_sample_of_faults_in_a_run(donors: Path, tmp_path: Path) -> None:
    scenario = made(donors, "train")
    done, expected = straight(scenario, donors, tmp_path)
    assert len(done) > 40
    config, rows, result = places(done, "config.yaml", "metrics.csv", "predictions.npz")
    last = [n for n, line in enumerate(done, 1) if line.endswith("checkpoints/last.pt")]
    assert last
    sample = [(config, errno.ENOSPC), (rows, SHORT), (rows + 1, errno.EIO), (last[1], KILL), (result, errno.EROFS)]
    happened = [scenario.tried(donors, tmp_path, at, kind, expected) for at, kind in sample]
    assert "killed" in happened
    assert happened.count("failed") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_operation_fails_once(donors: Path, tmp_path: Path, name: str, kind: int) -> None:
    scenario = made(donors, name)
    done, expected = straight(scenario, donors, tmp_path)
    wrong = []
    for at, what in enumerate(done, 1):
        if kind == SHORT and not what.startswith("1 "):
            continue
        try:
            faults.logged(f"{name} {kind} {at} {what} {scenario.tried(donors, tmp_path, at, kind, expected)}")
        except AssertionError as error:
            wrong.append(f"{at} {what}: {error}")
            faults.logged(f"WRONG {wrong[-1]}")
    assert not wrong, "\n\n".join(wrong)
