"""Limits of size, and lines that stand twice, read from the source of a package: tests plant violations in a copy."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

from support.house import nodes

MODULE, FUNCTION = 350, 60  # lines at most, docstrings and decorators included
TWICE = 7  # lines of code that may not stand in two places


def oversized(root: Path) -> list[str]:
    """Modules and functions below `root` that are too long, with their lines; empty if there are none."""
    found = []
    for file in sorted(root.rglob("*.py")):
        text, name = file.read_text(), str(file.relative_to(root))
        if (count := len(text.splitlines())) > MODULE:
            found.append(f"{name}: {count} lines")
        for node in nodes(text):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if (count := (node.end_lineno or first) - first + 1) > FUNCTION:
                    found.append(f"{name}: {node.name}: {count} lines")
    return found


def repeated(root: Path) -> list[str]:
    """Places below `root` where TWICE lines of code repeat an earlier place; empty if there are none."""
    seen: dict[tuple[str, ...], str] = {}
    found = []
    for file in sorted(root.rglob("*.py")):
        lines = _code(file.read_text())
        skip = 0  # one report per repeated run
        for k in range(len(lines) - TWICE + 1):
            words = tuple(text for _, text in lines[k : k + TWICE])
            place = f"{file.relative_to(root)}:{lines[k][0]}"
            if (first := seen.setdefault(words, place)) != place and k >= skip:
                found.append(f"{place} repeats {first}")
                skip = k + TWICE
    return found


@lru_cache(maxsize=1024)
def _code(text: str) -> tuple[tuple[int, str], ...]:
    """Lines with their numbers, without imports, docstrings, comments, brackets alone, and what a def takes."""
    hidden: set[int] = set()
    for node in nodes(text):
        constant = node.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
        if isinstance(node, (ast.Import, ast.ImportFrom)) or isinstance(getattr(constant, "value", None), str):
            hidden |= set(range(node.lineno, (node.end_lineno or 0) + 1))  # type: ignore[attr-defined]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            hidden |= set(range(node.lineno, node.body[0].lineno))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in hidden]
    return tuple((k, line) for k, line in lines if not line.startswith("#") and any(map(str.isalnum, line)))
