"""Short lists of folders for a terminal: `dlrun list`, and what `dlrun rm` is about to delete."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Sequence

from dlrun.analysis.inventory import Item

__all__ = ["age", "as_text", "size"]

COUNTED = re.compile(r"\d\.\d+ \((.*)\)")  # 0.750 (9 of 12)
HEADER = ("run", "status", "score", "age", "size")


def as_text(items: Sequence[Item]) -> str:
    """Return a line per item, columns aligned.

    In a terminal that is too narrow folders are relative to the one that they share, and then scores are counts alone.
    """
    names, head = [str(item.found.path) for item in items], ""
    shared = os.path.commonpath(names) if len(names) > 1 else ""
    if shared and _too_wide(_aligned(items, names)):
        names, head = [os.path.relpath(name, shared) for name in names], f"in {shared}\n"
    if _too_wide(text := _aligned(items, names)):
        text = _aligned([item._replace(score=COUNTED.sub(r"\1", item.score)) for item in items], names)
    return head + text


def _too_wide(text: str) -> bool:
    return sys.stdout.isatty() and max(map(len, text.split("\n"))) > shutil.get_terminal_size().columns


def _aligned(items: Sequence[Item], names: Sequence[str]) -> str:
    now = time.time()
    rows = [HEADER]
    for item, name in zip(items, names, strict=True):
        told = f"{name} ({item.name})" if item.name else name
        rows.append((told, item.status, item.score, age(now - item.started), size(item.size)))
    wide = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    return "\n".join(
        "  ".join([*(row[k].ljust(wide[k]) for k in range(3)), *(row[k].rjust(wide[k]) for k in (3, 4))]).rstrip()
        for row in rows
    )


def age(seconds: float) -> str:
    """Return a length of time in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(count: float) -> str:
    """Return a number of bytes in decimal units, such as 3.2 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
