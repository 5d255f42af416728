"""The verdict of a check: pass, warn, fail or skip, and the numbers behind it (`dlrun check`, C1-C10)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dlrun.vocabulary import Outcome

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["STYLES", "Result", "Verdict", "lines", "noteworthy", "summary", "table"]


@dataclass(frozen=True)
class Verdict:
    """What was measured, what was expected, and one sentence on what to try."""

    status: Outcome
    value: str
    expected: str
    message: str


STYLES = {Outcome.PASS: "green", Outcome.WARN: "yellow", Outcome.FAIL: "bold red", Outcome.SKIP: "dim"}
WORDS = {Outcome.PASS: "passed", Outcome.WARN: "warned", Outcome.FAIL: "failed"}
BUDGET = "check.budget"  # in the message of each check that had too little time
WIDE = 110  # columns of a terminal from which the table has room for every column


@dataclass(frozen=True)
class Result(Verdict):
    """A verdict with the name of its check and the seconds that it took: one row of checks.csv."""

    check: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """The columns of checks.csv in their order."""
        found = asdict(self)
        return {c: found[c] for c in ("check", "status", "value", "expected", "message", "seconds")}


def summary(results: list[Result]) -> str:
    """Return the count of the results by outcome, such as `19 checks: 11 passed, 8 not run`.

    Not run is also what ended early for want of time; undecided is what ran, and could not judge this setup.
    """
    words = [WORDS.get(r.status) or _unjudged(r) for r in results]
    counted = [
        f"{words.count(word)} {word}"
        for word in ("passed", "warned", "failed", "undecided", "off", "not run")
        if word in words
    ]
    more = " (raise check.budget)" if any(r.status == Outcome.SKIP and BUDGET in r.message for r in results) else ""
    return f"{len(results)} check{'s' * (len(results) != 1)}: {', '.join(counted)}{more}"


def _unjudged(r: Result) -> str:
    if r.value == "off":
        return "off"
    return "not run" if r.value == "not run" or BUDGET in r.message else "undecided"


def noteworthy(results: list[Result]) -> list[Result]:
    """Return the results that a reader has to see: warnings, failures, and checks that could not decide."""
    return [r for r in results if r.status != Outcome.PASS and (r.status != Outcome.SKIP or r.value != "off")]


def lines(results: list[Result]) -> list[str]:
    """Return one plain line per check, for logs and pipes."""
    width = max((len(r.check) for r in results), default=0)
    return [
        f"check {r.check:<{width}}  {r.status}  {r.value}"
        + (f" (expected {r.expected})" if r.expected else "")
        + f": {r.message}"
        for r in results
    ]


def table(results: list[Result], width: int = WIDE) -> Table:
    """Return the rich table of the results; below WIDE columns what passed is shown by what was measured alone."""
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    shown = Table(box=None, pad_edge=False, header_style="bold", show_header=wide)
    for column in ("check", "", "measured", "expected", "what it means") if wide else ("check", "", "found"):
        shown.add_column(column, overflow="fold", no_wrap=column in ("check", ""))
    for r in results:
        cells = (r.value, r.expected, r.message) if wide else (_short(r),)
        shown.add_row(r.check, Text(r.status, STYLES[r.status]), *map(Text, cells))
    return shown


def _short(r: Result) -> str:
    if r.status == Outcome.PASS:
        return r.value
    expected = f" (expected {r.expected})" if r.expected else ""
    return f"{r.value}{expected}: {r.message}" if r.value or expected else r.message
