"""The studies: a question of the essays as a sweep, in conf/study/NAME.yaml (`dlrun study NAME`).

A file is data: the keys below, lists of words that are checked like those of any file, and rules of a closed set of
kinds. It adds no trust, no code and no command. Files in ./conf/study and $DLRUN_CONF/study win over built-in ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlrun.config.options import STUDIES, builtin_conf, user_conf
from dlrun.config.trust import allowed
from dlrun.errors import UserError
from dlrun.folders.plain import mapping

__all__ = ["KINDS", "Study", "listed", "load"]

# of each kind of rule the keys that it needs, and those that it may have
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "best_inside": (("of",), ()),
    "worse_than": (("of", "value", "than"), ("than_of", "by")),
    "gain_between": (("of", "value", "than", "low", "high"), ()),
    "ratio_at_least": (("of", "value", "than", "ratio"), ()),
    "ratio_at_most": (("of", "value", "than", "ratio"), ()),
    "no_difference": (("of", "value", "than", "within"), ()),
    "near": (("of", "value", "number", "within"), ()),
}
NUMBERS = ("by", "low", "high", "ratio", "within", "number")
AT = ("first", "last", "best", "mean")
CHANCE = "chance_loss"  # as the number of a rule: ln C for C classes
NEVER = ("search", "hydra", "run", "sweep", "trust")  # of the person who types, or of the sweep


@dataclass(frozen=True)
class Study:
    """A study: what it asks and what the essay claims, the varied lists, the shared words, the rules.

    With `combine` the runs differ in their seeds alone, and ensembles of these sizes are compared.
    """

    name: str
    question: str
    essay: str
    values: tuple[str, ...]
    words: tuple[str, ...]
    seeds: int
    control: str
    score: str
    rules: tuple[dict[str, Any], ...]
    combine: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return plain values for sweep.yaml."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, found: Mapping[str, Any], where: Path | str, name: str = "") -> Study:
        """Return the study of a file, or of a record. Raises UserError that names the key."""
        known = {"name": name, **found}
        fields = cls.__dataclass_fields__
        if strange := [key for key in known if key not in fields]:
            raise UserError(
                f"{where}: {strange[0]}: no such key; a study has {', '.join(k for k in fields if k != 'name')}"
            )
        known = {"values": [], "words": [], "seeds": 3, "control": "", "score": "val_acc", "combine": [], **known}
        texts, lists = ("name", "question", "essay", "control", "score"), ("values", "words")
        for key in texts:
            if not isinstance(known.get(key), (str, int, float)) or isinstance(known.get(key), bool):
                raise UserError(f"{where}: {key}: expected a text, found {known.get(key)!r}")
        for key in lists:
            if not isinstance(known[key], list) or not all(isinstance(w, str) and "=" in w for w in known[key]):
                raise UserError(
                    f"{where}: {key}: expected a list of words, quoted if they hold commas: ['optimizer.lr=0.1,1']"
                )
        for word in (*known["values"], *known["words"]):
            _refuse(word, where)
        sizes, seeds = known["combine"], known["seeds"]
        if type(seeds) is not int or not 1 <= seeds <= 100:
            raise UserError(f"{where}: seeds: expected a whole number from 1 to 100, found {seeds!r}")
        if not isinstance(sizes, list) or not all(type(size) is int and 1 <= size <= seeds for size in sizes):
            raise UserError(f"{where}: combine: expected sizes of ensembles, at most as many as seeds={seeds}")
        if bool(sizes) == bool(known["values"]):
            raise UserError(f"{where}: expected either values or combine")
        rules = known.get("rules")
        if not isinstance(rules, list) or not rules:
            raise UserError(f"{where}: rules: expected a list of at least one rule")
        checked = tuple(_rule(rule, where) for rule in rules)
        name, question, essay, control, score = (str(known[key]) for key in texts)
        values, words = (tuple(known[key]) for key in lists)
        return cls(name, question, essay, values, words, seeds, control, score, checked, tuple(sizes))


def _refuse(word: str, where: Path | str) -> None:
    key = word.lstrip("+").partition("=")[0].replace("/", ".")
    if key.split(".")[0] in NEVER or key.endswith("_target_") or not allowed(word, ()):
        raise UserError(f"{where}: {word}: not allowed in a study; type it after `dlrun study NAME`")


def _rule(rule: Any, where: Path | str) -> dict[str, Any]:
    kind = rule.get("kind") if isinstance(rule, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: rules: kind: {kind!r}; expected one of {', '.join(KINDS)}")
    needed, further = KINDS[kind]
    if lacking := [key for key in needed if key not in rule]:
        raise UserError(f"{where}: rules: {kind}: {lacking[0]} is missing")
    if strange := [key for key in rule if key not in ("kind", *needed, *further)]:
        raise UserError(f"{where}: rules: {kind}: {strange[0]}: no such key")
    made: dict[str, Any] = {}
    for key, value in rule.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if key in NUMBERS and not (number or (key, value) == ("number", CHANCE)):
            raise UserError(f"{where}: rules: {kind}: {key}: expected a number, found {value!r}")
        if key not in NUMBERS and not isinstance(value, (str, int, float)):
            raise UserError(f"{where}: rules: {kind}: {key}: expected a text, found {value!r}")
        made[key] = value if key in NUMBERS else _text(value)
        if key in ("of", "than_of") and made[key].partition("@")[2] not in ("", *AT):
            raise UserError(
                f"{where}: rules: {kind}: {key}: {value}: expected a column, and @{', @'.join(AT)} or nothing"
            )
    return made


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def listed() -> dict[str, Path]:
    """Return the folders of all studies by name, the first folder that has one winning."""
    found: dict[str, Path] = {}
    for folder in (*user_conf(), builtin_conf()):
        for file in sorted((folder / STUDIES).glob("*.yaml")):
            found.setdefault(file.stem, folder)
    return found


def load(name: str) -> Study:
    """Return a study by its name. Raises UserError for one that is not there, or whose file is malformed."""
    there = listed()
    if name not in there:
        raise UserError(f"{name}: no such study; {_near(name, sorted(there))}studies: {', '.join(sorted(there))}")
    folder = there[name]
    return Study.of(mapping(folder / STUDIES, f"{name}.yaml"), folder / STUDIES / f"{name}.yaml", name)


def _near(name: str, names: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, 1)
    return f"did you mean {close[0]}? " if close else ""
