"""What a check does, sees and cannot see, in the words of its source: `dlrun check --explain overfit` (C1-C10).

Nothing is written twice: the sentences are those of the docstrings of a check and of its module, the numbers are the
constants beside it, with the comments that give their reasons.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from dlrun.checks.check import Check
from dlrun.config.practices import cited, without_ids

__all__ = ["Explanation", "explained"]

BLIND = re.compile(r"(?i)cannot detect|\bnone (?:of them )?detects")
SENTENCES = re.compile(r"(?<=\.) (?=[A-Z`])")
OTHER = re.compile(r" \([A-Z]\d+ (?:does|do)\)")  # which practice finds it; users have no list of them
HEAD = re.compile(r"^((?:[A-Z]\d+(?:, )?)+): ")


@dataclass(frozen=True)
class Explanation:
    """A check in words.

    does: what the function does, one sentence
    how: how its module does it, and what it detects
    blind: the sentences on what it cannot detect
    numbers: names, values and reasons of the constants that it compares with
    practices: ids of the practices that it implements
    """

    does: str
    how: str
    blind: tuple[str, ...]
    numbers: tuple[tuple[str, str, str], ...]
    practices: tuple[str, ...]


def explained(check: Check) -> Explanation:
    """Return what the source says of a check."""
    module = sys.modules[check.module]
    text = inspect.getdoc(module) or ""
    first = text.partition("\n")[0]
    ids = HEAD.match(first)
    body = " ".join(text.partition("\n")[2].split())
    sentences = SENTENCES.split(OTHER.sub("", without_ids(body)))
    blind = tuple(one for one in sentences if BLIND.search(one))
    how = " ".join(one for one in sentences if one not in blind)
    does = inspect.getdoc(check.function) or ""
    practices = cited(f"({ids[1]})" if ids else first)
    return Explanation(" ".join(does.split()), how, blind, tuple(_numbers(inspect.getsource(module))), tuple(practices))


def _numbers(source: str) -> Iterator[tuple[str, str, str]]:
    """The constants of a module that have a comment: their names, values and the comment."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], (ast.Name, ast.Tuple)):
            continue
        name = ast.unparse(node.targets[0]).strip("()")
        if not re.fullmatch(r"[A-Z_]+(, [A-Z_]+)*", name) or len(value := ast.unparse(node.value)) > 60:
            continue
        comment = _comment(lines, node)
        if comment:
            yield name, value[1:-1] if isinstance(node.value, ast.Tuple) else value, comment


def _comment(lines: list[str], node: ast.Assign) -> str:
    """The comment behind a constant, or the one in the lines above it."""
    behind = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition("#")[2]
    if behind:
        return behind.strip()
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.startswith("# "):
            break
        above.insert(0, line.removeprefix("# "))
    return " ".join(above)
