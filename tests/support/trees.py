"""Folders of files, links and pipes from one line of text, for the tests of what is read."""

from __future__ import annotations

import os
from pathlib import Path

PIXELS = b"P5 4 4 255\n" + bytes(range(16))


def plant(root: Path, tree: str) -> None:
    """Make what `tree` names below `root`: files, `folder/`, `link->target` (relative to root) and `pipe|`."""
    root.mkdir(parents=True, exist_ok=True)
    for word in tree.split():
        name, _, target = word.partition("->")
        place = root / name.rstrip("|")
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if target:
            place.symlink_to(os.path.normpath(root / target))
        elif name.endswith("|"):
            os.mkfifo(place)
        elif not name.endswith("/"):
            place.write_bytes(PIXELS + name.encode(errors="surrogateescape"))
