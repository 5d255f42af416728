"""The runs that a table of results cannot rank, each with its reason, below the table of `dlrun compare` (S10)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from dlrun.analysis.compare import Entry
from dlrun.reports import tables
from dlrun.vocabulary import FAILED, Status

__all__ = ["BELOW", "lines"]

# not among the rows: nothing to rank, or not over
BELOW = (*FAILED, Status.INTERRUPTED, Status.UNREADABLE)
MOST = 6  # lines
NAMES = 3  # in a line


def lines(entries: Sequence[Entry], column: str, names: Mapping[str, str], width: int) -> list[str]:
    """Return one line of at most `width` letters per status and reason; `names` are short ones by path."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        status = str(entry.result.get("status") or "empty")
        reason = " ".join(str(entry.result.get("reason") or "").split())
        groups.setdefault((status, "" if status == Status.INTERRUPTED else reason), []).append(entry)
    found = []
    for key, group in groups.items():
        called = [_named(e, tables.cut(names[str(e.path)], max(12, width // 4)), column) for e in group[:NAMES]]
        found.append(_line(*key, group, called))
    found.sort()
    if len(found) > MOST:
        rest = len(found) - MOST + 1
        found = [*found[: MOST - 1], f"and {rest} more reasons: --status failed lists these runs"]
    return [tables.cut_end(line, width) for line in found]


def _line(status: str, reason: str, group: Sequence[Entry], names: Sequence[str]) -> str:
    more = f" and {len(group) - NAMES} more" if len(group) > NAMES else ""
    if status == Status.INTERRUPTED:
        reason = f"`{shlex.join(['dlrun', 'resume', str(group[0].path)])}` continues the first"
    return f"{status}: {', '.join(names)}{more}" + (f": {reason}" if reason else "")


def _named(entry: Entry, name: str, column: str) -> str:
    """The name of a run, with the score of its best epoch if it got that far."""
    value = entry.result.get(column)
    if not isinstance(value, float):
        return name
    return f"{name} ({column} {value:.4f}, epoch {entry.result.get('best_epoch', '?')})"
