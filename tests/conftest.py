"""What the tests of the outer layer share: dlrun called in this process, or in one without torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.commands import Outcome
from support.moods import moody

__all__ = ["moody"]  # a fixture


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images of tests stay among the files of tests, in their child processes too."""
    os.environ["DLRUN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _hears_interrupts() -> None:
    """A script that runs the tests in its background lets them ignore Ctrl-C, and what they start would as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, with nothing of this process leaking into it or out of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLRUN_CONF", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def dlrun(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process, inside `here`."""
    from dlrun import cli

    def call(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dlrun", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        said = capsys.readouterr()
        return Outcome(int(ending.value.code or 0), said.out, said.err)

    return call
