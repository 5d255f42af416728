"""The search space: the words of `-m` as axes, lists and ranges, checked before the first trial (S1, S2).

`optimizer.lr=0.1,0.01`, `seed=range(0,3)`, `model=cnn,resnet20`, `optimizer.lr=tag(log,interval(1e-5,1))`, and short
forms that Hydra's grammar lacks: loguniform(a,b), uniform(a,b), logint(a,b), int(a,b). With colons, such as
`seed=range:0:3`, no quotes are needed in a shell. Nothing imports torch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dlrun.analysis.edges import beyond, edge, listed_beyond, position, spans_decades, typed
from dlrun.config.schema import lookup
from dlrun.config.typed import refuse_repeated
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.config.compose import Composed, Composer

__all__ = ["Axis", "check", "grid", "plain_words", "read", "refuse_shared", "size"]

SHORT = {
    "loguniform": "tag(log,interval({}))",
    "uniform": "interval({})",
    "logint": "tag(log,int,interval({}))",
    "int": "tag(int,interval({}))",
}
FORMS = (*SHORT, "range", "interval")
CORNERS = 2000  # combinations of options whose ranges are checked before the first trial
NEVER = ("search", "hydra", "run", "sweep", "trust")  # shared by the whole sweep


@dataclass(frozen=True)
class Axis:
    """A key that is searched: `words` are the values of a list as typed; without them it is a range, low to high."""

    key: str
    words: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    group: bool = False

    @property
    def name(self) -> str:
        """The key without the + that adds it."""
        return self.key.lstrip("+")

    @property
    def choices(self) -> list[Any]:
        """The values of a list, numbers as numbers; empty for a range."""
        return [_scalar(word) for word in self.words]

    def at(self, share: float) -> Any:
        """Return the value at a place between 0 and less than 1: of a range in its scale, of a list by its order."""
        if self.words:
            return self.choices[int(share * len(self.words))]
        low, high = self.low, self.high + 1 if self.whole else self.high
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        # e^(log 16) is a little less than 16
        return (
            min(math.floor(value * (1 + 1e-12)), int(self.high)) if self.whole else min(max(value, self.low), self.high)
        )

    def word(self, value: Any) -> str:
        """Return the override that sets the axis to a value, spelled as in its list if it is one of its values."""
        if value in self.choices:
            value = self.words[self.choices.index(value)]
        return f"{self.key}={value!r}" if isinstance(value, float) else f"{self.key}={value}"

    def ends(self) -> list[str]:
        """Return the overrides that are checked before the first trial: all of a list, both ends of a range."""
        values = self.choices or [int(v) if self.whole else v for v in (self.low, self.high)]
        return [self.word(value) for value in values]

    @property
    def numbers(self) -> list[float]:
        """The numbers between which values lie; empty if there is no order: words, options, seeds."""
        if self.group or self.name.rpartition(".")[2] in ("seed", "split_seed", "test_seed", "fold"):
            return []
        found = self.choices or [self.low, self.high]
        numeric = len(found) > 1 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found)
        return sorted(map(float, found)) if numeric else []

    @property
    def scale(self) -> bool:
        """Whether the axis has a log scale: as tagged, or inferred from the values of its list."""
        return spans_decades(self.numbers) if self.words else self.log

    def edge(self, value: Any) -> Literal["low", "high"] | None:
        """Return the edge that a value is near, within a tenth of the range, or None (S3)."""
        found = self.numbers
        return edge(float(value), found[0], found[-1], log=self.scale) if found else None

    def reaching(self, value: Any) -> Axis:
        """Return the range, widened to a value outside it."""
        return self if self.holds(value) else replace(self, low=min(self.low, value), high=max(self.high, value))

    def grown(self, side: Literal["low", "high"]) -> Axis | None:
        """Return the axis with as much again beyond an edge, in its scale; None if nothing lies beyond."""
        if self.words:
            more = listed_beyond(self.choices, side, log=self.scale)
            return replace(self, words=tuple(dict.fromkeys([*self.words, *(f"{v:.6g}" for v in more)])))
        wider = beyond(float(self.low), float(self.high), side, log=self.log, whole=self.whole)
        return None if wider is None else replace(self, low=wider[0], high=wider[1])

    def narrowed(self, values: Sequence[Any], best: Any, factor: float) -> Axis:
        """Return the range around the best values, at most a factor (10, then 3) from the very best (S4).

        On a linear axis the factor is a share of the range: 10 a quarter to each side, 3 an eighth.
        """
        if self.words or len(values) < 2:
            return self
        if self.log:
            pad = math.sqrt(factor)
            low, high = max(min(values) / pad, best / factor), min(max(values) * pad, best * factor)
        else:
            pad = (self.high - self.low) / (8 if factor >= 10 else 16)
            low, high = max(min(values) - pad, best - 2 * pad), min(max(values) + pad, best + 2 * pad)
        low, high = max(low, self.low), min(high, self.high)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        return replace(self, low=low, high=high) if low < high else self

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range or is in the list."""
        return value in self.choices if self.words else self.low <= value <= self.high

    def place(self, value: Any) -> float:
        """Return where a value of a range lies, 0 to 1."""
        return position(float(value), self.low, self.high, log=self.log)

    def typed(self) -> str:
        """Return the override as `dlrun train -m` reads it."""
        if self.words:
            return f"{self.key}={','.join(self.words)}"
        return typed(self.key, self.low, self.high, log=self.log, whole=self.whole)

    def record(self) -> dict[str, Any]:
        """Return plain values for sweep.yaml."""
        return {**asdict(self), "words": list(self.words)}

    @classmethod
    def recorded(cls, found: Mapping[str, Any]) -> Axis:
        """Return the axis that `record` wrote."""
        return cls(**{**found, "words": tuple(found["words"])})


def _scalar(word: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError, OverflowError):
            if math.isfinite(value := kind(word)):
                return value
    return {"true": True, "false": False, "null": None}.get(word, word)


def plain_words(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with short forms and colons translated to Hydra's grammar."""
    return [_translated(word) for word in overrides]


def _translated(word: str) -> str:
    key, _, value = word.partition("=")
    found = re.fullmatch(rf"({'|'.join(FORMS)}):([^()]+)", value)
    if found:
        value = f"{found[1]}({','.join(found[2].split(':'))})"
    found = re.fullmatch(rf"({'|'.join(SHORT)})\(\s*([^(),]+),\s*([^(),]+)\)", value)
    if found:
        return f"{key}={SHORT[found[1]].format(f'{found[2].strip()},{found[3].strip()}')}"
    return f"{key}={value}" if value else word


def read(composer: Composer, overrides: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """Return the axes and the overrides that all trials share; without an axis only with `search.steps`.

    Raises UserError for a malformed range.
    """
    parsed = composer.parse(plain_words(overrides), sweeping=True)
    for word, override in zip(overrides, parsed, strict=True):
        override.input_line = word  # not the form of Hydra, in messages
    refuse_repeated(parsed, [o.key_or_group for o in parsed if composer.chooses(o)])
    axes, fixed = [], []
    for override in parsed:
        key = override.key_or_group
        if key == "run.dir":
            raise UserError("run.dir= names the folder of a single run; with -m type sweep.dir=FOLDER")
        if not override.is_sweep_override():
            fixed.append(override.input_line)
            continue
        refuse_shared([key])
        axes.append(_axis(composer, override))
    if not axes:
        # a value that was meant as an axis, such as seed=1..5, is refused with the right form first
        if composer.config(composer.parse(fixed))["search"]["steps"]:
            return [], fixed  # they name the axes
        forms = "a list, such as optimizer.lr=0.1,0.01, or a range, such as optimizer.lr=loguniform:1e-4:1e-1"
        raise UserError(f"-m: no axis to search; type {forms}")
    # the default decides whether an axis is whole: with the ends 0 and 1 a fraction looks whole
    plain = composer.config(composer.parse([*fixed, *(a.ends()[0] for a in axes)]))
    return [a if a.words or a.whole else _typed(a, lookup(plain, a.name)) for a in axes], fixed


def refuse_shared(keys: Iterable[str]) -> None:
    """Raise UserError for a key that all trials share and that is no axis, such as trust."""
    for key in keys:
        if re.split(r"[./@]", key.lstrip("+~"))[0] in NEVER:
            raise UserError(f"{key}: shared by the whole sweep; expected one value")


def _typed(axis: Axis, value: Any) -> Axis:
    if isinstance(value, int) and not isinstance(value, bool):
        return replace(axis, low=int(axis.low), high=int(axis.high), whole=True)
    return axis


def _axis(composer: Composer, override: Any) -> Axis:
    from hydra.core.override_parser.types import Transformer

    key, value, group = override.get_key_element(), override.value(), composer.chooses(override)
    if override.is_discrete_sweep():
        words = tuple(str(w) for w in override.sweep_iterator(transformer=Transformer.encode))
        if len(set(words)) < len(words):
            raise UserError(f"{override.input_line}: a value is listed twice")
        return Axis(key, words, group=group)
    low, high, tags = value.start, value.end, value.tags
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high):
        form, ends = re.split(r"[:(]", override.input_line.partition("=")[2], maxsplit=1)[0], (low, high)
        swapped = isinstance(low, (int, float)) and isinstance(high, (int, float)) and high < low
        hint = f"; type {key}={form}:{ends[1]:g}:{ends[0]:g}" if swapped and form in SHORT else ""
        raise UserError(f"{override.input_line}: expected two numbers, the smaller first{hint}")
    if "log" in tags and low <= 0:
        raise UserError(
            f"{override.input_line}: a log scale must start above 0, found {low:g}; "
            f"type {key}=loguniform:{high / 1000:g}:{high:g} or {key}=uniform:{low:g}:{high:g}"
        )
    if group:
        raise UserError(f"{override.input_line}: {key} is a group; expected a list of its options")
    if whole := "int" in tags:
        if low != int(low) or high != int(high):
            raise UserError(f"{override.input_line}: expected whole numbers")
        low, high = int(low), int(high)
    # whether ints mean whole numbers follows from the default of the key, in `read`
    return Axis(key, (), low, high, "log" in tags, whole)


def size(axes: Sequence[Axis]) -> int:
    """Return how many points a grid of lists has."""
    return math.prod(len(a.words) for a in axes)


def grid(axes: Sequence[Axis], number: int) -> dict[str, Any]:
    """Return point `number` of the grid; the last list varies fastest, as in Hydra."""
    point = {}
    for axis in reversed(axes):
        number, digit = divmod(number, len(axis.words))
        point[axis.key] = axis.choices[digit]
    return {axis.key: point[axis.key] for axis in axes}


def check(composer: Composer, axes: Sequence[Axis], fixed: Sequence[str], whole: bool) -> None:
    """Compose the whole grid, or the ends and choices of every axis. Raises UserError for the first invalid point.

    Options are tried in all combinations, since the keys of one option may be missing in another.
    """
    for number, words in enumerate(_grid(axes) if whole else _corners(axes), start=1):
        try:
            _refuse_devices(composer.compose(composer.parse([*fixed, *words])))
        except UserError as error:
            where = f"point {number} of the sweep ({' '.join(words)}): " if words else ""
            raise UserError(f"{where}{error}") from error


def _refuse_devices(composed: Composed) -> None:
    """Raise UserError if a trial needs more devices than its launcher gives it."""
    trainer, search, launcher = composed.config["trainer"], composed.config["search"], composed.launcher
    count = trainer["devices"]
    given = max(float(launcher.get(key) or 0) for key in ("gpus_per_trial", "num_gpus", "gpus_per_node"))
    if count > 1 and count > given and trainer["device"] != "cpu":
        raise UserError(f"trainer.devices={count}: a trial has {given:g}; type hydra.launcher.gpus_per_trial={count}")
    if count > 1 and search["stages"]:
        raise UserError(f"trainer.devices={count}: expected 1 in search.stages, whose trials pause; omit one of them")


def _grid(axes: Sequence[Axis]) -> Iterator[list[str]]:
    return ([a.word(point[a.key]) for a in axes] for point in (grid(axes, n) for n in range(size(axes))))


def _corners(axes: Sequence[Axis]) -> Iterator[list[str]]:
    groups, keys = [a for a in axes if a.group], [a for a in axes if not a.group]
    for options in itertools.islice(itertools.product(*(a.ends() for a in groups)), CORNERS):
        first = {a.key: a.ends()[0] for a in keys}
        yield [*options, *first.values()]
        for axis in keys:
            for word in axis.ends()[1:]:
                yield [*options, *(first | {axis.key: word}).values()]
