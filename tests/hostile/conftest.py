"""A folder with runs, a sweep and an ensemble of somebody else, and a command that is watched in it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import Outcome
from support.hostile import put, watched

STORED = Path(__file__).parents[1] / "stored" / "before_packages.tar.xz"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def theirs(unpacked: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`run` (paused), `finished`, `sweep`, `killed` (a sweep), `ensemble`, images, and a module that is a trap."""
    import numpy as np

    shutil.copytree(unpacked, here, dirs_exist_ok=True)
    put(here)
    np.save("images.npy", np.zeros((2, 8, 8, 1), np.uint8))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "settings"))
    return here


@pytest.fixture
def harmless(here: Path, dlrun: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Run a command that must start, run and touch nothing else; it may fail, in one line."""

    def call(*words: str) -> Outcome:
        with watched(here) as seen:
            done = dlrun(*words)
        assert seen.bad == [], words
        assert "Traceback" not in done.err + done.out
        return done

    return call
