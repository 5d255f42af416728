"""The resolved config as typed, read-only settings: what a composed or a stored config becomes (`dlrun train`, C1).

The defaults here are those of conf/trainer/default.yaml and conf/check/default.yaml (a test compares them). They apply
to runs of older versions, whose stored config lacks newer keys. Nothing here imports torch or OmegaConf.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, TypeVar

__all__ = ["Check", "Settings", "Trainer"]

T = TypeVar("T")
_NO_GROUP = {"seed", "trust", "run_dir", "name", "tags", "note", "trainer", "check", "_plain"}


@dataclass(frozen=True)
class Trainer:
    """The keys of `trainer`; conf/trainer/default.yaml explains them."""

    epochs: int = 30
    hours: float = 0.0
    stop_after: int = 0
    batch_size: int = 32
    eval_batch_size: int = 256
    start_from: str | None = None
    device: str = "auto"
    devices: int = 1
    sync_batchnorm: str | bool = "auto"
    sharding: str = "none"
    fit_all: bool = False
    feature_views: int = 8
    multi_crop: str = "none"
    precision: str = "auto"
    compile: bool = False
    threads: int = 0
    deterministic: bool = True
    clip_norm: float = 0.0
    clip_value: float = 0.0
    ema: float = 0.0
    swa: float = 0.0
    accumulate: int = 1
    monitor: str = "val_acc"
    patience: int = 0
    while_gap_shrinks: bool = False
    keep: str = "best"
    diagnostics: bool = True
    report: bool = True
    weight_decay_biases: bool = False

    @property
    def last_epoch(self) -> int:
        """The epoch after which this process stops: `stop_after`, or the end of the schedule."""
        return min(self.stop_after or self.epochs, self.epochs)


@dataclass(frozen=True)
class Check:
    """The keys of `check`; conf/check/default.yaml explains them. Budget in seconds."""

    enabled: bool = True
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    budget: float = 60.0
    warn_only: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Settings:
    """A resolved config: `trainer` and `check` typed, the other groups as read-only mappings.

    A group that an older config lacks is empty. Make it with `of`, and a changed one with `changed`.
    """

    seed: int
    trust: tuple[str, ...]  # packages whose classes the config may name
    run_dir: str | None
    name: str  # of the run; "" if it has none
    tags: tuple[str, ...]
    note: str
    choices: Mapping[str, Any]  # the chosen option of each group
    trainer: Trainer
    check: Check
    dataset: Mapping[str, Any]
    augment: Mapping[str, Any]
    model: Mapping[str, Any]
    loss: Mapping[str, Any]
    objective: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    regularizer: Mapping[str, Any]
    logger: Mapping[str, Any]
    _plain: Mapping[str, Any]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Settings:
        """Return the settings of a resolved config; unknown keys of `trainer` and `check` are only in `plain`."""
        own: dict[str, Any] = copy.deepcopy(dict(plain))
        groups = {f.name for f in fields(cls)} - _NO_GROUP
        about = own.get("run") or {}
        return cls(
            seed=own.get("seed", 1),
            trust=tuple(own.get("trust") or ()),
            run_dir=about.get("dir"),
            name=_text(about.get("name")),
            tags=tuple(map(str, about.get("tags") or ())),
            note=_text(about.get("note")),
            trainer=_typed(Trainer, own.get("trainer") or {}),
            check=_typed(Check, own.get("check") or {}),
            _plain=own,
            **{name: MappingProxyType(own.get(name) or {}) for name in groups},
        )

    @property
    def plain(self) -> dict[str, Any]:
        """The whole config as it is stored: JSON types, a new copy at each access."""
        return copy.deepcopy(dict(self._plain))

    def changed(self, **sections: Any) -> Settings:
        """Return settings with other top-level values; a mapping changes only the keys that it has."""
        plain = self.plain
        for name, value in sections.items():
            plain[name] = {**(plain.get(name) or {}), **value} if isinstance(value, Mapping) else value
        return Settings.of(plain)

    def __reduce__(self) -> tuple[Callable[..., Settings], tuple[dict[str, Any]]]:
        # for pickle and copy, which refuse read-only mappings
        return Settings.of, (self.plain,)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _typed(kind: type[T], node: Mapping[str, Any]) -> T:
    """The known keys of a group; a whole number becomes a float, and a list a tuple, if the default is one."""
    made: Any = kind
    found = {}
    for known in fields(made):
        if known.name in node:
            value = node[known.name]
            if isinstance(known.default, float) and isinstance(value, int):
                value = float(value)
            found[known.name] = tuple(value or ()) if isinstance(known.default, tuple) else value
    return made(**found)  # type: ignore[no-any-return]
