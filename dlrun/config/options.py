"""The option files as plain text: their keys, defaults, comments and rules, without Hydra (`dlrun explain`).

Folders are searched as Hydra searches them: ./conf, $DLRUN_CONF, the built-in conf/, --config-dir. An option that
starts from another (`defaults: [none, _self_]`) inherits its keys, comments and rules, and all options of a group
inherit those of that group's section in train.yaml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlrun.config.meant import likely_option, settings_meant
from dlrun.config.option_text import Key, Option, read
from dlrun.config.rules import Rule
from dlrun.errors import UserError

__all__ = ["COMBINED", "PRESETS", "STUDIES", "Options", "builtin_conf", "no_such_option", "prefix", "user_conf"]

COMBINED = ("regularizer", "augment")  # groups whose options combine, by their keys
STUDIES = "study"  # files of `dlrun study`, which are no options
PRESETS = "experiment"  # options of this group set keys of the others


def builtin_conf() -> Path:
    """Return the folder of the built-in options: the checkout's in an editable install, else the wheel's."""
    here = Path(__file__).resolve().parents[1]
    checkout = here.parent / "conf"
    for folder in (checkout if (here.parent / "pyproject.toml").is_file() else here / "conf", here / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError("the built-in configs (conf/train.yaml) are missing: this installation is broken; reinstall dlrun")


def user_conf() -> list[Path]:
    """Return the user's folders of options, the first winning: ./conf, $DLRUN_CONF."""
    paths = [Path(folder).expanduser().resolve() for folder in ("conf", os.environ.get("DLRUN_CONF")) if folder]
    return [path for path in dict.fromkeys(paths) if path.is_dir() and path != builtin_conf()]


def prefix(group: str) -> str:
    """Return how the full names of a group's keys begin, such as `hydra.launcher.`; empty for the root and presets."""
    return "" if group in ("", PRESETS) else group.replace("/", ".") + "."


def no_such_option(word: str, option: object, options: Sequence[str]) -> UserError:
    """Return the error for an option that is none of a group's, with the one that was most likely meant."""
    group = word.lstrip("+").partition("=")[0]
    elsewhere = _misplaced(str(option)) if group == PRESETS else ""
    meant = settings_meant(group, option) or [f"{group}={name}" for name in likely_option(group, option, options)]
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    if elsewhere:
        hint = f"{elsewhere}; "
    elif group == PRESETS and (not meant or option == "mine"):
        hint = "`dlrun init` writes conf/experiment/mine.yaml to start from; "
    return UserError(f"{word}: no such option; {hint}options: {', '.join(sorted(options))}")


def _misplaced(preset: str) -> str:
    """Where a preset has to be if a file of its name lies beside that place."""
    places = (
        "conf/{}.yaml",
        "{}.yaml",
        "conf/experiments/{}.yaml",
        "conf/experiment/{}.txt",
        "conf/experiment/{}.YAML",
    )
    found = next((file for place in places if Path(file := place.format(preset)).is_file()), None)
    return f"move {found} to conf/experiment/{preset}.yaml" if found else ""


class Options:
    """All option files of a search path; each is read once."""

    def __init__(self, folders: Sequence[Path | str] | None = None, root: str = "train") -> None:
        self.folders = [*map(Path, folders)] if folders is not None else [*user_conf(), builtin_conf()]
        self.root = root
        self._keys: dict[tuple[str, str], dict[str, Key]] = {}
        self._rules: dict[tuple[Any, ...], dict[str, Rule]] = {}

    def names(self, group: str) -> list[str]:
        """Return the options of a group."""
        folders = self.folders if _plain(group) else []
        return sorted({file.stem for folder in folders for file in (folder / group).glob("*.y*ml") if _is_option(file)})

    def groups(self) -> list[str]:
        """Return the groups that have options; of Hydra's own the launcher alone."""
        found = {
            d.name
            for folder in self.folders
            for d in folder.iterdir()
            if d.is_dir() and any(map(_is_option, d.glob("*.y*ml")))
        }
        return [*sorted(found - {"hydra", STUDIES}), "hydra/launcher"]

    def option(self, group: str, name: str) -> Option | None:
        """Return an option, from the first folder that has it; None if none has."""
        return next((o for f in self.folders if (o := _read(f, group, name)) is not None), None)

    def chain(self, group: str, name: str, _seen: frozenset[str] = frozenset()) -> Iterator[Option]:
        """Yield the files that an option consists of, each overriding those before."""
        option = self.option(group, name)
        if option is not None and name not in _seen:
            yield from self._files(group, name, option, _seen)

    def _files(self, group: str, name: str, option: Option, seen: frozenset[str]) -> Iterator[Option]:
        yield from self._below(group, name, option, seen)
        for base in option.bases if "_self_" in option.bases else [*option.bases, "_self_"]:
            if base == "_self_":
                yield option
            elif base.startswith("/"):
                elsewhere, _, other = base[1:].partition("@")[0].rpartition("/")
                yield from self.chain(elsewhere, other, seen | {name})
            else:
                yield from self.chain(group, base.partition("@")[0], seen | {name})

    def _below(self, group: str, name: str, option: Option, seen: frozenset[str]) -> Iterator[Option]:
        """What a user's option of a few keys changes: see `dlrun.config.own_options`."""
        builtin = option.file.is_relative_to(builtin_conf())
        complete = option.bases or option.chosen or option.package or "_target_" in option.keys
        if builtin or complete or group in ("", PRESETS) or group.startswith("hydra"):
            return
        found = [o for folder in self.folders if (o := _read(folder, group, name)) is not None]
        later = found[found.index(option) + 1 :] if option in found else []
        if later:
            yield from self._files(group, name, later[0], seen)
        elif (base := self.default(group)) is not None and base != name:
            yield from self.chain(group, base, seen | {name})

    def default(self, group: str) -> str | None:
        """Return the option of a group if none is chosen; None for a group without a default."""
        chosen = next((o.chosen[group] for o in self.chain("", "train") if group in o.chosen), None)
        return None if chosen is None or chosen.value == "null" else chosen.value

    def common(self) -> dict[str, Key]:
        """Return the keys of the root, by their full names."""
        return self.keys("", self.root)

    def keys(self, group: str, name: str) -> dict[str, Key]:
        """Return the keys of an option by their full names, inherited ones, comments and rules included."""
        if (group, name) not in self._keys:
            start = prefix(group)
            found = {k: v for k, v in self.common().items() if start and k.startswith(start)} if start else {}
            for option in self.chain(group, name):
                if option.package in ("", prefix(group).rstrip("."), "_group_", "_global_"):
                    for key, one in option.keys.items():
                        found[start + key] = one.over(found.get(start + key))
            self._keys[group, name] = {k: v for k, v in found.items() if not k.startswith("hydra.") or group}
        return self._keys[group, name]

    def target(self, group: str, name: str) -> str | None:
        """Return the `_target_` of an option, None if it has none."""
        key = self.keys(group, name).get(f"{prefix(group)}_target_")
        return None if key is None else key.value.strip("'\"")

    def rules(self, targets: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Rule]:
        """Return the rules of the root and of the chosen options by the full names of their keys.

        `targets` are the classes that are built, by section. The rules of an option hold only while its own is;
        a class or section without rules of its own has those of the built-in option that builds the same.
        Raises UserError for a bracket that cannot be read.
        """
        asked = (tuple(choices.items()), tuple(targets.items()))
        if asked not in self._rules:
            found = self._root_rules(targets)
            for group, name in choices.items():
                if group != PRESETS and isinstance(name, str):
                    found |= self._rules_of(group, name, targets.get(prefix(group)[:-1]))
            # a value that follows another key is checked after it, so that the message names the key that was set
            ordered = sorted(found.items(), key=lambda item: item[1].value.startswith("${"))
            self._rules[asked] = {key: rule for key, one in ordered if (rule := one.rule()) is not None}
        return self._rules[asked]

    def _root_rules(self, targets: Mapping[str, Any]) -> dict[str, Key]:
        common = self.common()
        own = {key.rpartition(".")[0]: one.value for key, one in common.items() if key.endswith("._target_")}
        foreign = tuple(f"{s}." for s, target in own.items() if targets.get(s, target) != target)
        return {key: one for key, one in common.items() if not key.startswith(foreign)}

    def _rules_of(self, group: str, name: str, target: Any) -> dict[str, Key]:
        option, found = self.option(group, name), {}
        own = option is not None and self.target(group, name) == target
        if own:
            found = dict(self.keys(group, name))
        if own and option is not None and option.file.is_relative_to(builtin_conf()):
            return found
        builtin = Options([builtin_conf()])
        for other in sorted(builtin.names(group), key=lambda n: (n != name, n)):
            if builtin.target(group, other) == target:
                for key, one in builtin.keys(group, other).items():
                    found[key] = found.get(key, one).over(one)
        return found


def _plain(name: str) -> bool:
    """Whether no path leads out of the folder: a stored config may name anything."""
    return re.fullmatch(r"(\w[\w-]*/)*\w[\w-]*", name) is not None


def _read(folder: Path, group: str, name: str) -> Option | None:
    if not _plain(name) or (group and not _plain(group)):
        return None
    for ending in ("yaml", "yml"):
        try:
            option = read(folder / group / f"{name}.{ending}")
        except OSError:
            continue
        return _as_preset(option, folder) if group == PRESETS else option
    return None


def _is_option(file: Path) -> bool:
    return file.suffix in (".yaml", ".yml")


def _as_preset(option: Option, folder: Path) -> Option:
    """A preset whose choices, also those written as `model: resnet20`, are choices."""
    groups = {place.name for conf in (folder, builtin_conf()) for place in conf.iterdir() if place.is_dir()}
    keys: dict[str, Key] = {}
    named: dict[str, Key] = {}
    for name, key in option.keys.items():
        inner = re.fullmatch(r"\{([^{}\[\]]+)\}", key.value) if name in groups else None
        if inner:  # trainer: {epochs: 3, batch_size: 8}
            pairs = [part.partition(":")[::2] for part in inner[1].split(",")]
            keys |= {f"{name}.{k.strip()}": replace(key, name=f"{name}.{k.strip()}", value=v.strip()) for k, v in pairs}
        elif name in groups and key.value[:1] not in ("", "{"):
            named[name] = replace(key, value=key.value.strip("'\""))
        else:
            keys[name] = key
    return replace(option, chosen={**option.chosen, **named}, keys=keys)
