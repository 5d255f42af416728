"""Memory that is a file: the size of the file is looked at before it is read (`dlrun train dataset.cache=auto`).

Reading beyond the end of a file that another program has cut short would end the process with a signal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["register", "require_whole"]

_known: WeakValueDictionary[int, np.memmap[Any, Any]] = WeakValueDictionary()  # by the address of the first byte


def register(mapped: np.ndarray[Any, Any]) -> None:
    """Let `require_whole` know an array, if it is a file."""
    if isinstance(mapped, np.memmap):
        _known[mapped.__array_interface__["data"][0]] = mapped


def require_whole(address: int) -> None:
    """Raise UserError if the array at an address is a file that has become shorter; a microsecond."""
    mapped = _known.get(address)
    if mapped is None:
        return
    needed, found = mapped.offset + mapped.nbytes, mapped._mmap.size()  # type: ignore[attr-defined]
    if found < needed:
        file = mapped.filename or Path("a cached file")
        what = f"cut short while it was in use: expected {needed:,} bytes, found {found:,}"
        raise UserError(f"{file}: {what}; type the command again", Exit.FAILED)
