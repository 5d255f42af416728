"""The names of the checks before training, for `check.only=[…]` and `check.skip=[…]` (C1-C10).

Read from the source of dlrun/checks, since importing it would import torch: a name is that of a function under
`@check(order=…)`. Only the lines from the decorator to the name are parsed, which takes about 2 ms.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

__all__ = ["check_names"]

FOLDER = Path(__file__).resolve().parents[1] / "checks"
HEAD = re.compile(r"^@check\(.*?^def \w+\(", re.DOTALL | re.MULTILINE)


@functools.cache
def check_names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the names of all checks in the order in which they run. Raises ValueError if an order is no literal."""
    found = []
    for file in folder.rglob("*.py"):
        for head in HEAD.findall(file.read_text(encoding="utf-8")):
            function = ast.parse(f"{head}): ...").body[0]
            assert isinstance(function, ast.FunctionDef)
            found.append((_order(function), function.name))
    return tuple(name for _, name in sorted(found))


def _order(function: ast.FunctionDef) -> int:
    calls = [d for d in function.decorator_list if isinstance(d, ast.Call)]
    for value in (keyword.value for call in calls for keyword in call.keywords if keyword.arg == "order"):
        if isinstance(value, ast.Constant) and isinstance(value.value, int):
            return value.value
    raise ValueError(f"check {function.name}: expected @check(order=NUMBER)")
