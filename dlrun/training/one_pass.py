"""A checkpoint read in one pass: its tensors and its digest (`dlrun resume`, O8).

torch gives shapes and places of the tensors without their values. Then each part of the file is copied to the memory
where it stays, and added up while the processor's cache has it: another pass over it takes half as long as the copy.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from dlrun.training import sealing
from dlrun.training.sealing import BLOCK

__all__ = ["Damaged", "read"]

PART = 1 << 21  # bytes, whole blocks of the digest: few calls, and little memory between a copy and its sums
ALIGNED = 8  # bytes of a word of the digest


class Damaged(Exception):
    """The content of a file does not have the digest at its end."""


def read(file: BinaryIO, size: int, into: Mapping[str, nn.Module]) -> Any:
    """Return what `sealing.save` wrote into an open file of this size.

    `into` are models by the key of their weights. A weight of the same type, shape and order is read into the model's
    own, which is what the content then has; everything else has memory of its own. Raises Damaged, after which the
    models have weights of the file, ValueError for what `torch.load` may read in its usual way, and whatever torch
    raises for a file that is none.
    """
    records = _records(file)
    file.seek(0)
    content = torch.load(file, map_location="meta", weights_only=True)
    memory = _Memory(size - sealing.LENGTH, records)
    for key, model in into.items() if isinstance(content, dict) else ():
        if isinstance(content.get(key), dict):
            named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
            memory.give(content[key], dict(named))
    content = memory.real(content)
    if memory.fill(file) != sealing.stored(file.fileno(), size):
        raise Damaged
    return content


def _records(file: BinaryIO) -> dict[int, int]:
    """The size of each record of an archive by its first byte. Raises ValueError for an unusual order or alignment.

    With map_location="meta" torch swaps bytes that are not there, divides by any alignment, and computes from it where
    a record starts without looking: the process would die, or get other numbers.
    """
    sizes, archive = sealing.records(file), cast(Any, torch._C.PyTorchFileReader(file))
    for name, usual in (("byteorder", sys.byteorder.encode()), (".storage_alignment", b"64")):
        if archive.has_record(name) and archive.get_record(name) != usual:
            raise ValueError(f"{name} is not {usual.decode()}")
    return {archive.get_record_offset(name): sizes[name] for name in archive.get_all_records()}


class _Memory:
    """Memory for the tensors of a file whose content ends at byte `end`, with the sizes of records by their start."""

    def __init__(self, end: int, sizes: Mapping[int, int]) -> None:
        self.end, self.sizes = end, sizes
        self._records = list[tuple[int, Tensor]]()  # where a record starts, and its memory (bytes,)
        self._shared: dict[tuple[int, int], Tensor] = {}
        self._seen: dict[int, tuple[Any, Any]] = {}
        self._left = 2 * end  # bytes; records that lie upon each other would take any number

    def give(self, stored: dict[Any, Any], own: Mapping[str, Any]) -> None:
        """Put tensors of a model in the place of stored ones that are like them."""
        for name, tensor in stored.items():
            if isinstance(tensor, Tensor) and _takes(own.get(name), tensor):
                self._expect(*_place(tensor))
                self._records.append((_place(tensor)[0], _bytes(own[name])))
                stored[name] = own[name]

    def real(self, node: Any) -> Any:
        """Return what was loaded with memory for its tensors, which `fill` fills."""
        if isinstance(node, Tensor):
            return self._tensor(node) if node.is_meta else node
        if id(node) in self._seen:  # a list may contain itself
            return self._seen[id(node)][1]
        if type(node) is tuple:
            made = tuple(map(self.real, node))
            self._seen[id(node)] = node, made
            return made
        if isinstance(node, (dict, list)):
            self._seen[id(node)] = node, node
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                node[key] = self.real(value)
        return node

    def _tensor(self, stored: Tensor) -> Tensor:
        if stored.is_conj() or stored.is_neg():
            raise ValueError("a tensor is a view that changes its values")
        place = _place(stored)
        if place not in self._shared:
            self._expect(*place)
            self._shared[place] = torch.empty(place[1], dtype=torch.uint8)
            self._records.append((place[0], self._shared[place]))
        storage = self._shared[place].untyped_storage()
        return torch.empty(0, dtype=stored.dtype).set_(storage, stored.storage_offset(), stored.shape, stored.stride())

    def _expect(self, start: int, count: int) -> None:
        self._left -= count
        # a tensor that is larger than its record has enlarged it
        if self.sizes.get(start) != count or start + count > self.end or self._left < 0:
            raise ValueError("a tensor lies outside of its record")

    def fill(self, file: BinaryIO) -> bytes:
        """Copy the file to the memory, and return the digest of its content."""
        pieces, whole = self._pieces(), self.end // BLOCK
        sums = torch.empty(whole, dtype=torch.int64)
        with mmap.mmap(file.fileno(), self.end, access=mmap.ACCESS_COPY) as content:
            source, words = torch.frombuffer(content, dtype=torch.uint8), sealing.words(content)
            try:
                for number in range(-(-self.end // PART)):
                    for memory, start, stop in pieces.get(number, ()):
                        memory.copy_(source[start:stop])
                    first, last = number * PART // BLOCK, min((number + 1) * PART // BLOCK, whole)
                    torch.sum(words[first:last], 1, out=sums[first:last])
                return sealing.digest(sums, content[whole * BLOCK :])
            finally:
                del source, words  # which keep the file from being closed

    def _pieces(self) -> dict[int, list[tuple[Tensor, int, int]]]:
        """What belongs into memory of each part of the file: the memory, and the first and the last byte."""
        pieces: dict[int, list[tuple[Tensor, int, int]]] = {}
        for start, memory in self._records:
            at, end = start, start + memory.numel()
            while at < end:
                stop = min(end, (at // PART + 1) * PART)
                pieces.setdefault(at // PART, []).append((memory[at - start : stop - start], at, stop))
                at = stop
        return pieces


def _place(stored: Tensor) -> tuple[int, int]:
    """First byte of the record of a tensor without values, and its bytes."""
    storage: Any = stored.untyped_storage()
    return storage._checkpoint_offset, storage.nbytes()


def _alone(stored: Tensor) -> bool:
    """Whether a tensor is all of its record."""
    return stored.numel() * stored.itemsize == stored.untyped_storage().nbytes() and not stored.storage_offset()


def _takes(own: Any, stored: Tensor) -> bool:
    """Whether a tensor of a model is like a stored one, and lies in the processor's memory without gaps."""
    if type(own) not in (Tensor, nn.Parameter) or own.layout != torch.strided or own.device.type != "cpu":
        return False
    last = own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last)
    alike: bool = own.dtype == stored.dtype and (own.shape, own.stride()) == (stored.shape, stored.stride())
    alike = alike and (own.is_conj(), own.is_neg()) == (stored.is_conj(), stored.is_neg())
    there = own.data_ptr() % ALIGNED == 0 and own.untyped_storage().nbytes() >= own.numel() * own.itemsize
    return alike and bool(last or own.is_contiguous()) and _alone(stored) and there


def _bytes(own: Tensor) -> Tensor:
    """The memory of a tensor."""
    memory = torch.empty(0, dtype=torch.uint8)
    count = own.numel() * own.itemsize
    return memory.set_(own.untyped_storage(), own.storage_offset() * own.itemsize, (count,), (1,))
