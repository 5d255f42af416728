"""Warnings about a sweep: a best value near an edge, differences within the noise, failures (S3, S9).

Shown on the page of `dlrun report SWEEP`. Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dlrun.analysis import edges, scores
from dlrun.analysis.sweeps import Axis, Trials, edge_near
from dlrun.vocabulary import NOT_RANKED, Status

__all__ = ["noise", "warnings"]

SHARES = r"dropout|momentum|smoothing|\balpha"  # keys whose values stay below one


def warnings(trials: Trials) -> list[str]:
    """Return what to know before trusting the best trial, each with what to try next if anything would help."""
    return [*_at_edges(trials), *noise(trials), *_failures(trials)]


def _at_edges(trials: Trials) -> list[str]:
    """The warnings of the sweep itself; other folders, and sweeps in their first round, get them by the same rules."""
    if trials.said is not None:
        return trials.said
    said = []
    for axis in trials.axes if trials.done else ():
        best = trials.best[0]
        side = edge_near(axis, best)
        if axis.numbers is not None and side is not None and (wider := _wider(axis, side)):
            said.append(edges.near_edge(axis.name, axis.numbers[best], axis.low, axis.high, side, f"try {wider}"))
    return said


def _wider(axis: Axis, side: Literal["low", "high"]) -> str:
    """The override that searches beyond an edge; empty if the key takes no value there."""
    whole = all(map(_is_whole, axis.choices))
    if words := axis.words or (tuple(axis.choices) if whole and not axis.whole else ()):
        more = edges.listed_beyond([int(w) if _is_whole(w) else float(w) for w in words], side, log=axis.log)
        wanted = ",".join(dict.fromkeys([*words, *(f"{v:.6g}" for v in more)]))
        return f"{axis.name}={wanted}" if all(_taken(axis, v, whole) for v in more) else ""
    grown = edges.beyond(axis.low, axis.high, side, log=axis.log, whole=axis.whole)
    if grown is None or not all(_taken(axis, v, whole) for v in grown):
        return ""
    return edges.typed(axis.name, *grown, log=axis.log, whole=axis.whole)


def _is_whole(word: str) -> bool:
    return word.lstrip("-").isdigit()


def _taken(axis: Axis, value: float, whole: bool) -> bool:
    """Whether a key would take a value, judged by its name and its other values: a report cannot compose."""
    if value >= 1 and re.search(SHARES, axis.name):
        return False
    return value > 0 or axis.low < 0 or (value == 0 and (axis.low == 0 or not whole))


def noise(trials: Trials) -> list[str]:
    """Return a warning if the best settings, one seed each, differ by no more than chance explains (S9)."""
    best, numbers = trials.best[:3], trials.settings
    repeated = any(numbers.count(numbers[k]) > 1 for k in best)
    if len(best) < 2 or trials.metric != "val_acc" or repeated:
        return []
    count = scores.images(trials.entries[best[0]].result, "val")
    top, last = (trials.scores[k] for k in (best[0], best[-1]))
    if not count or top - last > (chance := scores.noise(top, last, count)):
        return []
    return [
        f"noise: the best {len(best)} settings differ by {top - last:.4f} in val_acc; on {count} images chance alone "
        f"makes up to {chance:.4f} (95 %): repeat them with several seeds before choosing; "
        "try 'seed=range(1,6)', then dlrun compare --group-seeds"
    ]


def _failures(trials: Trials) -> list[str]:
    """The failed trials by status and reason, with the range in which no other trial lies."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, entry in enumerate(trials.entries):
        if entry.result.get("status") in NOT_RANKED:
            groups.setdefault(_reason(entry.result), []).append(k)
    said, total = [], len(trials.entries)
    for (status, reason), which in sorted(groups.items(), key=lambda group: -len(group[1])):
        apart = [word for axis in trials.axes if (word := _apart(axis, which, trials.done))]
        parts = [f"{status}: {len(which)} of {total} trials", *([reason] if reason else []), *apart]
        said.append("; ".join(parts))
    for status in (Status.RUNNING, Status.INTERRUPTED):
        if count := sum(entry.result.get("status") == status for entry in trials.entries):
            said.append(f"{status}: {count} of {total} trials have no final score")
    return said


def _apart(axis: Axis, lost: Sequence[int], done: Sequence[int]) -> str:
    """The end of an axis where several trials failed and none completed: it is the likely cause."""
    if axis.numbers is None or len(lost) < 2:
        return ""
    bad, good = ([v for k in which if not math.isnan(v := axis.numbers[k])] for which in (lost, done))
    if not good or len(bad) < len(lost):
        return ""
    if min(bad) > max(good):
        return f"all have {axis.name} above {max(good):.3g}, where none completed"
    return f"all have {axis.name} below {min(good):.3g}, where none completed" if max(bad) < min(good) else ""


def _reason(result: Mapping[str, Any]) -> tuple[str, str]:
    """Status and reason, without the numbers in which equal failures differ."""
    reason = str(result.get("reason") or "").split("\n")[0]
    reason = re.sub(r"(?<![\w.])\d[\d.]*(?:e[-+]?\d+)?(?![\w])", "…", reason.split(": try ")[0])
    return str(result.get("status")), reason[:160]
