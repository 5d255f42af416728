"""What the tests of the outer layer share: dlrun called in this process, or in one without torch."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: two processes of two threads wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import gc
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import warm
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


gc.set_threshold(50_000)  # imports make millions of objects that all stay; dlrun.cli does the same


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)` each n-th case is fast; `pytest -m slow` runs the others."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What the modules imported is never looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _warm_processes() -> Iterator[None]:
    yield
    warm.close()


@pytest.fixture(autouse=True, scope="session")
def _built_in_options_are_read_once() -> Iterator[None]:
    """Hydra takes a fifth of a second to read the same files again for each of a thousand tests."""
    from dlrun.config.compose import Composer, builtin_conf

    original, kept = Composer._read, {}

    def read(self: Composer, root: str, chosen: tuple[str, ...]) -> dict[str, Any]:
        folders = [s.path for s in self._loader.get_sources() if s.scheme() == "file" and Path(s.path).is_dir()]
        if folders != [str(builtin_conf())] or any("hydra.searchpath" in word for word in chosen):
            return original(self, root, chosen)
        if (root, chosen) not in kept:
            kept[root, chosen] = original(self, root, chosen)
        found = copy.deepcopy(kept[root, chosen])
        found["hydra"]["runtime"]["cwd"] = os.getcwd()
        return self._read_already.setdefault((root, *chosen), found)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Composer, "_read", read)
        yield


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
    """Run a command in this process, inside `here`; the workers of a sweep are processes that start at once."""
    from dlrun import cli
    from dlrun.search.launchers import pool

    monkeypatch.setattr(pool, "subprocess", warm.SUBPROCESS)

    def call(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dlrun", *words])
        capsys.readouterr()
        heard = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as ending:
            cli.main()
        signal.signal(signal.SIGINT, heard)
        said = capsys.readouterr()
        return Outcome(int(ending.value.code or 0), said.out, said.err)

    return call
