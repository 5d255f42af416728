"""The files in a cache folder: which are dlrun's, who is writing them, and which leave first (`dataset.cache_gb=20`).

The folder may be one of the user's own. A file is dlrun's if its name is a digest with one of our endings and its
first bytes are our mark. Files of version 1, which had no mark, are known by their neighbours of the same name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dlrun.data.packs import MARK, stored, unlinked

__all__ = ["alone", "keep", "locked", "make_room"]

NAMED = re.compile(r"([0-9a-f]{32})\.(pack|index|hashes|members|hashes\.\d+\.tmp|lock|pixels|json|tmp)")
POLL = 0.1  # seconds between two tries to take a lock
SILENT = 1.0  # seconds of waiting without a message
REPEATED = 60.0  # seconds between two messages


@contextmanager
def locked(path: Path, doing: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file, which says who is `doing` what, and delete it; yields False if it is held, without `wait`.

    While it waits it says so every minute; the lock of a process that died is free. Raises OSError.
    """
    handle = _taken(path, wait)
    if handle is None:
        yield False
        return
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "doing": doing}
        os.truncate(handle, 0)
        os.pwrite(handle, MARK + json.dumps(owner).encode(), 0)
        yield True
    finally:
        with suppress(OSError):  # while it is held: whoever waits for this file sees that it is gone
            path.unlink()
        os.close(handle)


def _taken(path: Path, wait: bool) -> int | None:
    """Lock a file that has this name; None if another process holds it."""
    started, said = time.monotonic(), -REPEATED
    while True:
        handle = unlinked(str(path), os.O_RDWR | os.O_CREAT)
        try:
            while not _locks(handle):
                if not wait:
                    os.close(handle)
                    return None
                if time.monotonic() - started > SILENT and time.monotonic() - said > REPEATED:
                    said = time.monotonic() if _reported(path, time.monotonic() - started) else said
                time.sleep(POLL)
            if (names := os.fstat(handle).st_nlink) == 1:
                return handle
            if names:  # its content is replaced in place
                raise OSError(None, "has a second name elsewhere; delete it", str(path))
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder has deleted it


def _locks(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reported(path: Path, waited: float) -> bool:
    """Print who holds a lock, and since when; False if the holder has not written it yet, at first."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(stored(path).removeprefix(MARK))
        at = time.strftime("%H:%M:%S", time.localtime(owner["since"]))
        who = f"process {owner['pid']} on {owner['host']}, which has been {owner['doing']} since {at}"
        _waiting(who, waited)
        return True
    if waited > REPEATED / 4:
        _waiting(f"another process, which holds {path}", waited)
    return waited > REPEATED / 4


def _waiting(who: str, waited: float) -> None:
    print(f"dlrun: waiting for {who}, for {waited:.0f} s now; dataset.cache=none does not wait", file=sys.stderr)


@dataclass(frozen=True)
class _Entry:
    """Files that are deleted together; `turn` sorts by kind, then by the time of the last use."""

    name: str
    paths: list[str]
    size: int
    turn: tuple[int, float]


def make_room(folder: Path, gigabytes: float, needed: int, keep: str) -> bool:
    """Delete what was not used for the longest time, until `needed` bytes more fit; return whether they do.

    What killed processes left is deleted first, tables of digests and of members last: they are small, and a dataset
    without one has to be read. The entry named `keep` stays, and so does what a process uses.
    """
    entries = _entries(folder)
    total = sum(entry.size for entry in entries) + needed
    for entry in sorted(entries, key=lambda entry: entry.turn):
        if total <= gigabytes * 1e9:
            break
        if entry.name != keep and _deleted(folder, entry):
            total -= entry.size
    return total <= gigabytes * 1e9


def keep(table: Path, gigabytes: float, content: bytes, doing: str) -> None:
    """Replace a table of a cache, unless another process does, or the cache has no room for it.

    Without it what it says is found out again, and a message about the cache follows: no error is raised.
    """
    if len(content) > gigabytes * 1e9:
        return
    temporary = table.with_suffix(".tmp")
    with suppress(OSError):
        table.parent.mkdir(parents=True, exist_ok=True)
        with locked(table.with_suffix(".lock"), doing, wait=False) as free:
            if not free or not make_room(table.parent, gigabytes, len(content), table.stem):
                return
            try:
                temporary.unlink(missing_ok=True)  # a link would be written through
                with open(temporary, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, table)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Keep other processes from mapping a pack, to delete it; yields False if one has it mapped."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", opener=unlinked))
        except FileNotFoundError:
            yield True
        else:
            yield _locks(file.fileno())


def _entries(folder: Path) -> list[_Entry]:
    groups: defaultdict[str, dict[str, os.DirEntry[str]]] = defaultdict(dict)
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        for file in found:
            if (named := NAMED.fullmatch(file.name)) and file.is_file(follow_symlinks=False):
                groups[named[1]][named[2]] = file
    entries = []
    for name, files in groups.items():
        ours = [ending for ending in files if _ours(name, ending, files)]
        left = [ending for ending in ours if ending.endswith("tmp")]
        for kind, endings in (
            (0, left),
            (2 if {"hashes", "members"} & {*ours} else 1, [one for one in ours if one not in left]),
        ):
            stats = [files[ending].stat(follow_symlinks=False) for ending in endings]
            if stats:
                turn = (kind, max(stat.st_mtime for stat in stats))
                paths = [files[ending].path for ending in endings]
                entries.append(_Entry(name, paths, sum(stat.st_size for stat in stats), turn))
    return entries


def _ours(name: str, ending: str, files: dict[str, os.DirEntry[str]]) -> bool:
    """Whether a file is dlrun's."""
    head, size = b"", -1
    with suppress(OSError), open(files[ending].path, "rb", opener=unlinked) as file:
        head, size = file.read(64), os.fstat(file.fileno()).st_size
    if head.startswith(MARK):
        return True
    match ending:  # version 1
        case "pixels" | "tmp":
            return any(beside in files and _ours(name, beside, files) for beside in ("json", "lock"))
        case "json":
            return head.startswith(f'{{"key": "{name}"'.encode())
        case "lock":
            return size == 0
        case "hashes":
            return head[:1] == b"1" and size % 32 == 1
        case _:
            return head[:1] == b"1"


def _deleted(folder: Path, entry: _Entry) -> bool:
    """Delete the files of an entry, unless a process uses them or this one may not delete them."""
    with suppress(OSError), ExitStack() as stack:
        free = stack.enter_context(locked(folder / f"{entry.name}.lock", "deleting", wait=False))
        if free and stack.enter_context(alone(folder / f"{entry.name}.pack")):
            for path in entry.paths:
                if not path.endswith(".lock"):  # which `locked` deletes last
                    Path(path).unlink(missing_ok=True)
            return True
    return False
