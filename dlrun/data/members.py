"""Files inside of other files: members of a tar, rows of a table (`dlrun train dataset=shards dataset.urls=train.tar`).

A member has the part of a path's interface that reading images needs, so that both are decoded, hashed and named alike.
Nothing is unpacked, and no name of a member is ever opened.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["File", "Member", "Shard", "Stat", "TarMember"]


class Stat(NamedTuple):
    """What tells that content is the same: its size, and times and number of the file that holds it."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int

    @property
    def st_ctime(self) -> float:
        """The time of the last change in seconds."""
        return self.st_ctime_ns / 1e9


class Member(ABC):
    """One image inside of another file; its text is where it is, such as train-000.tar/0001.jpg."""

    __slots__ = ()

    @abstractmethod
    def __fspath__(self) -> str: ...

    @abstractmethod
    def read_bytes(self) -> bytes:
        """Return the content. Raises OSError."""

    @abstractmethod
    def stat(self) -> Stat:
        """Return the size, and times and number of the file around it. Raises OSError."""

    def __str__(self) -> str:
        return self.__fspath__()

    def __lt__(self, other: os.PathLike[str]) -> bool:
        return os.fspath(self) < os.fspath(other)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return os.path.basename(self.__fspath__())

    @property
    def suffix(self) -> str:
        """The ending of the name with its dot."""
        return os.path.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return os.path.splitext(self.name)[0]

    def exists(self) -> bool:
        """Whether the file around it is there."""
        try:
            self.stat()
        except OSError:
            return False
        return True

    def is_symlink(self) -> bool:
        """No member is a link: those of a tar are left out."""
        return False


File = Path | Member


@dataclass(frozen=True)
class Shard:
    """A tar file as it was when its members were listed."""

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, stat: os.stat_result) -> Shard:
        """Return the shard at a path with its status."""
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def require_same(self, stat: os.stat_result) -> None:
        """Raise OSError for a file that was changed since: other bytes are at the places that were listed."""
        if Shard.of(self.path, stat) != self:
            raise OSError(None, "the tar was changed while it was in use", str(self.path))


@dataclass(frozen=True, slots=True, eq=False)
class TarMember(Member):
    """The bytes of a tar from `start`; `inside` is the name of the member."""

    shard: Shard
    inside: str
    start: int
    size: int

    def __fspath__(self) -> str:
        return f"{self.shard.path}/{self.inside}"

    def read_bytes(self) -> bytes:
        """Return the content, read at its place: any number of threads may. Raises OSError."""
        # opened for each: a data set has more shards than a process may hold files open
        with open(self.shard.path, "rb", buffering=0) as file:
            self.shard.require_same(os.fstat(file.fileno()))
            found = os.pread(file.fileno(), self.size, self.start)
        if len(found) < self.size:
            raise OSError(None, "the tar ends inside of this image", str(self.shard.path))
        return found

    def stat(self) -> Stat:
        """Return size of the image, and times and number of the tar. Raises OSError."""
        found = os.stat(self.shard.path)
        self.shard.require_same(found)
        return Stat(self.size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
