"""What the tests of the outer layer share: dlrun called in this process, or in one without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "trainer.epochs=1",
    "dataset.limit=100",
    "check=none",
    "model.width=4",
    "trainer.threads=1",
    "trainer.report=false",
)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images of tests stay among the files of tests, in their child processes too."""
    os.environ["DLRUN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _hears_interrupts() -> None:
    """A script that runs the tests in its background lets them ignore Ctrl-C, and what they start would as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with nothing of this process leaking into it or out of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLRUN_CONF", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


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


APART = """
import contextlib, io, json, sys
from dlrun import cli
found = []
for words in json.load(sys.stdin):
    sys.argv = ["dlrun", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ending:
            code = ending.code
        except BaseException as error:
            code = repr(error)
    found.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""


def without_torch(commands: list[tuple[str, ...]], folder: Path, **env: str) -> list[Outcome]:
    """Run commands one after the other in a fresh process; fails where one of them imported torch."""
    clean = {k: v for k, v in os.environ.items() if k != "DLRUN_CONF"}
    done = subprocess.run(
        [sys.executable, "-c", APART],
        input=json.dumps(commands),
        cwd=folder,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    outcomes = []
    for words, (code, out, err, torch) in zip(commands, json.loads(done.stdout), strict=True):
        assert not torch, f"dlrun {' '.join(words)} imported torch"
        outcomes.append(Outcome(code, out, err))
    return outcomes


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_run(path: Path, config: dict[str, Any] | None = None, **result: Any) -> Path:
    """Write a run folder as a finished run leaves it, without training one."""
    write(path / "config.yaml", "seed: 1\n")
    if config is not None:
        result["config"] = config
    write(path / "result.json", json.dumps(result))
    return path
