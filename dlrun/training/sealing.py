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
import zipfile
from hashlib import blake2b
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_crc32_options, set_crc32_options

__all__ = ["BLOCK", "LENGTH", "broken", "digest", "records", "save", "sealed", "stored", "words"]

MARK = b"dlrun sums "
FORMER = b"dlrun digest "  # of CRC-32; such a file is read without a look at its digest
LENGTH = len(MARK) + 32  # of the comment: the mark and a digest of 16 bytes in hexadecimal
BLOCK = 4096  # bytes, whose words of 64 bits are added
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
        mark = MARK + _digest(view)
    buffer.write(mark)
    return buffer


def sealed(handle: int) -> bool:
    """Whether an open file is an archive that has, or had, a digest: all but those that end without a comment."""
    if os.pread(handle, 2, 0) != b"PK":
        return False
    size = os.fstat(handle).st_size
    end = os.pread(handle, END.size, max(size - END.size, 0))
    return not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0"))


def records(file: BinaryIO) -> dict[str, int]:
    """Return the bytes of each record of an archive by its name, without the folder that torch puts before it.

    Raises ValueError for compressed ones, and for those that lie upon each other: torch writes none, and a small file
    of them would fill all memory.
    """
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in found):
        raise ValueError("a record is compressed")
    if sum(record.file_size for record in found) > file.seek(0, io.SEEK_END):
        raise ValueError("the records are larger than the file")
    file.seek(0)
    return {record.filename.partition("/")[2]: record.file_size for record in found}


def broken(handle: int) -> bool:
    """Whether the digest at the end of an open file is not that of its content."""
    size = os.fstat(handle).st_size
    if _former(handle):
        return False
    if size <= LENGTH:
        return True
    with mmap.mmap(handle, size, access=mmap.ACCESS_COPY) as content, memoryview(content) as view:
        return stored(handle, size) != _digest(view[:-LENGTH])


def _former(handle: int) -> bool:
    """Whether an open file has a digest of an older version, which is not looked at."""
    length = len(FORMER) + 32
    return os.pread(handle, length, max(os.fstat(handle).st_size - length, 0)).startswith(FORMER)


def stored(handle: int, size: int) -> bytes | None:
    """The digest at the end of an open file; None if it has none."""
    end = os.pread(handle, LENGTH, max(size - LENGTH, 0))
    return end.removeprefix(MARK) if end.startswith(MARK) else None


def _digest(content: memoryview) -> bytes:
    blocks = words(content)
    return digest(blocks.sum(1), bytes(content[len(blocks) * BLOCK :]))


def words(content: mmap.mmap | memoryview) -> Tensor:
    """The words of the whole blocks of a content that may be written, (blocks, words), int64, in the same memory."""
    whole = len(content) // BLOCK
    return torch.from_numpy(np.frombuffer(content, np.int64, whole * BLOCK // 8)).view(whole, BLOCK // 8)


def digest(sums: Tensor, rest: bytes) -> bytes:
    """The digest of a content by the sums of its blocks, modulo 2**64, and the bytes after the last whole one."""
    return blake2b(sums.numpy().tobytes() + rest, digest_size=16).hexdigest().encode()
