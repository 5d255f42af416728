"""Which keys of a config differ from the defaults of the chosen options (for the page of `dlrun report`).

The Composer supplies the defaults when a run is composed. Nobody works them out again later, when the files that
they stand in may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["changed", "leaves"]


def changed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default of every leaf of a resolved config that differs from it, by dotted key; None if it has none.

    A default that follows another key, such as ${trainer.epochs}, is what that key comes to in this config.
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
    """What an interpolation at a key comes to in a config; itself if it leads nowhere."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(dict(config))
    try:
        OmegaConf.update(tree, key, default)
        return OmegaConf.select(tree, key)
    except OmegaConfBaseException:
        return default
