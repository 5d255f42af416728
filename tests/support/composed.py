"""Compose a config in a test as the command line does, without starting anything."""

from __future__ import annotations

from typing import Any

from dlrun.config.compose import compose, composer

SMALL = (
    "trainer.epochs=2",
    "dataset.limit=120",
    "check=none",
    "model.width=4",
    "trainer.threads=1",
    "trainer.report=false",
)


def composed(*overrides: str) -> Any:
    """Return the resolved, validated config of `dlrun train <overrides>`."""
    return compose(*overrides)


def recorded(*overrides: str) -> dict[str, Any]:
    """Return what `dlrun train <overrides>` stores beside the config."""
    with composer({}) as made:
        return made.compose(made.parse(overrides)).record()
