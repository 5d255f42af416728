"""Presets and options as people write them in ./conf, as Hydra reads them (`dlrun train experiment=mine`).

A preset needs no header, and chooses options as on the command line: `model: resnet20`, also inside `defaults`. An
option without `_target_` and `defaults` changes a few keys: of the built-in option of that name, or of the default of
its group. Files add no trust and no search path. The text of the same files is read by `dlrun.config.options`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dlrun.config.options import COMBINED, PRESETS, Options
from dlrun.errors import UserError

__all__ = ["as_option", "as_preset", "changes_default", "refuse_unsafe", "settings"]


def refuse_unsafe(file: Path, found: Mapping[str, Any]) -> None:
    """Raise UserError if a file trusts packages or names folders of options, which only a command may do."""
    if found.get("trust"):
        raise UserError(f"{_shown(file)}: trust is only allowed on the command line; type trust=[PACKAGE] there")
    hydra = found.get("hydra")
    if hydra is not None and not isinstance(hydra, Mapping):  # such as ${other}, which Hydra would follow
        raise UserError(f"{_shown(file)}: hydra: expected keys of Hydra below it")
    if "hydra.searchpath" in found or (hydra and hydra.get("searchpath")):
        raise UserError(f"{_shown(file)}: hydra.searchpath is only allowed on the command line; type it there")


def as_preset(file: Path, found: Mapping[str, Any], groups: Collection[str]) -> dict[str, Any]:
    """Return a preset with its choices as `override /group: option` at the end of its `defaults`.

    Raises UserError for a list of options and for a preset in a preset, with what to write.
    """
    bases, choices, keys = settings(file, found, groups)
    entries: list[Any] = [*bases, *(["_self_"] if "_self_" not in bases else [])]
    entries += [{f"override /{group}": option} for group, option in choices.items()]
    return {"defaults": entries, **keys} if choices or bases else keys


def settings(
    file: Path, found: Mapping[str, Any], groups: Collection[str]
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return what a preset starts from, the options that it chooses, and the keys that it sets. Raises UserError."""
    if not isinstance(found, Mapping):
        raise UserError(f"{_shown(file)}: expected lines such as `trainer: {{epochs: 3}}` or `model: resnet20`")
    if isinstance(found.get(PRESETS), Mapping):
        raise UserError(
            f"{_shown(file)}: the folder names the group; remove the line `{PRESETS}:` and unindent the rest"
        )
    if unread := next((key for key, value in found.items() if value is None and "=" in str(key)), None):
        key, _, text = str(unread).split()[0].partition("=")
        raise UserError(f"{_shown(file)}: {key}={text}: files take a colon; write {key}: {text}")
    bases: list[Any] = []
    choices: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    defaults = found.get("defaults") or []
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        group, _, option = str(entry).strip("/").rpartition("/")
        if not isinstance(entry, Mapping) and group in groups and group != PRESETS:
            raise UserError(f"{_shown(file)}: defaults: {entry}: write {group}: {option}")
        if not isinstance(entry, Mapping) and str(entry).strip("/") != "train":  # every preset starts from it
            bases.append(entry)
        for name, option in entry.items() if isinstance(entry, Mapping) else ():
            choices[str(name).removeprefix("override ").strip().lstrip("/")] = option
    for name, value in found.items():
        if name in groups and isinstance(value, (str, list, type(None))):
            choices[str(name)] = "null" if value is None else value
        elif name != "defaults":
            _put(keys, str(name), value)
    for group, option in choices.items():
        if group == PRESETS:
            raise UserError(f"{_shown(file)}: a preset starts from another by `defaults: [{option}]`")
        _expect_one(file, group, option)
    return bases, choices, keys


def _expect_one(file: Path, group: str, option: Any) -> None:
    """Raise UserError, with what to write, unless a preset chooses one option of a group."""
    key, colon, value = str(option).partition(":")
    if isinstance(option, list) and group in COMBINED and len(option) > 1:
        several = f"{group}: {option[0]} and {group}.{option[1]}: VALUE, they combine by their keys"
        raise UserError(f"{_shown(file)}: {group}: expected one option; write {several}")
    if isinstance(option, list):
        several = ",".join(map(str, option))
        raise UserError(f"{_shown(file)}: {group}: expected one option; several: -m {group}={several}")
    if colon and key.isidentifier() and value:
        raise UserError(f"{_shown(file)}: {group}: {option}: no space after the colon; write {key}: {value}")


def _put(keys: dict[str, Any], name: str, value: Any) -> None:
    """Set a key by its dotted name; mappings are merged."""
    outer, _, last = name.rpartition(".")
    node = keys
    for part in filter(None, outer.split(".")):
        node = node.setdefault(part, {})
    if isinstance(value, Mapping) and isinstance(node.get(last), dict):
        for inner, one in value.items():
            _put(node[last], str(inner), one)
    else:
        node[last] = dict(value) if isinstance(value, Mapping) else value


def changes_default(file: Path, group: str, found: Any) -> bool:
    """Whether a file in the built-in folder is a user's, with a few keys over the default of its group."""
    if not isinstance(found, Mapping) or "_target_" in found or "defaults" in found:
        return False
    options = Options()
    base = options.default(group)
    return base not in (None, file.stem) and _has(options, group, str(base), found)


def as_option(file: Path, group: str, found: Mapping[str, Any], below: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an option of a user over `below`, the option of the same name in a later folder, or the group's default.

    One with a `_target_` or `defaults` is complete. Raises UserError for a key that the option below lacks, and for
    keys inside the name of the group.
    """
    if not isinstance(found, Mapping):
        raise UserError(f"{_shown(file)}: expected lines such as `key: value`")
    if set(found) == {group} and isinstance(found[group], Mapping):
        inner = ", ".join(f"{key}: {value}" for key, value in found[group].items())
        raise UserError(f"{_shown(file)}: the folder names the group; write {inner} without `{group}:`")
    if "_target_" in found or "defaults" in found:
        _expect_names(file, group, found.get("defaults") or [])
        return dict(found)
    keys: dict[str, Any] = {}
    for name, value in found.items():
        _put(keys, str(name), value)
    options = Options()
    base = file.stem if below is not None else options.default(group)
    if base is None:
        return keys
    known = {key.split(".")[1] for key in options.keys(group, base)}
    if lacking := [key for key in keys if key not in known]:
        others = [o for o in options.names(group) if o != file.stem and _has(options, group, o, lacking)]
        named = [value for value in found.values() if value in options.names(group)]
        start = (
            f"start with `defaults: [{(named or others)[0]}]`" if named or others else "write `_target_:` for a class"
        )
        if isinstance(keys[lacking[0]], Mapping) and lacking[0] == group:
            start = f"the folder names the group; write {', '.join(keys[group])} without `{group}.`"
        raise UserError(f"{_shown(file)}: {lacking[0]}: {group}={base} has no such key; {start}")
    if below is None:
        return {"defaults": [base, "_self_"], **keys}
    return {**below, **{k: _over(below.get(k), v) for k, v in keys.items()}}


def _expect_names(file: Path, group: str, defaults: Any) -> None:
    """Raise UserError, with what to write, for `defaults` of an option that are no list of names."""
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        chosen = (
            {str(k).removeprefix("override ").strip().lstrip("/"): v for k, v in entry.items()}
            if isinstance(entry, Mapping)
            else {}
        )
        if not isinstance(defaults, list) or group in chosen:
            raise UserError(
                f"{_shown(file)}: defaults: expected a list of names; write defaults: [{chosen.get(group, entry)}]"
            )


def _has(options: Options, group: str, name: str, keys: Collection[str]) -> bool:
    own = options.keys(group, name)
    return all(f"{group}.{key}" in own for key in keys)


def _over(below: Any, value: Any) -> Any:
    if isinstance(below, Mapping) and isinstance(value, Mapping):
        return {**below, **{k: _over(below.get(k), v) for k, v in value.items()}}
    return value


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
