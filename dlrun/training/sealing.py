"""A digest in every checkpoint, by which damage of a disk or a copy is noticed (`dlrun resume`, O8).

A checkpoint is a zip archive of tensors, and torch stores a CRC-32 of each that it does not compare when it reads. The
digest is of these and of all bytes between the tensors, so it costs no second look at them when a file is written. It
is the comment of the archive: other programs read the file as before.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from hashlib import blake2b

import torch

__all__ = ["broken", "seal", "sealed"]

MARK = b"dlrun digest "
LENGTH = len(MARK) + 32  # of the comment: the mark and a digest of 16 bytes in hexadecimal
# APPNOTE 6.3.10 of PKWARE: the end of an archive, the same beyond 4 GB and where that is, an entry of its directory
END, END64, AT64 = struct.Struct("<4s6xH4xLH"), struct.Struct("<32xQ8xQ"), struct.Struct("<8xQ4x")
ENTRY = struct.Struct("<4s12x3L3H8xL")  # mark, CRC-32, stored bytes, bytes, lengths of name, extra, comment, place
HEADER = struct.Struct("<26xHH")  # the header before a record: lengths of name and extra
WIDE = 0xFFFFFFFF  # the number is in the extra field
BLOCK = 1 << 18  # bytes whose checksum is computed at a time: they stay in the cache of a core
SMALL = 1 << 21  # bytes of a file that are read at once: a large network has hundreds of small tensors
AHEAD = 512  # bytes read with a header, for its name and what aligns the record

_Read = Callable[[int, int], "bytes | memoryview"]  # from, to


def seal(buffer: io.BytesIO) -> None:
    """Append the digest to an archive that torch.save has written."""
    size = buffer.seek(0, io.SEEK_END)
    buffer.seek(size - 2)  # the last field of an archive is the length of its comment
    buffer.write(struct.pack("<H", LENGTH))
    known = torch.serialization.get_crc32_options()
    with buffer.getbuffer() as view:

        def read(start: int, stop: int) -> memoryview:
            return view[start:stop]

        digest = _digest(size, read, None if known else lambda *place: zlib.crc32(read(*place)))
    buffer.write(MARK + digest)


def sealed(handle: int) -> bool:
    """Whether an open file has, or had, a digest: all archives but those that end without a comment."""
    size = os.fstat(handle).st_size
    end = os.pread(handle, END.size, max(size - END.size, 0))
    return not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0"))


def broken(handle: int) -> bool:
    """Whether the digest at the end of an open file is not that of its content, which is read in blocks."""
    size = os.fstat(handle).st_size - LENGTH
    whole = memoryview(os.pread(handle, SMALL, 0))
    view = memoryview(bytearray(BLOCK))

    def read(start: int, stop: int) -> bytes | memoryview:
        return whole[start:stop] if stop <= len(whole) else os.pread(handle, stop - start, start)

    def checksum(start: int, stop: int) -> int:
        if stop <= len(whole):
            return zlib.crc32(whole[start:stop])
        found = 0
        while start < stop:
            done = os.preadv(handle, [view[: stop - start]], start)
            if not done:
                raise ValueError("cut short")
            found = zlib.crc32(view[:done], found)
            start += done
        return found

    try:
        return MARK + _digest(size, read, checksum) != read(size, size + LENGTH)
    except (struct.error, ValueError, IndexError, OSError):
        return True


def _digest(size: int, read: _Read, checksum: Callable[[int, int], int] | None) -> bytes:
    """The digest of an archive of this size without its comment.

    Without `checksum`, the checksums in the archive's directory are trusted.
    """
    parts: list[bytes | memoryview] = []
    place = 0
    for header, length, known in sorted(_directory(size, read)):
        between = read(place, min(header + AHEAD, size))
        name, extra = HEADER.unpack_from(between, header - place)
        start = header + 30 + name + extra
        if not place <= header <= start <= start + length <= size:
            raise ValueError("not an archive of torch")
        if start - place > len(between):
            between = read(place, start)
        found = known if checksum is None else checksum(start, start + length)
        parts += (between[: start - place], found.to_bytes(4, "little"))
        place = start + length
    return blake2b(b"".join([*parts, read(place, size)]), digest_size=16).hexdigest().encode()


def _directory(size: int, read: _Read) -> list[tuple[int, int, int]]:
    """Place, stored bytes and CRC-32 of each record."""
    mark, count, start, _ = END.unpack(read(size - END.size, size))
    if start == WIDE or count == 0xFFFF:
        (at,) = AT64.unpack(read(size - END.size - AT64.size, size - END.size))
        count, start = END64.unpack(read(at, at + END64.size))
    if not 0 <= start <= size or count > size:
        raise ValueError("not an archive of torch")
    data, place, found = read(start, size), 0, []
    for _ in range(count):
        mark, known, length, whole, name, extra, comment, header = ENTRY.unpack_from(data, place)
        if mark != b"PK\x01\x02":
            raise ValueError("not an archive of torch")
        place += ENTRY.size + name
        if WIDE in (length, whole, header):
            length, header = _wide(memoryview(data)[place : place + extra], length, whole, header)
        found.append((header, length, known))
        place += extra + comment
    return found


def _wide(extra: memoryview, size: int, whole: int, header: int) -> tuple[int, int]:
    """Stored bytes and place of a record from its extra field, which has the numbers that are WIDE in this order."""
    at = 0
    while struct.unpack_from("<H", extra, at)[0] != 1:
        at += 4 + struct.unpack_from("<H", extra, at + 2)[0]
    numbers = [
        n[0] for n in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + struct.unpack_from("<H", extra, at + 2)[0]])
    ]
    taken = {name: numbers.pop(0) for name, n in (("whole", whole), ("size", size), ("header", header)) if n == WIDE}
    return taken.get("size", size), taken.get("header", header)
