"""The config that the chosen options would give by themselves, for the page of a run (`dlrun report`)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlrun.config.compose import builtin_conf

__all__ = ["defaults", "followed", "leaves"]


def defaults(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the chosen options would give by themselves; without Hydra, which takes half a second."""
    import yaml

    def read(name: str) -> dict[str, Any]:
        for folder in (Path("conf"), Path(os.environ.get("DLRUN_CONF") or "conf"), builtin_conf()):
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
                found = yaml.safe_load((folder / f"{name}.yaml").read_bytes())
                return found if isinstance(found, dict) else {}
        return {}

    def option(group: str, name: str) -> dict[str, Any]:
        found = read(f"{group}/{name}")
        below = [
            option(group, n) for n in found.pop("defaults", []) if isinstance(n, str) and n not in ("_self_", name)
        ]
        return {k: v for part in (*below, found) for k, v in part.items()}

    root = read("train")
    usual = {k: v for k, v in root.items() if k not in ("defaults", "hydra")}
    usual["choices"] = {k: v for one in root.get("defaults", []) if isinstance(one, dict) for k, v in one.items()}
    for group, chosen in choices.items():
        # what a stored config names is a stranger's word: no path leads out of the folder
        if re.fullmatch(r"\w+", str(group)) and re.fullmatch(r"\w[\w-]*", str(chosen)) and group != "experiment":
            usual[group] = {**(usual.get(group) or {}), **option(str(group), str(chosen))}
    return usual


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def followed(value: Any, config: Mapping[str, Any]) -> Any:
    """What a default such as ${trainer.epochs} comes to in a config."""
    match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return config.get(match[1], value) if match else value
