"""The keys of a config that differ from the defaults of the chosen options (for the page of `dlrun report`).

They are determined when a run is composed and stored with it. Later the option files may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["changed", "leaves"]


def changed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the leaves of a resolved config that differ from them, by dotted key; None for no default.

    A default that refers to another key, such as ${trainer.epochs}, is resolved in this config.
    """
    usual = dict(leaves(defaults))
    given = dict(leaves(config))
    usual |= _resolved(config, {k: v for k, v in usual.items() if isinstance(v, str) and "${" in v and k in given})
    differs = [key for key, value in given.items() if key not in usual or usual[key] != value]
    return {key: None if usual.get(key) == "???" else usual.get(key) for key in differs}


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield every leaf with its dotted key; an empty mapping and a list are leaves."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _resolved(config: Mapping[str, Any], references: Mapping[str, str]) -> dict[str, Any]:
    """The value of each reference at its key of a config; the reference itself if it cannot be resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree, found = OmegaConf.create(dict(config)), {}
    for key, reference in references.items():
        value = OmegaConf.select(tree, key)
        try:
            OmegaConf.update(tree, key, reference)
            node = OmegaConf.select(tree, key)
            found[key] = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException:
            found[key] = reference
        OmegaConf.update(tree, key, value)
    return found
