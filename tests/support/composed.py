"""Compose a config in a test as the command line does, without starting anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.config.compose import compose, composer
from dlrun.config.settings import Settings

if TYPE_CHECKING:
    from dlrun.training.experiment import Experiment

SMALL = (
    "trainer.epochs=2",
    "dataset.limit=120",
    "check=none",
    "model.width=4",
    "trainer.threads=1",
    "trainer.report=false",
)


def composed(*overrides: str) -> Settings:
    """Return the resolved, validated config of `dlrun train <overrides>`."""
    return compose(*overrides)


def recorded(*overrides: str) -> dict[str, Any]:
    """Return what `dlrun train <overrides>` stores beside the config."""
    with composer({}, overrides) as made:
        return made.compose(made.parse(overrides)).record()


def alter(exp: Experiment, **parts: Any) -> None:
    """Exchange parts of a built experiment in place, which no code of dlrun does: a test breaks what a test built."""
    for name, part in parts.items():
        assert name in exp.__dataclass_fields__, name
        object.__setattr__(exp, name, part)
