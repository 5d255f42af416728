"""The samples of tar files, listed without unpacking: `dlrun train dataset=shards dataset.urls='train-{000..099}.tar'`.

A sample is what webdataset makes one: neighbouring members whose names agree up to their first dot. Labels are read
here, images when they are needed. Members that are links, devices or pickled, or whose names lead outside, are left
out and counted; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from dlrun.data.listing import HIDDEN, SPECIAL, SUFFIXES, Account
from dlrun.data.members import Shard, TarMember
from dlrun.errors import UserError

__all__ = ["LABELS", "LINKS", "LONGEST", "OUTSIDE", "PICKLED", "Sample", "samples"]

PICKLED = "pickled members, which are never read"
LINKS, OUTSIDE = "links", "names that lead outside of the tar"
PICKLES = {"pyd", "pth", "pt", "pkl", "pickle", "pyc"}
LABELS = ("cls", "txt", "json")  # members that may hold the label, the first one first
LONGEST = 1 << 16  # bytes of a label
BLOCK = 512  # bytes, of a tar
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d", b"\x28\xb5": "zstd -d"}


@dataclass
class Sample:
    """The images of one sample by their endings, such as jpg, and the text of its labels, by theirs."""

    key: str
    images: dict[str, TarMember] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)
    bad: str = ""  # why it cannot be used

    def label(self, which: str) -> str | int:
        """Return the label in a member: cls, txt, or json.KEY. Raises ValueError that says what is wrong."""
        kind, _, key = which.partition(".")
        if (found := self.labels.get(kind)) is None:
            raise ValueError(f"has no label: there is no .{kind}")
        try:
            text = found.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f".{kind} is no UTF-8 text") from None
        if kind == "json":
            return _of_json(text, key)
        return text.strip()


def _of_json(text: str, key: str) -> str | int:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(".json is no JSON") from None
    value = found.get(key) if isinstance(found, dict) else None
    if value is None:
        raise ValueError(f"has no label: .json has no {key!r}")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"has {key!r}: {str(value)[:40]} in .json, expected a number or a name")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"has {key!r}: {str(value)[:40]} in .json, expected a number of 64 bits")
    return value


def samples(path: Path, account: Account) -> Iterator[Sample]:
    """Yield the samples of a tar in their order; what is left out is added to the account, by its name in the tar.

    Raises UserError in one line for a file that is missing, compressed, damaged or cut short.
    """
    try:
        with open(path, "rb") as file:
            shard = Shard.of(path, os.fstat(file.fileno()))
            if how := COMPRESSED.get(file.read(2)):
                raise UserError(f"{path}: is compressed, which has no random access; unpack it with {how} {path}")
            file.seek(0)
            yield from _grouped(file, shard, account)
    except OSError as error:
        why = "a folder; expected a tar file" if path.is_dir() else error.strerror or str(error)
        raise UserError(f"{path}: {why}") from None


def _grouped(file: IO[bytes], shard: Shard, account: Account) -> Iterator[Sample]:
    now, seen = Sample(""), set[str]()
    for name, member in _members(file, shard, account):
        folder, base = os.path.split(name)
        stem, _, ending = base.partition(".")
        key, ending = os.path.join(folder, stem), ending.lower()
        image = f".{ending.rpartition('.')[2]}" in SUFFIXES
        if not image and ending not in LABELS:
            reason = PICKLED if ending.rpartition(".")[2] in PICKLES else f".{ending}" if ending else "others"
            account.add(reason, Path(name))
            continue
        if key != now.key:
            if now.key:
                yield now
            now = Sample(key, bad="comes again in this tar" if key in seen else "")
            seen.add(key)
        if ending in now.images or ending in now.labels:
            now.bad = f"has two .{ending}"
        elif image:
            now.images[ending] = member
        else:
            if member.size > LONGEST:
                now.bad = f"has a .{ending} of {member.size:,} bytes, expected a label"
                continue
            at = file.tell()
            file.seek(member.start)
            now.labels[ending] = file.read(member.size)
            file.seek(at)
    if now.key:
        yield now


def _members(file: IO[bytes], shard: Shard, account: Account) -> Iterator[tuple[str, TarMember]]:
    """Yield the regular files of a tar with their names; the others are counted."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all
                name = info.name
                if not 0 <= info.size <= shard.size:
                    raise tarfile.ReadError(f"a member of {info.size:,} bytes")
                if info.isdir():
                    continue
                where = PurePosixPath(name)
                if not info.isreg():
                    account.add(LINKS if info.issym() or info.islnk() else SPECIAL, Path(name))
                elif where.is_absolute() or ".." in where.parts:
                    account.add(OUTSIDE, Path(name.lstrip("/")))
                elif where.name.startswith("."):
                    account.add(HIDDEN, Path(name))
                elif info.sparse is not None:
                    account.add("sparse members", Path(name))
                else:
                    yield str(where), TarMember(shard, str(where), info.offset_data, info.size)
            _require_end(file, shard, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:  # of numbers beyond all bounds
        raise UserError(_damaged(shard, re.sub(r"\s+", " ", str(error)) or "out of memory")) from None


def _require_end(file: IO[bytes], shard: Shard, place: int) -> None:
    """Raise UserError for a tar whose list of members breaks off, which tarfile takes for its end."""
    file.seek(place)
    rest = file.read(BLOCK)
    if len(rest) == BLOCK and not any(rest):
        return
    raise UserError(_damaged(shard, "unexpected end of data" if len(rest) < BLOCK else f"no member at byte {place:,}"))


def _damaged(shard: Shard, why: str) -> str:
    return f"{shard.path}: is no whole tar ({why}); make or copy it again"
