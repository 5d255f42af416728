"""Ranges and allowed values, written in brackets at the start of a key's comment in its YAML.

`alpha: 0.9  # [0..1] share of the soft part` refuses `dlrun train objective.alpha=2`. The brackets:

    [0..1]  (0..1)  [0..1)    a range; a round bracket excludes its end
    [1..]  (0..]              no upper end
    [whole 1..]               whole numbers; a default that is one, such as 30, means the same
    [auto|cpu|1]              one of these words, numbers, true, false, null
    [list of 0..1)            a list of such values; empty only if the default is
    [pair of 0..1)            two of them
    [odd] [metric] [weights]  a named rule, see NAMED
    [any]                     any value of the default's type

null passes every rule: the type of the default decides whether it is allowed (`dlrun.config.schema`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dlrun.config.check_names import check_names
from dlrun.vocabulary import COLUMNS, FURTHER

__all__ = ["METRICS", "NAMED", "OF_TARGET", "SCORED", "Rule", "parse", "scalar", "split"]


@dataclass(frozen=True)
class Rule:
    """What the value of a key must satisfy, in code and in words."""

    holds: Callable[[Any], bool]
    text: str
    listing: Callable[[], tuple[Any, ...]] | None = (
        None  # the allowed values; called late, since some are read from files
    )
    listed: bool = False  # the value is a list of them
    several: bool = False  # values of several types are allowed, though they cannot be listed

    @property
    def words(self) -> tuple[Any, ...]:
        """The allowed values, empty if they cannot be listed."""
        return self.listing() if self.listing else ()

    @property
    def expected(self) -> str:
        """What follows "expected" in a message."""
        return self.text + ", ".join(map(_shown, self.words))

    @property
    def mixed(self) -> bool:
        """Whether values of several types are allowed, so that the type of the default does not matter."""
        return self.several or (not self.listed and len({type(word) for word in self.words}) > 1)


_NAME = re.compile(r"\w[\w .+=-]{0,79}")  # it becomes part of the name of a folder
_WORD = re.compile(r"[^\s,]{1,80}")
# columns of metrics.csv that can decide which epoch or trial is best
METRICS = tuple(column for column in COLUMNS if column not in ("epoch", "lr"))
# and, for trials, the validation scores that a run computes at its end
SCORED = tuple(dict.fromkeys((*METRICS, *(column for column in FURTHER if column.startswith("val_")))))
# cuda:1 is the second GPU
OF_TARGET = re.compile(r"val_(.+)_(?:loss|acc)|val_map")  # of one target, or of sets of classes (M11)
WEIGHTS = ("none", "balanced", "effective")  # of classes, in a loss
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


def _number(value: Any, whole: bool = False) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value]
    return all(_number(side, whole=True) for side in sides) and (
        (len(sides) == 1 and not isinstance(value, list) and value >= 0) or (len(sides) == 2 and min(sides) > 0)
    )


def _is_weights(value: Any) -> bool:
    numbers = value if isinstance(value, list) else []
    return value in WEIGHTS or (bool(numbers) and all(_number(one) and 0 < one < math.inf for one in numbers))


def _is_normalize(value: Any) -> bool:
    parts = value if isinstance(value, list) and len(value) == 2 else []
    numbers = all(isinstance(part, list) and part and all(map(_number, part)) for part in parts)
    return value in ("auto", "data", "weights") or (bool(parts) and numbers and min(parts[1]) > 0)


def _is_crop(value: Any) -> bool:
    return value == "auto" or (_number(value) and 0 < value <= 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, int, float))  # Hydra reads `run.name=7` as a number


def _is_patterns(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name.strip() for name in names)


def _is_epochs(value: Any) -> bool:
    epochs = value if isinstance(value, list) else [value]
    rising = all(_number(epoch, whole=True) and epoch > 1 for epoch in epochs) and epochs == sorted(set(epochs))
    return (value == 0 and _number(value, whole=True)) or (bool(epochs) and rising)


def _is_rate(value: Any) -> bool:
    if isinstance(value, str):
        found = re.fullmatch(rf"({_NUMBER})x", value)
        return found is not None and 0 < float(found[1]) < math.inf
    return _number(value) and 0 <= value < math.inf


def _is_shares(value: Any) -> bool:
    if isinstance(value, list):
        return all(_number(one) and 0 <= one < math.inf for one in value)
    return isinstance(value, Mapping) and all(_number(one) and 0 <= one < math.inf for one in value.values())


def _column(listing: Callable[[], tuple[Any, ...]]) -> Rule:
    """One of these columns, or the score of a target by its name, which the schema compares with dataset.targets."""

    def holds(value: Any) -> bool:
        return value in listing() or (isinstance(value, str) and OF_TARGET.fullmatch(value) is not None)

    return Rule(holds, "one of ", listing)


def _one_of(listing: Callable[[], tuple[Any, ...]]) -> Rule:
    def holds(value: Any) -> bool:
        return any(type(value) is type(word) and value == word for word in listing())

    return Rule(holds, "one of ", listing)


def _omitted(word: str) -> str:
    """The check of `CHECK` or `CHECK:MODULE`."""
    return word.partition(":")[0]


NAMED: Mapping[str, Callable[[], Rule]] = {
    "any": lambda: Rule(lambda v: True, "any value"),
    "odd": lambda: Rule(lambda v: _number(v, True) and v > 0 and v % 2 == 1, "an odd number: 1, 3, 5, 7 …"),
    "crop": lambda: Rule(
        lambda v: v in ("none", "full", "auto") or (_is_size(v) and v != 0),
        "none, full (the size of the images), auto, pixels of a side, or [height,width]",
        several=True,
    ),
    "eval_crop": lambda: Rule(
        lambda v: v in ("auto", "full") or (_is_size(v) and v != 0),
        "auto (that of training), full (the whole image), pixels of a side, or [height,width]",
        several=True,
    ),
    "size": lambda: Rule(_is_size, "pixels of a side, 0 or more, or [height,width]", several=True),
    # torch, NumPy and Optuna all take 63 bits
    "seed": lambda: Rule(
        lambda v: _number(v, True) and 0 <= v < 2**63, "a whole number, 0 or more and less than 2**63"
    ),
    "weights": lambda: Rule(_is_weights, f"one of {', '.join(WEIGHTS)}, or a list of numbers above 0", several=True),
    "patterns": lambda: Rule(_is_patterns, "backbone, or a list of names or patterns", several=True),
    "epochs": lambda: Rule(_is_epochs, "0, an epoch after the first, or a rising list of such epochs", several=True),
    "rate": lambda: Rule(_is_rate, "a number, 0 or more, or a multiple such as 10x", several=True),
    "normalize": lambda: Rule(
        _is_normalize, "auto, data, weights, or [[mean,…],[std,…]] with each std above 0", several=True
    ),
    "crop_pct": lambda: Rule(_is_crop, "auto, or a number more than 0 and at most 1", several=True),
    "folder": lambda: Rule(lambda v: str(v).strip() != "", "the name of a folder"),
    "name": lambda: Rule(
        lambda v: bool(_NAME.fullmatch(str(v))) and _is_text(v),
        "a name of at most 80 letters, digits, spaces and . _ + = -, the first a letter or digit",
    ),
    "word": lambda: Rule(
        lambda v: _is_text(v) and bool(_WORD.fullmatch(str(v))),
        "a word without spaces and commas, of at most 80 letters",
    ),
    "text": lambda: Rule(lambda v: _is_text(v) and str(v).strip() != "", "a text"),
    "device": lambda: Rule(
        lambda v: v in DEVICES or (isinstance(v, str) and re.fullmatch(r"cuda:\d+", v) is not None),
        "one of ",
        lambda: DEVICES,
    ),
    "metric": lambda: _column(lambda: METRICS),
    "score": lambda: _column(lambda: SCORED),
    "shares": lambda: Rule(_is_shares, "a list of numbers, 0 or more, or {name: number}", several=True),
    "check": lambda: _one_of(check_names),
    # the modules are those of the model, which is built later (dlrun.checks.exempt)
    "omission": lambda: Rule(
        lambda v: isinstance(v, str) and _omitted(v) in check_names() and not v.endswith(":"),
        "one of ",
        check_names,
    ),
}

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(whole\s+)?({_NUMBER})?\s*\.\.\s*({_NUMBER})?")
_ROUND = re.compile(rf"\((whole\s+)?({_NUMBER})?\s*\.\.")
_MANY = re.compile(r"(list|pair) of (.+)")


def split(comment: str) -> tuple[str, str]:
    """Return the bracket that opens a comment, or "", and the rest; `(0 = never)` is prose, `(0..1)` a bracket."""
    if not comment.startswith("[") and not _ROUND.match(comment):
        return "", comment
    end = next((i for i, letter in enumerate(comment) if letter in "])"), len(comment) - 1)
    return comment[: end + 1], comment[end + 1 :].strip()


def scalar(text: str) -> Any:
    """Return what a plain YAML scalar means: true, false, null, a number, or the text itself."""
    if text in ("true", "false", "null", ""):
        return {"true": True, "false": False}.get(text)
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(_NUMBER, text) else text.strip("'\"")


@cache
def parse(bracket: str, default: str = "") -> Rule:
    """Return the rule of a bracket; `default` is the YAML text of the key's default. Raises ValueError."""
    body = bracket[1:-1].strip()
    if bracket[:1] not in ("[", "(") or bracket[-1:] not in ("]", ")") or not body:
        raise ValueError(bracket)
    many = _MANY.fullmatch(body)
    if not many:
        return _single(bracket, body, default)
    items = re.findall(r"[^\s,\[\]]+", default)
    item = _single(bracket, many[2].strip(), items[0] if items else "")
    if many[1] == "pair":
        return _pair(item)
    return _list(item, empty=default == "[]")


def _single(bracket: str, body: str, default: str) -> Rule:
    if found := _RANGE.fullmatch(body):
        whole = bool(found[1]) or re.fullmatch(r"[-+]?\d+", default) is not None
        low, high = (None if end is None else float(end) for end in found.groups()[1:])
        return _range(low, high, bracket, whole)
    if "|" in body:
        words = tuple(scalar(word.strip()) for word in body.split("|"))
        return _one_of(lambda: words)
    name = body if body in NAMED else body.removesuffix("s")
    if name not in NAMED:
        raise ValueError(bracket)
    return NAMED[name]()


def _range(low: float | None, high: float | None, bracket: str, whole: bool) -> Rule:
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise ValueError(bracket)
    above, below = bracket[0] == "(", bracket[-1] == ")"
    floor, ceiling = -math.inf if low is None else low, math.inf if high is None else high

    def holds(value: Any) -> bool:
        if not _number(value, whole) or not math.isfinite(value):
            return False
        return bool(floor < value if above else floor <= value) and bool(value < ceiling if below else value <= ceiling)

    if low is None:
        text = f"less than {high:g}" if below else f"{high:g} or less"
    elif high is None:
        text = f"more than {low:g}" if above else f"{low:g} or more"
    elif above or below:
        text = f"more than {low:g}" if above else f"{low:g} or more"
        text += f" and less than {high:g}" if below else f" and at most {high:g}"
    else:
        text = f"between {low:g} and {high:g}"
    if whole:
        text = f"a whole number{' ' if text.startswith('between') else ', '}{text}"
    return Rule(holds, text)


def _list(item: Rule, empty: bool) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and (empty or bool(value)) and all(map(item.holds, value))

    text = "a list of " if item.listing else f"a list, each {item.text}"
    return Rule(holds, text, item.listing, listed=True)


def _pair(item: Rule) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(map(item.holds, value))

    return Rule(holds, f"two values, each {item.expected}" if item.listing else f"two numbers, {item.text}")


def _shown(word: Any) -> str:
    return "null" if word is None else str(word).lower() if isinstance(word, bool) else str(word)
