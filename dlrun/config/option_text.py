"""One option file as text: keys, defaults and comments with their lines, read in a fraction of a millisecond."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from dlrun.config.rules import Rule, parse, split
from dlrun.errors import UserError
from dlrun.folders import opener

__all__ = ["Key", "Option", "content", "read"]


@dataclass(frozen=True)
class Key:
    """One key of an option file: its value as written there and its comment; the rule may be inherited."""

    name: str
    value: str
    comment: str
    file: Path
    line: int
    bracket: str = ""
    ruled: Key | None = None  # the key that carries the bracket, if another

    def rule(self) -> Rule | None:
        """Return the rule of the key. Raises UserError with file and line for a bracket that cannot be read."""
        source = self.ruled or self
        if not source.bracket:
            return None
        try:
            return parse(source.bracket, source.value)
        except ValueError:
            forms = "expected a form such as [0..1], (0..], [a|b] or [list of 0..]"
            raise UserError(f"{source.file}, line {source.line}: cannot read {source.bracket}: {forms}") from None

    def over(self, below: Key | None) -> Key:
        """Return this key with the comment and the rule of the one that it replaces, if it has none of its own."""
        if below is None:
            return self
        ruled = self.ruled if self.bracket or self.ruled else below.ruled or (below if below.bracket else None)
        return replace(self, comment=self.comment or below.comment, ruled=ruled)


@dataclass
class Option:
    """One file: its opening comment, what it starts from, the options that it chooses, its own keys."""

    file: Path
    title: str = ""
    package: str = ""
    bases: list[str] = field(default_factory=list)  # names in its `defaults`, `_self_` among them
    first: bool = False  # `_self_` precedes the options that it chooses, which therefore override its keys
    chosen: dict[str, Key] = field(default_factory=dict)  # group -> option, as its `defaults` choose
    keys: dict[str, Key] = field(default_factory=dict)  # by dotted names; sections as well


def content(file: Path) -> bytes:
    """Return the bytes of a file of options, which may be a link of the user.

    Raises FileNotFoundError, and UserError for a pipe, a device, a huge file and one that cannot be read.
    """
    real = Path(os.path.realpath(file)) if file.is_symlink() else file
    return opener.read(real.parent, real.name)


def read(file: Path) -> Option:
    """Return an option; what is no `key: value` is left to Hydra, which reports it.

    Raises OSError if it is not there, and UserError if it is no regular file.
    """
    stat = file.stat()
    return _read(file, stat.st_mtime_ns, stat.st_size)


_KEY = re.compile(r"( *)(- +)?([\w.$/@ -]*[\w$]|'[^']*'|\"[^\"]*\"):(?: +(.*))?$")
_ENTRY = re.compile(r" *- +([^:]*)$")


@lru_cache(maxsize=1000)
def _read(file: Path, _changed: int, _size: int) -> Option:
    lines = content(file).decode(errors="replace").splitlines()
    option, start = Option(file), 0
    for line in lines:  # the opening comment; a bracket there belongs to the first key
        if not line.startswith("#") or split(line.lstrip("# "))[0]:
            break
        start += 1
        if line.startswith("# @package"):
            option.package = line.split()[-1]
        else:
            option.title = f"{option.title} {line.lstrip('#').strip()}".strip()
    _Reader(option).lines(lines, start)
    return option


class _Reader:
    """Goes through the lines of one file."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.sections: list[tuple[int, str]] = []  # indentation and name of what is open
        self.above: list[str] = []  # comment lines that precede a key
        # the key that a comment line continues if it starts at this column or further right
        self.last: tuple[dict[str, Key], str, int] | None = None
        self.block = -1  # lines indented deeper than this are text of a block scalar

    def lines(self, lines: list[str], start: int) -> None:
        """Read the lines from one on."""
        for number, line in enumerate(lines[start:], start + 1):
            column = len(line) - len(line.lstrip())
            if not line.strip() or 0 <= self.block < column:
                self.above, self.last = [], None
                continue
            self.block = -1
            if line.lstrip().startswith("#"):
                self._comment(column, line.lstrip("# ").strip())
            else:
                self._line(line, number)

    def _comment(self, column: int, text: str) -> None:
        if self.last is not None and not self.above and column >= self.last[2]:
            keys, name, _ = self.last
            keys[name] = replace(keys[name], comment=f"{keys[name].comment} {text}".strip())
        else:
            self.above.append(text)

    def _line(self, line: str, number: int) -> None:
        code, trailing = _apart(line)
        found, entry = _KEY.match(code), _ENTRY.match(code)
        listing = code.lstrip().startswith("- ")
        column = len(code) - len(code.lstrip()) + listing  # list items may have the indentation of their key
        while self.sections and self.sections[-1][0] >= column:
            self.sections.pop()
        inside = ".".join(name for _, name in self.sections)
        if inside == "defaults" or code.startswith("defaults:"):
            self._defaults(code, trailing, number, found, entry)
        elif listing and inside in self.option.keys:
            key, item = self.option.keys[inside], code.lstrip()[2:].strip()
            self.option.keys[inside] = replace(key, value=f"{key.value[:-1]}, {item}]" if key.value else f"[{item}]")
        elif found and not listing:
            name = ".".join(filter(None, (inside, found[3].strip("'\""))))
            self._keep(self.option.keys, name, (found[4] or "").strip(), trailing, number, line)
        if found and not listing and not (found[4] or "").strip():
            self.sections.append((len(found[1]), found[3]))
        if found and (found[4] or "").strip()[:1] in ("|", ">"):
            self.block = len(found[1])
        self.above = []

    def _defaults(
        self, code: str, trailing: str, number: int, found: re.Match[str] | None, entry: re.Match[str] | None
    ) -> None:
        if code.startswith("defaults:"):
            self.option.bases += re.findall(r"[^\s,\[\]]+", code.removeprefix("defaults:"))
        elif entry:
            self.option.bases.append(entry[1].strip())
        elif found and found[2]:
            group = found[3].split()[-1].lstrip("/").split("@")[0]
            self.option.first |= not self.option.chosen and "_self_" in self.option.bases
            self._keep(self.option.chosen, group, (found[4] or "").strip(), trailing, number, code)

    def _keep(self, keys: dict[str, Key], name: str, value: str, trailing: str, number: int, line: str) -> None:
        beside, comment = split(trailing)
        before, more = split(" ".join(self.above))
        comment = f"{more} {comment}".strip()
        keys[name] = Key(name, value, comment, self.option.file, number, beside or before)
        self.last = (keys, name, line.index(":") + 1) if trailing else None


def _apart(line: str) -> tuple[str, str]:
    """A line without its comment, and the comment."""
    quote = ""
    for i, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and line[max(i - 1, 0)] in " [{,:":
            quote = letter
        elif letter == "#" and line[i - 1 : i].strip() == "":
            return line[:i].rstrip(), line[i:].lstrip("# ").strip()
    return line.rstrip(), ""
