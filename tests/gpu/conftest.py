"""What the tests of dlrun on a GPU share. Each is skipped with a reason where torch sees no CUDA.

    pytest -m gpu tests/gpu                                   on a machine with a card
    DLRUN_GPU_TESTS_DEVICE=cpu pytest -m gpu tests/gpu        the same tests on the processor

The second runs every line of the suite where there is no card, so that it is known to be right before it meets one.
Left aside there is what asks for the `card` fixture: what only CUDA has, such as the memory that torch allocated.

dlrun is driven by its command line, inside this process where nothing speaks against it, since a process of its own
costs seconds of imports. The few modules that tests reach into are imported here and nowhere else, by `inner`.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.card import DEVICE, QUIET, Run, located, start
from support.commands import Outcome

HERE = Path(__file__).parent


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
    from dlrun.checks.gradient import doubles
    from dlrun.checks.smaller import smaller_side
    from dlrun.config.compose import compose
    from dlrun.console import Screen
    from dlrun.data.batches import Batch
    from dlrun.training import checkpoint, diagnostics, loop, memory
    from dlrun.training.experiment import build
    from dlrun.training.objective import prepared

    return SimpleNamespace(
        compose=compose,
        build=build,
        Batch=Batch,
        step=lambda exp, x, y, index: loop.step(exp, Batch(x, y, index)),
        scores=loop.scores,
        predict=loop.predict,
        train_epoch=loop.train_epoch,
        State=checkpoint.State,
        Watch=diagnostics.Watch,
        Screen=Screen,
        doubled=doubles.doubled,
        float64=doubles.float64,
        out_of_memory=memory.out_of_memory,
        prepared=prepared,
        smaller_side=smaller_side,
    )


@pytest.fixture
def built(inner: SimpleNamespace, arrays: Path) -> Callable[..., Any]:
    """Build what `dlrun train WORDS` trains: digits, or the arrays with `dataset=arrays`."""

    def build(*words: str, where: str = DEVICE) -> Any:
        return inner.build(inner.compose(f"trainer.device={where}", *QUIET, *located(words, arrays)))

    return build


@pytest.fixture
def train(dlrun: Callable[..., Outcome], arrays: Path, here: Path) -> Callable[..., Run]:
    """Run `dlrun train WORDS` on the device, in this process; it must end with `code`."""

    def call(*words: str, folder: str = "run", code: int = 0, where: str = DEVICE) -> Run:
        given = {word.partition("=")[0] for word in words}
        quiet = [word for word in QUIET if word.partition("=")[0] not in given]
        asked = (f"run.dir={folder}", f"trainer.device={where}", *quiet, *located(words, arrays))
        outcome = dlrun("train", *asked)
        assert outcome.code == code, outcome.out + outcome.err
        return Run(here / folder, outcome)

    return call


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
