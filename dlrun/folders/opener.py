"""Opening files beneath a run, sweep, ensemble or cache folder, which may have come from somebody else (every verb).

The folder is the user's word: it may be a link. Beneath it no link is followed, in no part of a name: a `log.txt` that
leads to another file would be written there. Only regular files are opened, and opening never waits: a pipe would stop
every verb. What is appended to has one name: with a second one, elsewhere, it is somebody else's file.

The folders on the way are held open, so that nobody can replace one in between. Systems that cannot do that look at
each part of the name first. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dlrun.errors import UserError

__all__ = [
    "Unreadable",
    "appendable",
    "in_folder",
    "is_regular",
    "limit",
    "names",
    "open_beneath",
    "opened",
    "read",
    "read_text",
    "real_folder",
    "remove",
    "remove_unlocked",
    "write_handle",
]

MIB = 1 << 20
# bytes, at least ten times what a large run writes; the time to read one stays below 20 s
LIMITS = {
    "result.json": 16 * MIB,
    "config.yaml": MIB,
    "sweep.yaml": 2 * MIB,
    "ensemble.yaml": 2 * MIB,
    "metrics.csv": 16 * MIB,
    "stop": 4096,
    ".owner": 4096,
    "report.html": 512 * MIB,
    "study.journal": 256 * MIB,
}
ENDINGS = {".csv": 256 * MIB, ".json": 16 * MIB, ".npz": 64 << 30, ".pt": 256 << 30, ".yaml": MIB, ".py": 16 * MIB}
LARGEST = 1 << 40  # packs of a cache, which are mapped
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
FLAGS = getattr(os, "O_CLOEXEC", 0) | NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
ATTEMPTS = 20  # to make a file that no other process takes for a leftover; each second one may find the last one
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
HELD = bool(NO_LINK) and os.open in os.supports_dir_fd  # whether this system opens names beneath an open folder
KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Unreadable(UserError):
    """A file of a folder is not what dlrun writes; `reason` names it without its folder."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.reason = f"{os.path.basename(file)}: {reason}"


def limit(name: str) -> int:
    """Return the bytes that a file of this name may have."""
    last = name.rpartition("/")[2]
    return LIMITS.get(last) or ENDINGS.get(os.path.splitext(last)[1]) or LARGEST


@contextlib.contextmanager
def in_folder(folder: Path | str, name: str) -> Iterator[tuple[int | None, str]]:
    """Yield the open folder that `name` lies in, beneath `folder`, and the last part of the name.

    On systems without open folders, None and the whole path. Raises Unreadable if a part of the name is a link or leads
    out of the folder, and OSError.
    """
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise Unreadable(f"{folder}/{name}", "expected a name beneath this folder")
    if not HELD:
        _without_links(folder, parts[:-1])
        yield None, f"{folder}/{name}"
        return
    handle = os.open(folder, FOLDER)
    try:
        for depth, part in enumerate(parts[:-1]):
            try:
                inner = os.open(part, FOLDER | NO_LINK, dir_fd=handle)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                    where = f"{folder}/{'/'.join(parts[: depth + 1])}"
                    raise Unreadable(where, f"expected a folder, found {_kind(os.lstat(where).st_mode)}") from None
                raise
            os.close(handle)
            handle = inner
        yield handle, parts[-1]
    finally:
        os.close(handle)


def _without_links(folder: Path | str, parts: list[str]) -> None:
    """Raise Unreadable if a part of a name beneath a folder is a link."""
    where = str(folder)
    for part in parts:
        where = f"{where}/{part}"
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(where).st_mode):
                raise Unreadable(where, "expected a file or folder of this run, found a link")


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "a file")


def open_beneath(folder: Path | str, name: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
    """Open a regular file beneath a folder and return its descriptor.

    Raises OSError, and Unreadable for a link, a pipe, a device or a folder.
    """
    path = f"{folder}/{name}"
    try:
        if HELD and "/" not in name and name not in ("", ".", ".."):
            handle = os.open(path, flags | FLAGS, mode)
        else:
            with in_folder(folder, name) as (at, last):
                if at is None:
                    _refuse(path)
                handle = os.open(last, flags | FLAGS, mode, dir_fd=at)
    except FileNotFoundError:
        raise
    except OSError:
        _refuse(path)
        raise
    except ValueError as error:  # a NUL in a name
        raise Unreadable(repr(path), str(error)) from error
    if not stat.S_ISREG(kind := os.fstat(handle).st_mode):
        os.close(handle)
        raise Unreadable(path, f"expected a file, found {_kind(kind)}")
    return handle


def _refuse(path: str) -> None:
    """Raise Unreadable if what was not opened is no regular file: the system's error does not say what it is."""
    with contextlib.suppress(OSError):
        kind = os.lstat(path).st_mode
        if not stat.S_ISREG(kind):
            raise Unreadable(path, f"expected a file, found {_kind(kind)}")


def is_regular(folder: Path | str, name: str) -> bool:
    """Whether a folder has a regular file of this name: no link, no pipe."""
    try:
        return stat.S_ISREG(os.lstat(f"{folder}/{name}").st_mode)
    except (OSError, ValueError):
        return False


def read(folder: Path | str, name: str, most: int | None = None) -> bytes:
    """Return the content of a file beneath a folder.

    Raises FileNotFoundError, and Unreadable as `open_beneath` does and for a file of more than `most` bytes (by
    default those of its kind).
    """
    handle = _to_read(folder, name)
    try:
        size = os.fstat(handle).st_size
        most = limit(name) if most is None else most
        if size > most:
            raise Unreadable(f"{folder}/{name}", f"expected at most {most:,} bytes, found {size:,}")
        data = os.read(handle, size + 1)
        if len(data) == size:
            return data
        parts, there = [data], len(data)  # it is changing, or too large for one call
        while there <= most and (data := os.read(handle, 16 * MIB)):
            parts.append(data)
            there += len(data)
        if there > most:
            raise Unreadable(f"{folder}/{name}", f"expected at most {most:,} bytes, found more")
        return b"".join(parts)
    except OSError as error:
        raise Unreadable(f"{folder}/{name}", error.strerror or str(error)) from error
    finally:
        os.close(handle)


def _to_read(folder: Path | str, name: str) -> int:
    try:
        return open_beneath(folder, name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{folder}/{name}", error.strerror or str(error)) from error


def read_text(folder: Path | str, name: str, most: int | None = None) -> str:
    """Return the text of a file beneath a folder. Raises as `read` does, and Unreadable if it is not UTF-8."""
    data = read(folder, name, most)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{folder}/{name}", f"expected UTF-8, found byte {data[error.start]:#04x}") from None


def opened(folder: Path | str, name: str) -> BinaryIO:
    """Open a file beneath a folder to read it in parts. Raises as `read` does."""
    handle = _to_read(folder, name)
    if (size := os.fstat(handle).st_size) > limit(name):
        os.close(handle)
        raise Unreadable(f"{folder}/{name}", f"expected at most {limit(name):,} bytes, found {size:,}")
    return os.fdopen(handle, "rb")


def appendable(folder: Path | str, name: str) -> int:
    """Open a file beneath a folder to append to it, or a new one; return its descriptor.

    A file with a second name is copied first and the copy takes the name: a backup made of hard links stays as it was,
    and so does somebody else's file. Raises Unreadable for what is no regular file, and OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    handle = open_beneath(folder, name, flags)
    if os.fstat(handle).st_nlink < 2:
        return handle
    os.close(handle)
    data = read(folder, name)
    with in_folder(folder, name) as (at, last):
        handle, temporary = write_handle(at, last)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, last, src_dir_fd=at, dst_dir_fd=at)
    return open_beneath(folder, name, flags)


def write_handle(at: int | None, last: str) -> tuple[int, str]:
    """Make the temporary file for a name in an open folder; return its descriptor and its name. Raises OSError.

    What is there under that name was left by a process that was killed, or planted: it is never opened. As long as the
    file is open it is locked, which tells it from one whose process is gone; without a lock where none can be had.
    """
    head, tail = os.path.split(last)
    temporary = os.path.join(head, f".{tail}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS
    for attempt in range(ATTEMPTS):
        try:
            handle = os.open(temporary, flags, 0o666, dir_fd=at)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                os.unlink(temporary, dir_fd=at)
            continue
        taken = False  # for a leftover, by another process that is about to remove it or has done so
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = True
        except OSError:
            pass  # a file system without locks
        if os.fstat(handle).st_nlink and (not taken or attempt >= ATTEMPTS - 2):
            return handle, temporary
        os.close(handle)
    raise OSError(errno.EBUSY, "another process removes it again and again", temporary)


def remove_unlocked(folder: Path | str, name: str) -> None:
    """Delete a file beneath a folder unless a process, here or on another machine, has it locked."""
    try:
        handle = open_beneath(folder, name, os.O_RDWR)  # over a network, only who may write may lock
    except (OSError, Unreadable):
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(folder, name)
    except OSError:
        return
    finally:
        os.close(handle)


def names(path: Path | str, folder: str) -> list[str]:
    """Return the names of the regular files of a folder beneath another, sorted; none without such a folder.

    Its own are those of "". Raises Unreadable if it is a link.
    """
    try:
        with in_folder(path, f"{folder}/x".lstrip("/")) as (at, last):
            entries = os.scandir(os.path.dirname(last) if at is None else at)
            with entries:
                return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return []


def remove(folder: Path | str, name: str) -> bool:
    """Delete a name beneath a folder, never what it leads to; return whether there was one. Raises OSError."""
    with in_folder(folder, name) as (at, last):
        try:
            os.unlink(last, dir_fd=at)
        except FileNotFoundError:
            return False
    return True


def real_folder(folder: Path | str, name: str) -> Path:
    """Return the folder `name` beneath a folder, made if needed. Raises Unreadable if it is a link, and OSError."""
    with in_folder(folder, name) as (at, last):
        with contextlib.suppress(FileExistsError):
            os.mkdir(last, dir_fd=at)
        kind = os.stat(last, dir_fd=at, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(kind):
            raise Unreadable(f"{folder}/{name}", f"expected a folder, found {_kind(kind)}")
    return Path(folder, name)
