"""Folders on file systems whose locks do not work: nobody is shut out for ever, and no two resume one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.errors import Surroundings, UserError
from dlrun.folders import disk, lease
from support import faults, machines
from support.commands import Outcome

HOLD = """
import sys, time
from pathlib import Path
from dlrun.folders import disk, lease
lease.BEAT = 0.2
disk.lock(Path("run"), "wait")
print("held", flush=True)
time.sleep(60)
"""
TAKE = """
from pathlib import Path
from dlrun.errors import UserError
from dlrun.folders import disk, lease
lease.BEAT, lease.STALE = 0.2, 1.0
try:
    disk.lock(Path("run"), "wait")
    print("taken")
except UserError as error:
    print(error)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return faults.built(tmp_path)


def process(code: str, folder: Path, library: Path, host: str = "", flock: str = "yes") -> subprocess.Popen[str]:
    """Python on another host, if that can be had: with a name of its own and in a network of its own."""
    words = [sys.executable, "-c", code]
    if host:
        words = [*machines.on(host), *words]
    env = {**os.environ, "LD_PRELOAD": str(library), "FLOCK": flock}
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_lock_that_always_says_yes_is_found_out_on_two_hosts(tmp_path: Path, library: Path) -> None:
    machines.required()
    holder = process(HOLD, tmp_path, library, "hosta")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    out, err = process(TAKE, tmp_path, library, "hostb").communicate(timeout=60)
    assert "hosta" in out
    assert "Traceback" not in err
    holder.kill()
    holder.communicate()
    out, err = process(TAKE, tmp_path, library, "hostb").communicate(timeout=60)
    assert out == "taken\n"
    assert "hosta" in err  # whom it waited for


def test_no_locks_are_said_to_be_none(tmp_path: Path, library: Path) -> None:
    out, err = process(TAKE, tmp_path, library, flock="none").communicate(timeout=60)
    assert os.strerror(37) in out
    assert "in use" not in out
    assert err == ""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "STALE", 0.4)


def leased(folder: Path, **changes: object) -> Path:
    """A folder with the lease of a process that is not this one."""
    folder.mkdir(exist_ok=True)
    (folder / ".owner").write_text(json.dumps({**lease.record(), **changes}))
    return folder


ELSEWHERE = {"host": "elsewhere", "place": "another system", "pid": 7}


@pytest.mark.usefixtures("quick")
def test_a_holder_on_another_host_is_waited_for_and_replaced_when_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    handle = disk.lock(leased(tmp_path / "run", **ELSEWHERE), "wait")
    assert 0.3 < time.monotonic() - started < 5
    assert "process 7 on elsewhere" in capsys.readouterr().err
    disk.unlock(handle)
    started = time.monotonic()
    disk.unlock(disk.lock(tmp_path / "run", "wait"))  # released: nobody waits
    disk.unlock(disk.lock(leased(tmp_path / "run", **ELSEWHERE, released=True), "wait"))
    os.utime(leased(tmp_path / "run", **ELSEWHERE) / ".owner", (0, 0))  # long ago
    disk.unlock(disk.lock(tmp_path / "run", "wait"))
    assert time.monotonic() - started < 0.3
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("quick")
def test_a_holder_on_another_host_that_gives_signs_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leased(tmp_path / "run", **ELSEWHERE)
    sleep = time.sleep

    def renewed(seconds: float) -> None:
        os.utime(folder / ".owner")
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", renewed)
    assert disk.owned(folder)
    with pytest.raises(UserError, match="process 7 on elsewhere") as refused:
        disk.lock(folder, "choose another")
    assert refused.value.code == 2
    assert json.loads((folder / ".owner").read_bytes())["host"] == "elsewhere"


def test_a_dead_process_of_this_host_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    folder = leased(tmp_path / "run", pid=2**22 + 1)
    assert not disk.owned(folder)
    disk.unlock(disk.lock(folder, "wait"))
    assert time.monotonic() - started < 0.3


def test_a_run_that_was_taken_over_writes_no_row(tmp_path: Path) -> None:
    from dlrun.folders.run import claim

    run = claim(str(tmp_path / "run"), "test")
    run.append_metrics({"epoch": 1})
    leased(tmp_path / "run", **ELSEWHERE)
    with pytest.raises(Surroundings, match="process 7 on elsewhere"):
        run.append_metrics({"epoch": 2})
    run.release()
    assert (tmp_path / "run/metrics.csv").read_text() == "epoch\n1\n"
    assert json.loads((tmp_path / "run/.owner").read_bytes())["host"] == "elsewhere"  # and is not said to have ended


def test_a_held_lock_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    lease._renewing.clear()
    handle = disk.lock(leased(tmp_path / "run", released=True), "wait")
    os.utime(tmp_path / "run/.owner", (0, 0))
    until = time.monotonic() + 10
    while not (tmp_path / "run/.owner").stat().st_mtime and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / "run/.owner").stat().st_mtime > 0
    disk.unlock(handle)


def test_a_file_system_without_locks_is_said_to_have_none(
    tmp_path: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    done = dlrun("train", "run.dir=run", "check=none")
    assert done.code == 1
    assert os.strerror(errno.ENOLCK) in done.err
    assert "in use" not in done.err
    assert len(done.err.splitlines()) == 1
