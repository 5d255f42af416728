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
    found = {}
    for key, value in leaves(config):
        default = usual.get(key)
        if isinstance(default, str) and "${" in default:
            default = _followed(config, key, default)
        if key not in usual or default != value:
            found[key] = None if default == "???" else default
    return found


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield every leaf with its dotted key; an empty mapping and a list are leaves."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _followed(config: Mapping[str, Any], key: str, default: str) -> Any:
    """The value of an interpolation at a key of a config, or the interpolation itself if it cannot be resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(dict(config))
    try:
        OmegaConf.update(tree, key, default)
        return OmegaConf.select(tree, key)
    except OmegaConfBaseException:
        return default
