"""What the tests of dlrun on a GPU share. Each is skipped with a reason where torch sees no CUDA.

    pytest -m gpu tests/gpu                                   on a machine with a card
    DLRUN_GPU_TESTS_DEVICE=cpu pytest -m gpu tests/gpu        the same tests on the processor

The second runs every line of the suite where there is no card, so that it is known to be right before it meets one.
Left aside there is what asks for the `card` fixture: what only CUDA has, such as the memory that torch allocated.

dlrun is driven by its command line, inside this process where nothing speaks against it, since a process of its own
costs seconds of imports. The few modules that tests reach into are imported here and nowhere else, by `inner`.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from torch.utils._python_dispatch import TorchDispatchMode

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
DEVICE = os.environ.get("DLRUN_GPU_TESTS_DEVICE", "cuda")
# files that a run leaves are looked at one by one; no test here is about checks unless it says so
QUIET = ("check=none", "trainer.report=false", "trainer.threads=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this folder, and skip it where there is no card."""
    missing = DEVICE == "cuda" and not torch.cuda.is_available()
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        # torch's advice differs by card and version, such as to use TF32: it is shown, and is no failure
        item.add_marker(pytest.mark.filterwarnings("default"))
        if missing:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Give back what a test held on the card, so that the next one measures its own."""
    yield
    if DEVICE == "cuda" and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def card() -> torch.device:
    """The card; skips what only CUDA has where the tests run on the processor."""
    if DEVICE != "cuda":
        pytest.skip("only CUDA has this")
    return torch.device("cuda")


@pytest.fixture
def device() -> str:
    """The name for trainer.device."""
    return DEVICE


@pytest.fixture(scope="session")
def inner() -> SimpleNamespace:
    """Modules and functions inside dlrun that tests reach into: the one place that knows where they are."""
    from dlrun import checkpoint, diagnostics, engine, trial
    from dlrun.checks import doubles
    from dlrun.composing import compose
    from dlrun.data import batches
    from dlrun.experiment import build
    from dlrun.progress import Screen

    return SimpleNamespace(
        compose=compose,
        build=build,
        step=engine.step,
        scores=engine.scores,
        predict=engine.predict,
        train_epoch=engine.train_epoch,
        State=checkpoint.State,
        Watch=diagnostics.Watch,
        Screen=Screen,
        Batches=batches.Batches,
        doubled=doubles.doubled,
        float64=doubles.float64,
        out_of_memory=trial.out_of_memory,
    )


@pytest.fixture
def built(inner: SimpleNamespace, arrays: Path) -> Callable[..., Any]:
    """Build what `dlrun train WORDS` trains: digits, or the arrays with `dataset=arrays`."""

    def build(*words: str, where: str = DEVICE) -> Any:
        return inner.build(inner.compose(f"trainer.device={where}", *QUIET, *located(words, arrays)))

    return build


@dataclass
class Run:
    """A run's folder as it is after training."""

    path: Path
    outcome: Outcome

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "result.json").read_text())
        return found

    @property
    def log(self) -> str:
        return (self.path / "log.txt").read_text()

    def column(self, name: str) -> list[float]:
        """A column of metrics.csv."""
        with open(self.path / "metrics.csv", newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file)]

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.path / "checkpoints" / f"{name}.pt", weights_only=True)
        return found


def located(words: tuple[str, ...], arrays: Path) -> tuple[str, ...]:
    """The words, with the path of the arrays where they ask for them."""
    return (*words, f"dataset.path={arrays}") if "dataset=arrays" in words else words


@pytest.fixture
def train(dlrun: Callable[..., Outcome], arrays: Path, here: Path) -> Callable[..., Run]:
    """Run `dlrun train WORDS` on the device, in this process; it must end with `code`."""

    def call(*words: str, folder: str = "run", code: int = 0, where: str = DEVICE) -> Run:
        asked = (f"run.dir={folder}", f"trainer.device={where}", *QUIET, *located(words, arrays))
        outcome = dlrun("train", *asked)
        assert outcome.code == code, outcome.out + outcome.err
        return Run(here / folder, outcome)

    return call


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start dlrun in a process of its own, from a folder."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), **env}
    command = [sys.executable, "-m", "dlrun", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=found, text=True, **pipes)


@pytest.fixture
def started(here: Path, arrays: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start dlrun in a process of its own; its output and errors come together."""

    def call(*words: str, **env: str) -> subprocess.Popen[str]:
        return start(here, *located(words, arrays), **env)

    return call


@pytest.fixture(scope="session")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images (32, 32, 3) of ten classes that a network tells apart at once, and 300 to test it on."""
    rng, place = np.random.default_rng(0), tmp_path_factory.mktemp("arrays") / "images.npz"
    patterns = rng.integers(60, 196, (10, 8, 8, 3)).repeat(4, 1).repeat(4, 2)

    def made(count: int) -> tuple[Any, Any]:
        y = np.arange(count) % 10
        return (patterns[y] + rng.normal(0, 30, (count, 32, 32, 3))).clip(0, 255).astype(np.uint8), y

    (x, y), (x_test, y_test) = made(1200), made(300)
    np.savez(place, x=x, y=y, x_test=x_test, y_test=y_test)
    return place


class _Asked(TorchDispatchMode):
    """Counts the operations that read a tensor's values from Python, which on CUDA would wait for the card."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in self.WAIT or (name == "index" and any(_mask(i) for i in args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count what makes Python wait for the device, by its name: on CUDA torch's own sync debug mode does."""
    found: Counter[str] = Counter()
    if DEVICE != "cuda":
        with _Asked() as mode:
            yield found
        found.update(mode.found)
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in said:
        if "synchronizing CUDA operation" in str(one.message):
            found[f"{Path(one.filename).name}:{one.lineno}"] += 1
