"""What stdout and stderr get: legible text, and on a terminal the line that shows what takes the time (every verb)."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from dlrun.errors import legible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "legible_streams", "waiting"]

GREEN = re.compile(r"(\x1b\[(?:1;32|0)m)")  # what tables mark the best score with: a name may at most be green


class _Legible:
    """A stream that writes legible text; rich, whose control sequences are ours, uses the stream behind it."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        parts = GREEN.split(text)  # every second is a code
        return self.rich_proxied_file.write("".join(p if k % 2 else legible(p) for k, p in enumerate(parts)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def legible_streams() -> Iterator[None]:
    """Write legible text alone to stdout and stderr."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (s if s is None else _Legible(s) for s in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Terminal:
    """A stream to a terminal: whatever is written to it replaces the line of `waiting`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def rich_proxied_file(self) -> _Terminal:
        """The same for rich, which writes control sequences."""
        return _Terminal(_raw(self._stream))

    def write(self, text: str) -> int:
        _erase()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_waiting: list[_Terminal | TextIO] = []  # the stream whose last line is to be erased, if there is one


def waiting(text: str) -> None:
    """Show on a terminal what takes the time, as a line that the next output replaces; a pipe gets nothing."""
    if not sys.stdout.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        return
    if not isinstance(sys.stdout, _Terminal):
        sys.stdout = _Terminal(sys.stdout)
        sys.stderr = _Terminal(sys.stderr)
        atexit.register(_erase)
    sys.stdout.write(text[: _width() - 1])
    sys.stdout.flush()
    _waiting.append(_raw(sys.stdout))


def _raw(stream: Any) -> TextIO:
    """The stream that control sequences are written to."""
    while isinstance(stream, (_Legible, _Terminal)):
        stream = stream.rich_proxied_file if isinstance(stream, _Legible) else stream._stream
    return stream  # type: ignore[no-any-return]


def _for_rich(stream: Any) -> Any:
    """The stream that rich writes to: while it draws a bar, sys.stdout is a stream of its own around ours."""
    while True:
        if isinstance(stream, _Terminal):
            return _Terminal(_raw(stream))
        inner = getattr(stream, "rich_proxied_file", None)
        if inner is None:
            return stream
        stream = inner


def console(plain: bool | None) -> Console:
    """A console of rich on stdout; `plain` is False for lines without colours and no notebook's output."""
    from rich.console import Console

    class Behind(Console):
        """A console whose control sequences are not taken for those of a text."""

        @property
        def file(self) -> Any:
            """The stream behind all others."""
            return _for_rich(super().file)

        @file.setter
        def file(self, new: Any) -> None:
            self._file = new

    return Behind(highlight=False, soft_wrap=True, force_terminal=plain, force_jupyter=plain)


def _erase() -> None:
    while _waiting:
        stream = _waiting.pop()
        stream.write("\r\x1b[2K")
        stream.flush()


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
