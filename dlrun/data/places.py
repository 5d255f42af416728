"""The image files that the rows of a table name, with or without folder and extension (`dlrun train dataset=table`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dlrun.data.listing import Account, Folders

__all__ = ["Places"]


class Places:
    """All image files below a folder, sorted; found by the name that a table has for them. None is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = sorted(Folders(unreadable=True).below(folder, Account()))  # of which a row names some
        self._known: defaultdict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            inside = PurePosixPath(file.relative_to(folder).as_posix())
            for name in dict.fromkeys((str(inside), str(inside.with_suffix("")), inside.name, inside.stem)):
                self._known[name].append(file)

    def find(self, name: str) -> Sequence[Path]:
        """Return the files that a name can mean: one, if all is well.

        The path within the folder comes first, then with folders of the name left out at its start, since a table may
        be written from another place. A file outside of the folder is never one of them.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for start in range(len(parts)):
            wanted = "/".join(parts[start:])
            found = self._known.get(wanted, ())
            if len(found) > 1:
                exact = [file for file in found if file.relative_to(self.folder).as_posix() == wanted]
                found = exact or found
            if found:
                return found
        return ()

    def inside(self, file: Path) -> str:
        """Return the path of a file within the folder."""
        return file.relative_to(self.folder).as_posix()
