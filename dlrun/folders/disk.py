"""Files and folders that survive a kill: atomic writes, and locks that end with the process that holds them.

Behind every run folder (`dlrun train`, `dlrun resume`). Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
import stat
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from dlrun.errors import Surroundings, UserError
from dlrun.folders import lease
from dlrun.folders.opener import (
    Unreadable,
    appendable,
    in_folder,
    names,
    open_beneath,
    read,
    remove_unlocked,
    write_handle,
)

__all__ = ["LEFTOVER", "OWNER", "append", "has_file", "holds", "lock", "make_folder", "owned", "remove_leftovers"]
__all__ += ["replacing", "sign", "token", "unlock", "write_atomic"]

OWNER = ".owner"
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # a file that a kill left unfinished, as `replacing` names it
_held: dict[int, str] = {}  # locks of this process, each with the token of its lease


def write_atomic(
    path: Path, data: bytes | memoryview, also: Sequence[Path] = (), *, within: Path | None = None
) -> None:
    """Replace a file by `data` so that a kill at any moment leaves the old content or the new, never a part.

    The files in `also`, of the same folder, are replaced first by the same data, which is written once if the file
    system has hard links. No link is followed beneath `within`, by default the file's folder. Raises UserError naming
    the file when the disk is full or may not be written.
    """
    with replacing(path, also, within=within) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, also: Sequence[Path] = (), *, within: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends and is removed if an exception ends it.

    A link of this name is replaced, not followed. Raises UserError naming the file when the disk is full or may not be
    written, or if it is a device.
    """
    if _is_special(path):  # root may rename a file over /dev/null
        raise UserError(f"{path}: expected the name of a file, found a device or a pipe")
    old = "; the old file is intact" if path.exists() else ""
    try:
        with _temporary(path, within or path.parent) as (at, last, temporary, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            for other in also:
                _linked(at, temporary, other)
            os.replace(temporary, last, src_dir_fd=at, dst_dir_fd=at)
            _sync_folder(at, path.parent)
    except OSError as error:
        raise Surroundings(f"{path}: cannot write: {error.strerror}{old}") from error


@contextlib.contextmanager
def _temporary(path: Path, within: Path) -> Iterator[tuple[int | None, str, str, BinaryIO]]:
    """The open folder of a file beneath another, the file's name there, a temporary file's name, and that file."""
    with in_folder(within, path.relative_to(within).as_posix()) as (at, last):
        handle, temporary = write_handle(at, last)
        try:
            with os.fdopen(handle, "wb") as file:
                yield at, last, temporary, file
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=at)
            raise


def _is_special(path: Path) -> bool:
    """Whether a device, pipe or socket has this name, also through links."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _linked(at: int | None, source: str, path: Path) -> None:
    """Replace a file by a hard link to `source`, of the same open folder, or by a copy without hard links."""
    last = path.name if at is not None else str(path)
    temporary = os.path.join(os.path.dirname(last), f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=at)
    try:
        os.link(source, temporary, src_dir_fd=at, dst_dir_fd=at)
    except OSError:
        with os.fdopen(os.open(source, os.O_RDONLY, dir_fd=at), "rb") as file:
            write_atomic(path, file.read())
    else:
        os.replace(temporary, last, src_dir_fd=at, dst_dir_fd=at)


def _sync_folder(at: int | None, folder: Path) -> None:
    # without this a power failure may undo a rename, although the file's content was synced
    handle = os.open(folder, os.O_RDONLY) if at is None else at
    try:
        os.fsync(handle)
    finally:
        if at is None:
            os.close(handle)


def remove_leftovers(folder: Path, *inside: str) -> None:
    """Remove what killed processes left unfinished in a folder of dlrun, and in folders `inside`.

    What a process still writes stays. Raises Unreadable if one of the folders is a link.
    """
    for place in ("", *inside):
        for name in names(folder, place):
            if LEFTOVER.fullmatch(name):
                remove_unlocked(folder, f"{place}/{name}".lstrip("/"))


def append(path: Path, line: bytes) -> None:
    """Append a line and flush it to the disk; on failure raises UserError and leaves the file unchanged."""
    try:
        handle = appendable(path.parent, path.name)
        try:
            # one call: a reader never sees half a line, unless the disk fills up while it is written
            before = os.fstat(handle).st_size
            if os.write(handle, line) < len(line):
                os.ftruncate(handle, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise Surroundings(f"{path}: cannot write: {error.strerror}; `dlrun resume` continues from here") from error


def make_folder(path: Path, *, new: bool = False) -> None:
    """Make a folder and those above it.

    Raises UserError when it cannot be made, FileExistsError when it must be `new` and is not.
    """
    try:
        path.mkdir(parents=True, exist_ok=not new)
    except FileExistsError:
        if path.is_dir():
            raise
        raise UserError(f"{path} is a file; expected a folder") from None
    except NotADirectoryError:
        raise UserError(f"{path}: cannot make this folder: a parent of it is a file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot make this folder: {error.strerror}") from error


def has_file(folder: Path | str, name: str) -> bool:
    """Whether a folder has a file, or a link to one. Raises OSError if that may not be looked at."""
    try:
        return stat.S_ISREG(os.stat(f"{folder}/{name}").st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        return False
    except ValueError:  # a NUL in a name
        return False


def lock(folder: Path, otherwise: str) -> int:
    """Lock a folder for this process until `unlock` or the end of the process, and write host and pid into it.

    Raises UserError that names the process that holds the lock and ends with what to do `otherwise`, and Surroundings
    if the file system has no locks.
    """
    name = folder / OWNER
    try:
        handle = open_beneath(folder, OWNER, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"{folder}: cannot write here: {error.strerror}") from error
    if os.fstat(handle).st_nlink > 1:  # its content is replaced in place
        os.close(handle)
        raise Unreadable(name, f"this file has a second name elsewhere; delete it: rm {shlex.quote(str(name))}")
    for attempt in range(3):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if lease.lockless(error):
                os.close(handle)
                what = f"this file system has no locks ({error.strerror}), which keep two processes apart"
                raise Surroundings(f"{folder}: {what}; choose a folder on another one, such as a local disk") from error
            if attempt < 2:
                time.sleep(0.05)  # `owned` holds the lock for a moment
    else:
        os.close(handle)
        raise UserError(f"{folder} is in use by {_owner(name)}; {otherwise}")
    if lease.alive(_lease(handle), partial(sign, folder)):
        os.close(handle)
        why = "although the file system gave its lock to this one too"
        raise UserError(f"{folder} is in use by {_owner(name)}, {why}; {otherwise}")
    about = lease.record()
    try:
        os.ftruncate(handle, 0)
        if os.pwrite(handle, text := json.dumps(about).encode(), 0) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        os.close(handle)
        raise Surroundings(f"{name}: cannot write: {error.strerror}") from error
    _held[handle] = str(about["token"])
    lease.beat(_held)
    return handle


def _lease(handle: int) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return lease.parsed(os.pread(handle, 4096, 0))
    return {}


def sign(folder: Path) -> tuple[str, float]:
    """Return the token of a folder's lock, "" if it was released, and when its holder last renewed it.

    The file is opened each time, since only then a network file system asks its server.
    """
    with contextlib.suppress(OSError, UserError), os.fdopen(open_beneath(folder, OWNER), "rb") as file:
        about = _lease(file.fileno())
        return "" if about.get("released") else about.get("token", ""), os.fstat(file.fileno()).st_mtime
    return "", 0.0


def token(folder: Path) -> str:
    """Return a word that changes each time that a folder is locked; "" if it never was."""
    with contextlib.suppress(OSError, UserError), os.fdopen(open_beneath(folder, OWNER), "rb") as file:
        return str(_lease(file.fileno()).get("token", ""))
    return ""


def holds(handle: int, folder: Path) -> None:
    """Raise Surroundings if another process has taken the folder, because its file system gives a lock twice."""
    if (word := token(folder)) and word != _held.get(handle):
        who = _owner(folder / OWNER)
        raise Surroundings(f"{folder} was taken over by {who}: its file system gives a lock twice; end one of them")


def unlock(handle: int) -> None:
    """Release the lock of a folder."""
    word, about = _held.pop(handle), _lease(handle)
    if about.get("token") == word:  # nobody is to wait for a sign of this process
        with contextlib.suppress(OSError):
            os.pwrite(handle, json.dumps(about | {"released": True}).encode(), 0)
    os.close(handle)


def _unlock_child() -> None:
    # a forked worker that outlives this process must not keep its folders locked
    while _held:
        os.close(_held.popitem()[0])


os.register_at_fork(after_in_child=_unlock_child)


def _owner(name: Path) -> str:
    for _ in range(20):
        # host and pid are written just after the lock was taken
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError, UserError):
            owner = json.loads(read(name.parent, OWNER))
            return f"process {owner['pid']} on {owner['host']}"
        time.sleep(0.05)
    return "another process"


def owned(folder: Path) -> bool:
    """Whether a living process holds the lock of a folder."""
    try:
        handle = open_beneath(folder, OWNER)
    except (OSError, UserError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return not lease.lockless(error)
    else:
        return lease.recent(_lease(handle), os.fstat(handle).st_mtime)
    finally:
        os.close(handle)
