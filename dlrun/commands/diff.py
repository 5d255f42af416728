"""`dlrun diff A B`: what differs between two runs: config, command line, code, versions, data and scores."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.commands.arguments import Parser
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.analysis.differences import Difference

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Print one line per key that differs, by section; returns 0."""
    parser = Parser(prog="dlrun diff", description=__doc__)
    parser.add_argument("first", metavar="A", help="a run, such as outputs/latest")
    parser.add_argument("second", metavar="B", help="another run")
    args = parser.parse_args(argv)
    from dlrun.analysis import differences

    found = differences.between(*(Path(name).expanduser() for name in (args.first, args.second)))
    print("\n".join(_lines(found, (args.first, args.second))) if found else "nothing differs")
    return Exit.FINE


def _lines(found: Sequence[Difference], names: tuple[str, str]) -> list[str]:
    """A header with both runs, then per section its keys with both values, on a terminal cut to its width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    keys = max(len(one.key) for one in found) + 2
    room = max((width - keys - 4) // 2, 8) if width else 0
    cells = [[_cut(text, room) for text in one[2:]] for one in found]
    middle = max(len(_cut(names[0], room)), *(len(cell[0]) for cell in cells))

    def line(key: str, first: str, second: str) -> str:
        return f"{key.ljust(keys)}  {first.ljust(middle)}  {second}".rstrip()

    said, section = [line("", *(_cut(name, -room) for name in names))], ""
    for one, (first, second) in zip(found, cells, strict=True):
        if one.section != section:
            said.append(section := one.section)
        said.append(line(f"  {one.key}", first, second))
    return said


def _cut(text: str, room: int) -> str:
    """A text on one line, shortened to the room there is: at its end, or with a negative room at its start."""
    text = " ".join(text.split())
    if not room or len(text) <= abs(room):
        return text
    return f"…{text[room + 1 :]}" if room < 0 else f"{text[: room - 1]}…"
