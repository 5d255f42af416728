"""Atomic writes: a failure, an interrupt or a full disk leaves the old file and no temporary ones."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrun.errors import UserError
from dlrun.folders import disk, opener
from dlrun.folders.run import claim
from support.stored import write


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


def test_a_folder_that_cannot_be_written_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as root every folder can be written, so the system is made to refuse
    (here / "run").mkdir()
    refuse(monkeypatch, "open", errno.EROFS)
    with pytest.raises(UserError, match=f"^run: .*{os.strerror(errno.EROFS)}"):
        claim("run", "")
    refuse(monkeypatch, "mkdir", errno.EROFS)
    with pytest.raises(UserError, match=os.strerror(errno.EROFS)):
        claim("other", "")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    here: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = write(here / "result.json", "old")
    with monkeypatch.context() as patched:
        refuse(patched, call, errno.ENOSPC)
        with pytest.raises(UserError, match=rf"result.json: .*{os.strerror(errno.ENOSPC)}") as told:
            disk.write_atomic(path, b"new")
    assert told.value.code == 1
    assert path.read_text() == "old"
    assert [p.name for p in here.iterdir()] == ["result.json"]
    disk.write_atomic(path, b"new")
    assert path.read_text() == "new"


def test_what_is_written_is_on_the_disk_before_it_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def replaced(old: str, new: str, **folders: Any) -> None:
        steps.append("replace")
        replace(old, new, **folders)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    disk.write_atomic(here / "a", b"x")
    disk.append(here / "b", b"x")
    assert steps == ["file", "replace", "folder", "file"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from dlrun.folders import disk
from dlrun.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for write, name, size in ((disk.write_atomic, "big", 1000), (disk.append, "rows", 60)):
    try:
        write(Path(name), b"x" * size)
    except UserError as error:
        print(error)
"""


def test_a_full_disk_leaves_what_was_there(here: Path) -> None:
    write(here / "big", "old")
    write(here / "rows", "r" * 70)  # 30 bytes of 60 fit
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    big, rows = done.stdout.splitlines()
    assert (big.startswith("big: "), os.strerror(errno.EFBIG) in big) == (True, True)
    assert (rows.startswith("rows: "), os.strerror(errno.ENOSPC) in rows) == (True, True)
    assert (here / "big").read_text() == "old"
    assert (here / "rows").read_text() == "r" * 70
    assert sorted(p.name for p in here.iterdir()) == ["big", "rows"]


def test_an_interrupt_in_a_write_leaves_no_litter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        disk.write_atomic(here / "x", b"new")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_other_names_get_the_same_data_before_the_file_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    last, best = here / "last.pt", here / "best.pt"
    flushed = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(stat.S_ISREG(os.fstat(handle).st_mode)), real(handle))
    )
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    disk.write_atomic(last, b"one", also=[best])
    assert (last.read_bytes(), best.read_bytes()) == (b"one", b"one")
    assert sum(flushed) == (1 if links else 2)  # the data is flushed once where one file can have two names
    disk.write_atomic(last, b"two")
    assert (last.read_bytes(), best.read_bytes()) == (b"two", b"one")  # what is replaced is the name
    disk.write_atomic(last, b"three", also=[best])
    assert (last.read_bytes(), best.read_bytes()) == (b"three", b"three")
    assert sorted(os.listdir(here)) == ["best.pt", "last.pt"]


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path) -> None:
    """Root could rename a file over /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        with pytest.raises(UserError, match=name) as refused:
            disk.write_atomic(tmp_path / name, b"text")
        assert refused.value.code == 2
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    assert (tmp_path / "null").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["null", "pipe"]


def test_an_old_file_is_mentioned_only_if_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        disk.write_atomic(tmp_path / "no folder/a.csv", b"text")
    assert "intact" not in str(refused.value)
    assert "a.csv" in str(refused.value)


@pytest.mark.parametrize("moment", ["before it is removed", "after it was removed"])
def test_a_new_file_that_is_taken_for_a_leftover_is_made_again(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, theirs = fcntl.flock, list[int]()

    def flock(handle: int, how: int) -> None:
        if not theirs:  # another process has locked the file first
            (new,) = tmp_path.iterdir()
            theirs.append(os.open(new, os.O_RDWR))
            real(theirs[0], fcntl.LOCK_EX)
            if moment == "after it was removed":
                new.unlink()
                real(theirs[0], fcntl.LOCK_UN)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    handle, name = opener.write_handle(None, str(tmp_path / "a"))
    try:
        found = os.stat(name).st_ino
        assert found == os.fstat(handle).st_ino
        assert found != os.fstat(theirs[0]).st_ino
    finally:
        os.close(handle)
        os.close(theirs[0])


@pytest.mark.parametrize("left", [False, True])
def test_a_system_that_refuses_every_lock_does_not_stop_a_write(
    tmp_path: Path, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, how: int) -> None:
        raise BlockingIOError(errno.EAGAIN, "locked")

    monkeypatch.setattr(fcntl, "flock", flock)
    if left:
        (tmp_path / f".a.{os.getpid()}.tmp").write_text("of a killed process")
    disk.write_atomic(tmp_path / "a", b"text")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"text"
