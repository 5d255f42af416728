"""Compose a config in a test as the command line does, without starting anything."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from dlrun.composing import builtin_conf, checked

SMALL = ("trainer.epochs=2", "dataset.limit=120", "check=none", "model.width=4", "trainer.threads=1")


def composed(*overrides: str) -> Any:
    """Return the resolved, validated config of `dlrun train <overrides>`."""
    GlobalHydra.instance().clear()
    plain = [o for o in overrides]
    with initialize_config_dir(str(builtin_conf()), version_base="1.3"):
        return checked(compose("train", plain, return_hydra_config=True))
