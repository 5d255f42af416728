"""The commit of the working folder, read from the files of `.git` (`dlrun train`, S10).

`git` itself is not started: a repository of others names programs that it would run (filters, file-system monitors,
hooks, transports). Formats: gitformat-index, gitformat-pack and gitrepository-layout of Git's documentation.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["commit"]

SMALL, INDEX, BLOB = 100_000_000, 200_000_000, 64_000_000  # bytes of a file of refs or pack index, of the index, of one
CHAIN, FILES = 200, 500_000  # deltas on top of each other, and tracked files that are compared
MODES = {0o100644, 0o100755, 0o120000, 0o160000, 0o40000}
_ODD = (OSError, ValueError, IndexError, KeyError, struct.error, zlib.error, RecursionError, OverflowError)


def commit(folder: Path) -> str | None:
    """Return the first 12 digits of the commit that a folder is at, with `-dirty` if tracked files differ from it.

    None outside of a repository, and for one in a format that is not known here. Submodules are not looked into, and
    a file that a filter of Git converts counts as changed once it was touched.
    """
    try:
        found = next((repo for place in (folder, *folder.parents) if (repo := _repository(place))), None)
        name = found.head() if found else None
    except _ODD:
        return None
    if found is None or name is None:
        return None
    try:
        changed = found.changed(name)
    except _ODD:
        changed = False  # such as a split index
    return f"{name[:12]}{'-dirty' if changed else ''}"


def _repository(place: Path) -> _Repository | None:
    git = place / ".git"
    if git.is_file():  # of a worktree or a submodule
        git = place / _text(git, SMALL).removeprefix("gitdir:").strip()
    if not (git / "HEAD").is_file():
        return None
    shared = git / _text(git / "commondir", SMALL).strip() if (git / "commondir").is_file() else git
    return _Repository(place, git, shared) if (shared / "objects").is_dir() else None


@dataclass(frozen=True)
class _Entry:
    """A tracked file: its path, mode and digest, and the time and size of the file as Git saw it."""

    path: bytes
    mode: int
    digest: bytes
    seen: tuple[int, int, int]
    sure: bool  # whether Git compares the file at all
    plain: bool  # neither in conflict nor announced only


@dataclass(frozen=True)
class _Repository:
    place: Path  # the folder of the files
    git: Path
    shared: Path  # the same, except for a worktree

    def head(self) -> str | None:
        """The name of the commit, by symbolic references if need be."""
        text = _text(self.git / "HEAD", SMALL).strip()
        for _ in range(5):
            if not text.startswith("ref:"):
                return text if len(text) in (40, 64) and set(text) <= set("0123456789abcdef") else None
            name = text[4:].strip()
            if ".." in name or not name.startswith("refs/"):
                return None
            files = [file for file in (self.git / name, self.shared / name) if file.is_file()]
            text = _text(files[0], SMALL).strip() if files else self._packed(name)
        return None

    def _packed(self, name: str) -> str:
        for line in _text(self.shared / "packed-refs", SMALL).splitlines():
            if line.endswith(f" {name}"):
                return line.split()[0]
        return ""

    def changed(self, name: str) -> bool:
        """Whether the index differs from the commit, or a tracked file from the index. Raises on unknown formats."""
        file = self.git / "index"
        entries = _entries(_bytes(file, INDEX), len(name) // 2)
        if not all(entry.plain for entry in entries):
            return True
        kind = hashlib.sha1 if len(name) == 40 else hashlib.sha256
        content = _Objects(self.shared / "objects", len(name) // 2).read(bytes.fromhex(name))
        tree = content.split(b"\n", 1)[0].removeprefix(b"tree ").decode()
        if len(tree) == len(name) and _tree(entries, kind).hex() != tree:
            return True
        written = os.stat(file).st_mtime_ns
        return any(self._differs(entry, written, kind) for entry in entries)

    def _differs(self, entry: _Entry, written: int, kind: Any) -> bool:
        if not entry.sure or entry.mode in (0o160000, 0o40000):
            return False
        path = os.path.join(os.fsencode(self.place), entry.path)
        try:
            now = os.lstat(path)
        except OSError:
            return True
        link = stat.S_ISLNK(now.st_mode)
        if link != (entry.mode == 0o120000) or not (link or stat.S_ISREG(now.st_mode)):
            return True
        at = (now.st_mtime_ns // 10**9 & 0xFFFFFFFF, now.st_mtime_ns % 10**9, now.st_size & 0xFFFFFFFF)
        # a file changed within the tick in which the index was written may look the same
        if (at == entry.seen or (at[0], 0, at[2]) == entry.seen) and now.st_mtime_ns < written:
            return False
        if now.st_size > BLOB:
            return True
        content = os.readlink(path) if link else _bytes(Path(os.fsdecode(path)), BLOB)
        return all(_blob(text, kind) != entry.digest for text in (content, content.replace(b"\r\n", b"\n")))


def _blob(content: bytes, kind: Any) -> bytes:
    return bytes(kind(b"blob %d\0" % len(content) + content).digest())


def _entries(data: bytes, width: int) -> list[_Entry]:
    """The tracked files of an index, version 2 to 4. Raises ValueError for another, and for a split one."""
    magic, version, count = struct.unpack_from(">4sII", data)
    if magic != b"DIRC" or version not in (2, 3, 4) or count > FILES:
        raise ValueError("unknown index")
    found, at, path = [], 12, b""
    for _ in range(count):
        start = at
        fields = struct.unpack_from(">10I", data, at)
        digest, flags = data[at + 40 : at + 40 + width], struct.unpack_from(">H", data, at + 40 + width)[0]
        at += 42 + width
        more = 0
        if flags & 0x4000:
            more = struct.unpack_from(">H", data, at)[0]
            at += 2
        if version == 4:
            cut, at = _offset(data, at)
            path = path[: len(path) - cut]
        else:
            path = b""
        end = data.index(b"\0", at)
        path += data[at:end]
        at = end + 1 if version == 4 else start + (end - start) // 8 * 8 + 8
        if fields[6] not in MODES or b".." in path.split(b"/") or path.startswith(b"/"):
            raise ValueError("unknown entry")
        sure, plain = not flags & 0x8000 and not more & 0x4000, not flags & 0x3000 and not more & 0x2000
        found.append(_Entry(path, fields[6], digest, (fields[2], fields[3], fields[9]), sure, plain))
    if b"link" in _extensions(data, at, width):
        raise ValueError("split index")
    return found


def _extensions(data: bytes, at: int, width: int) -> Iterator[bytes]:
    while at + 8 <= len(data) - width:
        yield data[at : at + 4]
        at += 8 + int(struct.unpack_from(">I", data, at + 4)[0])


def _offset(data: bytes, at: int) -> tuple[int, int]:
    """A number in the variable length of offsets, and where it ends."""
    value = data[at] & 127
    while data[at] & 128:
        at += 1
        value = (value + 1) << 7 | data[at] & 127
    return value, at + 1


def _tree(entries: list[_Entry], kind: Any) -> bytes:
    """The digest of the tree that these files make."""
    root: dict[bytes, Any] = {}
    for entry in entries:
        *folders, name = entry.path.rstrip(b"/").split(b"/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = (entry.mode, entry.digest)
    return _digest(root, kind)


def _digest(node: dict[bytes, Any], kind: Any) -> bytes:
    rows = [(name, (0o40000, _digest(one, kind)) if isinstance(one, dict) else one) for name, one in node.items()]
    rows.sort(key=lambda row: row[0] + b"/" if row[1][0] == 0o40000 else row[0])
    content = b"".join(b"%o %s\0%s" % (mode, name, digest) for name, (mode, digest) in rows)
    return bytes(kind(b"tree %d\0" % len(content) + content).digest())


@dataclass(frozen=True)
class _Objects:
    """The objects of a repository: single files and packs, also those of other repositories that it borrows from."""

    folder: Path
    width: int

    def read(self, name: bytes, depth: int = 0) -> bytes:
        """The content of an object. Raises KeyError if it is not there."""
        text = name.hex()
        file = self.folder / text[:2] / text[2:]
        if file.is_file():
            return _inflated(_bytes(file, BLOB)).split(b"\0", 1)[1]
        for index in sorted((self.folder / "pack").glob("*.idx")):
            data = _bytes(index, INDEX)
            if (at := _place(data, name)) is not None:
                return self._unpacked(index.with_suffix(".pack"), at, depth)
        others = self.folder / "info" / "alternates"
        for line in _text(others, SMALL).splitlines() if others.is_file() and depth < CHAIN else ():
            return _Objects(self.folder / line, self.width).read(name, depth + 1)
        raise KeyError(text)

    def _unpacked(self, pack: Path, at: int, depth: int) -> bytes:
        if depth > CHAIN or not pack.is_file():
            raise ValueError("too many deltas")
        with open(pack, "rb") as file:
            file.seek(at)
            data = file.read(1_000_000)
        kind, place = data[0] >> 4 & 7, 1
        while data[place - 1] & 128:
            place += 1
        if kind == 6:
            back, place = _offset(data, place)
            base = self._unpacked(pack, at - back, depth + 1)
        elif kind == 7:
            base = self.read(data[place : place + self.width], depth + 1)
            place += self.width
        else:
            return _inflated(data[place:])
        return _patched(base, _inflated(data[place:]))


def _place(data: bytes, name: bytes) -> int | None:
    """Where an object begins in a pack, by the index of the pack, version 2."""
    if data[:8] != b"\xfftOc\0\0\0\2":
        return None
    ends = struct.unpack_from(">256I", data, 8)
    low, high, count, width = ends[name[0] - 1] if name[0] else 0, ends[name[0]], ends[255], len(name)
    while low < high:
        middle = (low + high) // 2
        found = data[1032 + middle * width : 1032 + (middle + 1) * width]
        if found == name:
            after = 1032 + count * (width + 4)
            at = int(struct.unpack_from(">I", data, after + 4 * middle)[0])
            if at & 0x80000000:
                at = int(struct.unpack_from(">Q", data, after + 4 * count + 8 * (at & 0x7FFFFFFF))[0])
            return at
        low, high = (middle + 1, high) if found < name else (low, middle)
    return None


def _patched(base: bytes, delta: bytes) -> bytes:
    """The object that a delta makes of another one."""
    at, sizes = 0, 0
    while sizes < 2:  # of the base and of the result
        sizes += not delta[at] & 128
        at += 1
    made = bytearray()
    while at < len(delta) and len(made) < BLOB:
        step, at = delta[at], at + 1
        if not step & 128:
            made += delta[at : at + step]
            at += step
            continue
        numbers = [0, 0]
        for bit in range(7):
            if step >> bit & 1:
                numbers[bit > 3] |= delta[at] << 8 * (bit if bit < 4 else bit - 4)
                at += 1
        made += base[numbers[0] : numbers[0] + (numbers[1] or 0x10000)]
    return bytes(made)


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, BLOB)


def _text(file: Path, limit: int) -> str:
    return _bytes(file, limit).decode(errors="replace")


def _bytes(file: Path, limit: int) -> bytes:
    """The content of a regular file. Raises ValueError for anything else, and for one that is larger."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as opened:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("not a regular file")
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise ValueError("too large")
    return data
