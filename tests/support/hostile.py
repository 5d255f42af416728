"""What a command starts, runs and touches beside its own files: an audit hook of Python, and harmless payloads.

A payload makes the file PWNED in the folder of the command. The hook sees every program that is started, every piece of
code of that folder that is run, and every file outside of it that is opened for writing, deleted or renamed.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.stored import write

__all__ = ["EVIL", "MODULE", "SECTIONS", "Seen", "change", "evil_pickle", "put", "some", "watched"]

MODULE = "evilmark"
CODE = "import pathlib\npathlib.Path({!r}).write_text('ran')\nclass Net: ...\n"
SECTIONS = ("model", "optimizer", "scheduler", "loss", "objective", "regularizer", "augment", "dataset")
EVIL = {"_target_": "posix.system", "command": "touch PWNED"}
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "webbrowser.open")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.mkdir", "os.chmod")
CHANGES += ("shutil.rmtree", "shutil.copyfile", "shutil.move")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Seen:
    """What happened while a command ran in a folder; `bad` is empty if nothing of it must not happen."""

    active: Seen | None = None
    hooked = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.bad = folder.resolve(), list[str]()
        self.allowed = (f"{self.folder}/", os.environ["DLRUN_CACHE"], "/dev/", "/proc/")
        self.allowed += (f"{tempfile.gettempdir()}/torchinductor_", os.path.expanduser("~/.cache/matplotlib/"))

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        """Look at an event of the interpreter."""
        if name in STARTS:
            if args[0] in (sys.executable, "/sbin/ldconfig"):  # workers; where Python looks for C libraries
                return
            self.bad.append(f"{name} {args[:2]}")
        elif name == "exec" and (file := getattr(args[0], "co_filename", "")).startswith(str(self.folder)):
            self.bad.append(f"code of {file}")
        elif name == "pickle.find_class" and args[0] in ("posix", "os", "subprocess", "builtins", MODULE):
            self.bad.append(f"pickle of {args}")
        elif name == "open" and isinstance(args[0], (str, bytes)):
            flags, mode = args[2], args[1]
            if (flags & WRITING) if mode is None else set(str(mode)) & set("wax+"):
                self._outside(name, args[0])
        elif name in CHANGES:
            for path in args[1:2] if name == "os.symlink" else args[:2]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._outside(name, path)

    def _outside(self, name: str, path: Any) -> None:
        full = os.path.abspath(os.fsdecode(path))
        if not f"{full}/".startswith(self.allowed):
            self.bad.append(f"{name} {full}")


def _hook(name: str, args: tuple[Any, ...]) -> None:
    if Seen.active is not None:
        Seen.active.event(name, args)


@contextmanager
def watched(folder: Path) -> Iterator[Seen]:
    """Watch what happens in the block; the marker counts too, since other processes have no hook."""
    if not Seen.hooked:
        sys.addaudithook(_hook)  # it can never be removed
        Seen.hooked = True
    seen = Seen.active = Seen(folder)
    try:
        yield seen
    finally:
        Seen.active = None
    seen.bad += [f"{file} was made" for file in folder.rglob("PWNED*")]


def some(names: Iterable[str], step: int) -> list[Any]:
    """The names as parameters of a test, of which one in so many is fast."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (n % step != 0)) for n, name in enumerate(names)]


def put(folder: Path, name: str = f"{MODULE}.py") -> Path:
    """Write a module that makes the marker when it is imported."""
    return write(folder / name, CODE.format(str(folder / "PWNED")))


def change(file: Path, **sections: Any) -> None:
    """Replace top-level values of a YAML file."""
    plain = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**plain, **sections}, sort_keys=False))


class _Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


def evil_pickle() -> bytes:
    """A pickle that makes the marker when it is loaded."""
    made = io.BytesIO()
    pickle.dump(_Opens(), made, protocol=2)  # that of torch's own files
    return made.getvalue()
