"""The runs that a table of results cannot rank, each with its reason, below the table of `dlrun compare` (S10)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from dlrun.analysis import scores
from dlrun.analysis.compare import Entry
from dlrun.reports import tables
from dlrun.vocabulary import FAILED, Status

__all__ = ["BELOW", "lines"]

# not among the rows: nothing to rank, or not over
BELOW = (*FAILED, Status.INTERRUPTED, Status.UNREADABLE)
MOST = 6  # lines
NAMES = 3  # in a line


def lines(entries: Sequence[Entry], column: str, names: Mapping[str, str], width: int) -> list[str]:
    """Return one line of at most `width` letters per status and reason, the most frequent first.

    `names` are short ones by path.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        status = str(entry.result.get("status") or "empty")
        reason = " ".join(str(entry.result.get("reason") or "").split())
        groups.setdefault((status, "" if status == Status.INTERRUPTED else reason), []).append(entry)
    found = []
    for key, group in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), item[0])):
        called = [_named(e, tables.cut(names[str(e.path)], max(12, width // 4)), column) for e in group[:NAMES]]
        whole = (_line(*key, group, called[:count]) for count in range(len(called), 0, -1))
        found.append(next((line for line in whole if len(line) <= width), _line(*key, group, called[:1])))
    if len(found) > MOST:
        rest = len(found) - MOST + 1
        found = [*found[: MOST - 1], f"and {rest} more reasons: --status failed lists these runs"]
    return [tables.cut_end(line, width) for line in found]


def _line(status: str, reason: str, group: Sequence[Entry], names: Sequence[str]) -> str:
    count = f"{len(group)} " if len(group) > 1 else ""
    more = f" and {len(group) - len(names)} more" if len(group) > len(names) else ""
    if status == Status.UNREADABLE:
        reason = reason.removeprefix(f"{group[0].path}/")
        return f"left out: {', '.join(names)}{more}" + (f" ({reason})" if reason else "")
    if status == Status.INTERRUPTED:
        reason = f"`{shlex.join(['dlrun', 'resume', str(group[0].path)])}` continues the first"
    return f"{count}{status}: {', '.join(names)}{more}" + (f": {reason}" if reason else "")


def _named(entry: Entry, name: str, column: str) -> str:
    """The name of a run, with the score of its best epoch if it got that far."""
    value = entry.result.get(column)
    if not isinstance(value, float):
        return name
    score = scores.counted(column, value, entry.result)
    return f"{name} {column} {score} in epoch {entry.result.get('best_epoch', '?')}"
