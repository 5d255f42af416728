"""A digest in every checkpoint, by which damage of a disk or a copy is noticed (`dlrun resume`, O8).

It is the comment of the zip archive that torch writes, and stands for the CRC-32 of its records, which torch computes
and does not compare: without them a file is written in three quarters of the time. torch.load reads it as any other; a
program that unpacks it may say that the checksums are wrong. Every block of 4 KiB
counts with the sum of its words of 64 bits, which any changed bit changes, and BLAKE2b is of these sums: four times as
fast as a CRC-32. It tells damage; who writes a file on purpose writes its digest too.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from hashlib import blake2b

import numpy as np
import torch
from torch.serialization import get_crc32_options, set_crc32_options

__all__ = ["broken", "save", "sealed"]

MARK = b"dlrun sums "
FORMER = b"dlrun digest "  # of CRC-32; such a file is read without a look at its digest
LENGTH = len(MARK) + 32  # of the comment: the mark and a digest of 16 bytes in hexadecimal
BLOCK = 512  # words
END = struct.Struct("<4s18x")  # APPNOTE 6.3.10 of PKWARE: the end of an archive


def save(content: object) -> io.BytesIO:
    """Return what torch.save writes of a value, with the digest."""
    buffer, usual = io.BytesIO(), get_crc32_options()
    set_crc32_options(False)  # of the process: what another thread saves now has none either, which torch.load allows
    try:
        torch.save(content, buffer)
    finally:
        set_crc32_options(usual)
    size = buffer.seek(0, io.SEEK_END)
    buffer.seek(size - 2)  # the last field of an archive is the length of its comment
    buffer.write(struct.pack("<H", LENGTH))
    with buffer.getbuffer() as view:
        digest = _digest(view)
    buffer.write(MARK + digest)
    return buffer


def sealed(handle: int) -> bool:
    """Whether an open file has, or had, a digest: all archives but those that end without a comment."""
    size = os.fstat(handle).st_size
    end = os.pread(handle, END.size, max(size - END.size, 0))
    return not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0"))


def broken(handle: int) -> bool:
    """Whether the digest at the end of an open file is not that of its content."""
    size = os.fstat(handle).st_size
    end = os.pread(handle, len(FORMER) + 32, max(size - len(FORMER) - 32, 0))
    if end.startswith(FORMER):
        return False
    if size <= LENGTH:
        return True
    with mmap.mmap(handle, size, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        return bool(view[-LENGTH:] != MARK + _digest(view[:-LENGTH]))


def _digest(content: memoryview) -> bytes:
    whole = len(content) // (8 * BLOCK)
    words = np.frombuffer(content, "<u8", whole * BLOCK).reshape(whole, BLOCK)
    sums = words.sum(1, dtype=np.uint64).tobytes()  # modulo 2**64
    return blake2b(sums + content[whole * 8 * BLOCK :], digest_size=16).hexdigest().encode()
