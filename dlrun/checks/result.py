"""The verdict of a check: pass, warn, fail or skip, and the numbers behind it (`dlrun check`, C1-C10)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["STYLES", "Result", "Verdict", "lines", "table", "worst"]


@dataclass(frozen=True)
class Verdict:
    """What was measured, what was expected, and one sentence on what to try."""

    status: str  # pass | warn | fail | skip
    value: str
    expected: str
    message: str


STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True)
class Result(Verdict):
    """A verdict with the name of its check and the seconds that it took: one row of checks.csv."""

    check: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """The columns of checks.csv in their order."""
        found = asdict(self)
        return {c: found[c] for c in ("check", "status", "value", "expected", "message", "seconds")}


def worst(results: list[Result]) -> str:
    """Return the worst status of all results: fail, warn or pass."""
    found = {r.status for r in results}
    return next((status for status in ("fail", "warn") if status in found), "pass")


def lines(results: list[Result]) -> list[str]:
    """Return one plain line per check, for logs and pipes."""
    width = max(len(r.check) for r in results)
    return [
        f"check {r.check:<{width}}  {r.status}  {r.value}"
        + (f" (expected {r.expected})" if r.expected else "")
        + f": {r.message}"
        for r in results
    ]


def table(results: list[Result]) -> Table:
    """Return the rich table of the results."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column, wrap in (
        ("check", False),
        ("", False),
        ("measured", True),
        ("expected", True),
        ("what it means", True),
    ):
        shown.add_column(column, overflow="fold", no_wrap=not wrap)
    for r in results:
        status = f"[{STYLES[r.status]}]{r.status}[/]"
        shown.add_row(r.check, status, escape(r.value), escape(r.expected), escape(r.message))
    return shown
