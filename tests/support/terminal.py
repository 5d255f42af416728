"""A command in a terminal of some width, a pseudo-terminal: what arrives, and what is left on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

from support import warm

PART = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")


class Seen(NamedTuple):
    """The exit code, everything that was written, the first of it, and the seconds of processor time before that."""

    code: int
    raw: str
    first: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines on the screen at the end."""
        return left(self.raw)

    @property
    def colours(self) -> set[str]:
        """The codes of colours in use."""
        codes = {code for found in re.findall(r"\x1b\[([0-9;]+)m", self.raw) for code in found.split(";")}
        return {code for code in codes if 30 <= int(code) <= 37 or 90 <= int(code) <= 97 or code == "38"}


def run(columns: int, folder: Path, *words: str, real: bool = False, **env: str) -> Seen:
    """Run `dlrun <words>` in a terminal of this width; a real process imports what it needs."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "DLRUN_CONF")}
    begin = subprocess.Popen if real else warm.popen
    process = begin(
        [sys.executable, "-m", "dlrun", *words], cwd=folder, env=clean | {"TERM": "xterm-256color"} | env,
        stdin=end, stdout=end, stderr=end, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    read, seconds = [], 0.0
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the end of a pseudo-terminal on Linux
            break
        if not data:
            break
        if not read:
            seconds = _seconds(process.pid)
        read.append(data)
    os.close(terminal)
    return Seen(process.wait(), b"".join(read).decode(), read[0].decode() if read else "", seconds)


def _seconds(pid: int) -> float:
    """The processor time of a process so far, which other programs do not change."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def left(text: str) -> list[str]:
    """Return what a terminal shows after this text: lines erased and overwritten as it was told, colours left out."""
    screen, row, column = [""], 0, 0
    for count, code, move, words in PART.findall(text):
        if words:
            screen[row] = screen[row][:column].ljust(column) + words + screen[row][column + len(words) :]
            column += len(words)
        elif move == "\r":
            column = 0
        elif move == "\n":
            row += 1
            screen += [""] * (row == len(screen))
        elif code == "A":
            row = max(0, row - int(count or 1))
        elif code == "K":
            screen[row] = "" if count == "2" else screen[row][:column]
    return [line.rstrip() for line in screen]
