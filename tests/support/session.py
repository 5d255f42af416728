"""The first session of README.md as data: its commands and their output, and whether another output is alike."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

MARK = "@@ step"
NUMBER = re.compile(r"\d[\d,.]*(?:e[-+]?\d+)?")
ALIKE = 0.6  # share of the words, with all numbers taken as equal


class Step(NamedTuple):
    """A command and the lines that follow it."""

    command: str
    lines: list[str]


class Done(NamedTuple):
    """The exit code of a command and the lines that it printed."""

    code: int
    lines: list[str]


def steps(text: str, title: str = "A first session") -> list[Step]:
    """The commands of a section, in order: the lines of its blocks that begin with `$ `; other blocks show files."""
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found: list[Step] = []
    for block in re.findall(r"^```\w*\n(.*?)^```", section, re.M | re.S):
        for line in block.splitlines() if block.startswith("$ ") else ():
            if line.startswith("$ "):
                found.append(Step(line[2:], []))
            else:
                found[-1].lines.append(line)
    return found


def programs(found: Sequence[Step]) -> list[str]:
    """Every program that the steps start, those joined by && counted one by one."""
    return [part.strip() for step in found for part in step.command.split("&&")]


def script(found: Sequence[Step]) -> str:
    """A script for bash that runs the commands as they are, in one shell, with a line before and after each."""
    parts = [
        f'echo {shlex.quote(f"{MARK} {n} starts")}\n{step.command}\necho "{MARK} {n} exits $?"'
        for n, step in enumerate(found)
    ]
    return "\n".join(["exec 2>&1", *parts, ""])


def outcomes(text: str) -> list[Done]:
    """What a script printed, by step."""
    return [Done(int(code), lines.splitlines()) for lines, code in _parts(text)]


def _parts(text: str) -> Iterator[tuple[str, str]]:
    pattern = rf"^{MARK} (\d+) starts\n(.*?)^{MARK} \1 exits (\d+)$"
    for found in re.finditer(pattern, text, re.M | re.S):
        yield found[2], found[3]


def words(line: str) -> list[str]:
    """The words of a line, with 0 for every number and one word for the name of a run's folder."""
    line = re.sub(r"\d{8}-\d{6}-[\w-]+", "RUN", line)
    return NUMBER.sub("0", line.replace("/", " ")).split()


def missing(printed: Sequence[str], found: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The lines of `printed` that no line of `found` is like, in their order.

    Lines that begin with a word of `optional`, such as verdicts, and … are not expected.
    """
    left, start = [], 0
    for line in printed:
        if line.strip() in ("", "…") or line.startswith(tuple(optional)):
            continue
        wanted = words(line)
        near = (n for n in range(start, len(found)) if SequenceMatcher(None, wanted, words(found[n])).ratio() >= ALIKE)
        place = next(near, None)
        if place is None:
            left.append(line)
        else:
            start = place + 1
    return left
