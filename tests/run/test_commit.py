"""The commit in result.json is what `git describe --always --dirty` prints, and nothing of the repository runs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.run.commit import commit
from support.stored import write

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git to make repositories")
WHO = ("-c", "user.email=a@b", "-c", "user.name=a", "-c", "commit.gpgsign=false", "-c", "maintenance.auto=false")


def git(place: Path, *words: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *WHO, *words], cwd=place, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def same(place: Path) -> str:
    """What Git and dlrun agree on."""
    expected = git(place, "describe", "--always", "--dirty", "--abbrev=12")
    assert commit(place) == expected
    return expected


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main", "r")
    place = tmp_path / "r"
    for name in ("a.py", "a/b.py", "a-b.py", "a/c/d.txt", "z"):
        write(place / name, name)
    (place / "link").symlink_to("z")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "one")
    return place


def test_states_of_a_working_folder(repository: Path) -> None:
    def touched() -> None:
        os.utime(repository / "z", ns=(1, 1))

    def edited() -> None:
        write(repository / "z", "other")

    def restored() -> None:
        write(repository / "z", "z")

    def staged() -> None:
        write(repository / "new.py", "")
        git(repository, "add", "new.py")

    def committed() -> None:
        git(repository, "commit", "-q", "-m", "two")

    def untracked() -> None:
        write(repository / "notes", "")

    def linked() -> None:
        (repository / "link").unlink()
        (repository / "link").symlink_to("a.py")

    def unlinked() -> None:
        git(repository, "checkout", "-q", "--", "link")

    def removed() -> None:
        git(repository, "rm", "-q", "a/b.py")

    def detached() -> None:
        git(repository, "commit", "-q", "-m", "three")
        git(repository, "checkout", "-q", "HEAD~1")

    assert not same(repository).endswith("dirty")
    steps: list[tuple[Callable[[], None], bool]] = [(touched, False), (edited, True), (restored, False)]
    steps += [(staged, True), (committed, False), (untracked, False), (linked, True), (unlinked, False)]
    steps += [(removed, True), (detached, False)]
    names = set()
    for step, dirty in steps:
        step()
        found = same(repository)
        assert found.endswith("-dirty") == dirty, step
        names.add(found)
    assert len({name[:12] for name in names}) == 2


def test_packs_worktrees_and_other_indexes(repository: Path, tmp_path: Path) -> None:
    for number in range(8):
        write(repository / "z", f"{number}\n" * 50)
        git(repository, "commit", "-q", "-a", "-m", f"a long message that makes a delta worth it {number}" * 20)
    git(repository, "gc", "-q", "--aggressive")
    assert not list((repository / ".git/objects").glob("[0-9a-f][0-9a-f]/*"))
    clean = same(repository)
    for version in ("4", "3", "2"):
        git(repository, "update-index", "--index-version", version)
        assert same(repository) == clean
    git(repository, "checkout", "-q", "HEAD~3")
    assert same(repository) != clean
    git(repository, "worktree", "add", "-q", str(tmp_path / "tree"), "main")
    assert same(tmp_path / "tree") == same(tmp_path / "tree" / "a") == clean
    git(tmp_path, "clone", "-q", "--shared", "r", "borrowed")
    same(tmp_path / "borrowed")
    git(repository, "update-index", "--split-index")
    assert str(commit(repository)).startswith(git(repository, "rev-parse", "HEAD")[:12])


def test_what_is_no_repository(tmp_path: Path, repository: Path) -> None:
    assert commit(tmp_path) is None
    for name in ("HEAD", "index", "packed-refs"):
        file, before = repository / ".git" / name, (repository / ".git/HEAD").read_bytes()
        kept = file.read_bytes() if file.exists() else b""
        for content in (b"", b"ref: refs/../../x", b"ref: HEAD", b"\xff" * 40, kept[:50], before * 3):
            file.write_bytes(content)
            commit(repository)  # no exception
        file.write_bytes(kept)
    (repository / ".git/HEAD").unlink()
    os.mkfifo(repository / ".git/HEAD")
    assert commit(repository) is None


def test_files_that_a_repository_names_are_its_own(repository: Path, tmp_path: Path) -> None:
    """Neither a reference nor a tracked file leads out of it."""
    place, name = repository / ".git", git(repository, "rev-parse", "HEAD")
    write(tmp_path / "secret", "a" * 40)
    for reference in ("refs/../../../secret", "../../secret", str(tmp_path / "secret"), "refs/heads/loop"):
        write(place / "refs/heads/loop", "ref: refs/heads/loop")
        write(place / "HEAD", f"ref: {reference}")
        assert commit(repository) is None
    write(place / "HEAD", name)
    index = (place / "index").read_bytes()
    for path in (b"../sec", b"/a.py/", b"x/../x"):
        (place / "index").write_bytes(index.replace(b"a-b.py", path))
        assert commit(repository) == name[:12]  # the index is not compared


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["dlrun.run.commit"]
    write(tmp_path / "file", "x" * 11)
    for file, reason in ((tmp_path / "file", "large"), (Path("/dev/zero"), "regular")):
        with pytest.raises(ValueError, match=reason):
            module._bytes(file, 10)
    with pytest.raises(ValueError, match="index"):
        module._entries(struct.pack(">4sII", b"DIRC", 2, 500_001), 20)
    monkeypatch.setattr(module, "BLOB", 100_000)
    assert len(module._inflated(zlib.compress(bytes(1 << 20)))) == 100_000
    base, copied = bytes(1 << 16), b"\xf0\x00\x00\x01"  # 65,536 bytes from the start
    assert len(module._patched(base, b"\0\0" + copied * 50)) < 300_000


def test_a_delta_on_itself_and_a_store_that_borrows_from_itself_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = sys.modules["dlrun.run.commit"], b"\1" * 20
    read = []

    def counted(file: Path, limit: int, real: Callable[..., bytes] = module._bytes) -> bytes:
        read.append(file)
        return real(file, limit)

    monkeypatch.setattr(module, "_bytes", counted)
    table = struct.pack(">256I", 0, *([1] * 255))
    index = b"\xfftOc\0\0\0\2" + table + name + bytes(4) + struct.pack(">I", 12) + bytes(40)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/a.idx").write_bytes(index)
    (tmp_path / "pack/a.pack").write_bytes(bytes(12) + b"\x70" + name + zlib.compress(b"\0\0"))
    with pytest.raises(ValueError, match="deltas"):
        module._Objects(tmp_path, 20).read(name)
    write(tmp_path / "info/alternates", ".\n")
    with pytest.raises(KeyError):
        module._Objects(tmp_path, 20).read(b"\2" * 20)
    assert len(read) < 1000


def test_nothing_of_the_repository_runs(repository: Path, tmp_path: Path) -> None:
    mark = f"touch {tmp_path / 'ran'}"
    write(repository / ".gitattributes", "* filter=x\n")
    for key in (
        "filter.x.clean",
        "filter.x.process",
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "diff.external",
    ):
        git(repository, "config", key, mark)
    for name in ("post-index-change", "fsmonitor-watchman", "post-checkout"):
        write(repository / ".git/hooks" / name, f"#!/bin/sh\n{mark}\n").chmod(0o755)
    write(repository / "z", "y")
    os.utime(repository / "z", ns=(1, 1))
    assert str(commit(repository)).endswith("-dirty")
    assert not (tmp_path / "ran").exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert (tmp_path / "ran").exists()  # the trap is one
