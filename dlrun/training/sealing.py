"""A digest in every checkpoint, by which damage of a disk or a copy is noticed (`dlrun resume`, O8).

A checkpoint is a zip archive of tensors, and torch stores a CRC-32 of each that it does not compare when it reads. The
digest is of these and of all bytes between the tensors, so it costs no second look at them when a file is written. It
is the comment of the archive: other programs read the file as before.
"""

from __future__ import annotations

import io
import struct
import zlib
from hashlib import blake2b

import torch

__all__ = ["broken", "seal", "sealed"]

MARK = b"dlrun digest "
LENGTH = len(MARK) + 32  # of the comment: the mark and a digest of 16 bytes in hexadecimal
# APPNOTE 6.3.10 of PKWARE: the end of an archive, the same beyond 4 GB and where that is, an entry of its directory
END, END64, AT64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
WIDE = 0xFFFFFFFF  # the number is in the extra field


def seal(buffer: io.BytesIO) -> None:
    """Append the digest to an archive that torch.save has written."""
    size = buffer.seek(0, io.SEEK_END)
    buffer.seek(size - 2)  # the last field of an archive is the length of its comment
    buffer.write(struct.pack("<H", LENGTH))
    known = torch.serialization.get_crc32_options()
    with buffer.getbuffer() as view:
        digest = _digest(view, known=known)
    buffer.write(MARK + digest)


def sealed(data: bytes) -> bool:
    """Whether a file has, or had, a digest: all archives but those that end without a comment."""
    return not (data[-END.size :].startswith(b"PK\x05\x06") and data.endswith(b"\0\0"))


def broken(data: bytes) -> bool:
    """Whether the digest at the end of a file is not that of its content."""
    try:
        return MARK + _digest(memoryview(data)[:-LENGTH]) != data[-LENGTH:]
    except (struct.error, ValueError, IndexError):
        return True


def _digest(data: memoryview, *, known: bool = False) -> bytes:
    """The digest of an archive without its comment; the checksums in its directory are trusted if `known`."""
    parts: list[bytes | memoryview] = []
    place = 0
    for header, size, checksum in sorted(_directory(data)):
        name, extra = struct.unpack_from("<HH", data, header + 26)
        start = header + 30 + name + extra
        if not place <= start <= start + size <= len(data):
            raise ValueError("not an archive of torch")
        parts += (data[place:start], struct.pack("<L", checksum if known else zlib.crc32(data[start : start + size])))
        place = start + size
    return blake2b(b"".join([*parts, data[place:]]), digest_size=16).hexdigest().encode()


def _directory(data: memoryview) -> list[tuple[int, int, int]]:
    """Place, stored bytes and CRC-32 of each record."""
    end = len(data) - END.size
    mark, _, _, _, count, _, place, _ = END.unpack_from(data, end)
    if place == WIDE or count == 0xFFFF:
        place, count = END64.unpack_from(data, AT64.unpack_from(data, end - AT64.size)[2])[-1:-4:-2]
    found = []
    for _ in range(count):
        mark, _, _, _, _, _, _, checksum, size, whole, name, extra, comment, *_, header = ENTRY.unpack_from(data, place)
        if mark != b"PK\x01\x02":
            raise ValueError("not an archive of torch")
        place += ENTRY.size + name
        if WIDE in (size, whole, header):
            size, header = _wide(data[place : place + extra], size, whole, header)
        found.append((header, size, checksum))
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
