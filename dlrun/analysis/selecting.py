"""Which runs `dlrun compare` lists: --filter, --where, --status, --last (S10)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dlrun.analysis.compare import Entry
from dlrun.errors import UserError
from dlrun.vocabulary import NUMBERS, Status

__all__ = ["newest", "satisfying", "tagged", "with_status"]

CLAUSE = re.compile(r"^\s*(?P<key>[^\s<>=!]+)\s*(?P<sign>>=|<=|!=|==|=|>|<)\s*(?P<value>.*?)\s*$")
FORM = "--filter 'val_acc>0.7 and model=resnet20'"


class Clause(NamedTuple):
    """One comparison of a filter."""

    key: str
    sign: str
    value: str


def satisfying(entries: Sequence[Entry], text: str) -> list[Entry]:
    """Return the runs that satisfy comparisons joined by `and` and `or`, of which `and` binds closer.

    Keys are numbers of the results, settings as in the table, and status. A run without the key satisfies only `!=`.
    Raises UserError for a comparison that cannot be read, or whose key no run has.
    """
    parts = [[_clause(word) for word in re.split(r"\s+and\s+", part)] for part in re.split(r"\s+or\s+", text.strip())]
    for clause in (clause for part in parts for clause in part):
        _known(entries, clause.key, "--filter")
    return [e for e in entries if any(all(_holds(e, clause) for clause in part) for part in parts)]


def tagged(entries: Sequence[Entry], words: Sequence[str]) -> list[Entry]:
    """Return the runs to which every `tag=x`, `name=x`, `note=x` or `key=value` applies; a note contains its word."""
    found = list(entries)
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UserError(f"--where {word}: expected key=value, such as --where tag=baseline")
        if key in ("tag", "tags"):
            found = [e for e in found if value in _tags(e)]
        elif key in ("name", "note"):
            found = [e for e in found if value in str(e.result.get(key) or "")]
        else:
            _known(entries, key, "--where")
            found = [e for e in found if _holds(e, Clause(key, "=", value))]
    return found


def with_status(entries: Sequence[Entry], status: str) -> list[Entry]:
    """Return the runs with a status. Raises UserError for a word that is none."""
    names = [str(name) for name in Status]
    if status not in names:
        near = difflib.get_close_matches(status, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise UserError(f"--status {status}: {hint}")
    return [e for e in entries if e.result.get("status") == status]


def newest(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Return the `count` runs that started last; one without a time counts by its folder's name."""
    return sorted(entries, key=lambda e: (str(e.result.get("started") or ""), str(e.path)))[-count:]


def _clause(text: str) -> Clause:
    match = CLAUSE.match(text)
    if match is None or not match["value"]:
        raise UserError(f"--filter: {text.strip() or 'nothing'}: expected a comparison, such as {FORM}")
    return Clause(match["key"], match["sign"].replace("==", "="), match["value"].strip("'\""))


def _known(entries: Sequence[Entry], key: str, flag: str) -> None:
    if key in ("status", *NUMBERS) or not entries or any(_value(e, key) is not None for e in entries):
        return
    names = {k.removeprefix("choices.") for e in entries for k in e.config} | {"status", *NUMBERS}
    near = difflib.get_close_matches(key, sorted(names), 1)
    ends = sorted(name for name in names if name.endswith(f".{key}"))[:1]
    hint = f"did you mean {(ends or near)[0]}?" if ends or near else f"such as {FORM}"
    raise UserError(f"{flag}: {key}: no run has this key; {hint}")


def _value(entry: Entry, key: str) -> Any:
    if key == "tag":
        return entry.result.get("tags")
    if key in ("status", "name", "note") or key in NUMBERS or isinstance(entry.result.get(key), float):
        return entry.result.get(key)
    return entry.config.get(f"choices.{key}", entry.config.get(key))


def _holds(entry: Entry, clause: Clause) -> bool:
    found = _value(entry, clause.key)
    if clause.key == "tag":
        return (clause.value in _tags(entry)) != (clause.sign == "!=")
    if found is None or found == "":
        return clause.sign == "!="
    a, b = _number(found), _number(clause.value)
    if a is None or b is None:
        same = str(found) == clause.value
        return same if clause.sign == "=" else not same if clause.sign == "!=" else False
    signs = {"=": a == b, "!=": a != b, ">": a > b, "<": a < b, ">=": a >= b, "<=": a <= b}
    return signs[clause.sign]


def _tags(entry: Entry) -> list[str]:
    tags = entry.result.get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found
