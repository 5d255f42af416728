"""The `version` of stored files: a file of a newer dlrun is refused, one without a version is older and reads the same.

Of result.json, sweep.yaml, ensemble.yaml and checkpoints, by every command that reads a folder. Nothing here imports
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.folders.opener import Unreadable
from dlrun.vocabulary import FORMAT

__all__ = ["NewerFormat", "refuse_newer", "stamped"]


class NewerFormat(Unreadable):
    """A stored file has a later version than this dlrun reads."""


def stamped(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file that is about to be written, the version first."""
    return {"version": FORMAT, **content, **{"version": FORMAT}}


def refuse_newer(file: Path | str, content: Mapping[str, Any]) -> None:
    """Raise NewerFormat, which names the file, if a later dlrun wrote it."""
    version = content.get("version")
    if isinstance(version, (int, float)) and version > FORMAT:
        found = f"(format {version:g}, this one reads {FORMAT})"
        raise NewerFormat(file, f"was written by a newer dlrun {found}; update dlrun")
