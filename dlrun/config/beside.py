"""Imports from the folder where dlrun was started, of trusted packages alone (`dlrun train trust=[mynet]`, M3).

The folder is not put on `sys.path`: a file there named like a package that is not installed, such as timm.py, would be
run by whoever looks for that package. It is searched last, for a trusted package, and for what such a package imports
beside itself. Compiled files in `__pycache__` are not used: they may hold other code than the source that one reads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import ModuleType
from typing import NoReturn

__all__ = ["allow"]


class _Source(SourceFileLoader):
    """Compiles the source anew at each start."""

    def path_stats(self, path: object) -> NoReturn:
        """Raise OSError, upon which Python neither reads nor writes a compiled file."""
        raise OSError


class _Below(MetaPathFinder):
    """Finds the modules of packages in the folder, before Python would take a compiled file."""

    folder = Path()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how to load a module from source; None for any that does not belong to a package of the folder."""
        parent = sys.modules.get(name.rpartition(".")[0])
        return _from_source(name, path) if path is not None and _ours(getattr(parent, "__loader__", None)) else None


class _Beside(MetaPathFinder):
    """Finds trusted packages in a folder, and what their modules import from it."""

    folder = Path()
    trusted: frozenset[str] = frozenset()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how to load a module from source; None for any that nothing trusted asks for."""
        if path is None and (name in self.trusted or _ours(_asking())):
            return _from_source(name, [str(self.folder)])
        return None


_below, _beside = _Below(), _Beside()


def allow(packages: Iterable[str]) -> None:
    """Let these packages, and what they import beside themselves, be found in the current folder."""
    for place, finder in ((0, _below), (len(sys.meta_path) + 1, _beside)):
        if finder not in sys.meta_path:
            sys.meta_path.insert(place, finder)
    _beside.folder, _beside.trusted = Path(os.getcwd()), frozenset(name.partition(".")[0] for name in packages)


def _from_source(name: str, path: Sequence[str]) -> ModuleSpec | None:
    found = PathFinder.find_spec(name, path)
    if found is None or isinstance(found.loader, SourcelessFileLoader):
        return None
    if isinstance(found.loader, SourceFileLoader):
        found.loader = _Source(found.loader.name, found.loader.path)
    return found


def _ours(loader: object) -> bool:
    return isinstance(loader, _Source)


def _asking() -> object:
    """The loader of the module whose import is being answered."""
    frame = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in (
        "importlib",
        "_frozen_importlib",
    ):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_globals.get("__loader__")
