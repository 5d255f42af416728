"""Composes a config with Hydra, validates it, and reports each error in one line (`dlrun train …`).

The built-in conf/ is at the top of a checkout and inside a wheel; options in ./conf and $DLRUN_CONF take precedence.
Hydra composes configs and answers `--help`, `--cfg`, `--info` and completion, but it runs nothing: its runner would
build the callbacks and log handlers that a config names before they could be checked.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun.config.defaults import changed
from dlrun.config.flags import Flags, split
from dlrun.config.hydra_quirks import answer, in_one_line, opened
from dlrun.config.meant import respelled
from dlrun.config.options import COMBINED, STUDIES, Options, builtin_conf, no_such_option, user_conf
from dlrun.config.preflight import by_loss, look
from dlrun.config.repeat import repeated
from dlrun.config.schema import flatten, lookup, unknown, validate
from dlrun.config.settings import Settings
from dlrun.config.trust import allowed, packages, refuse_commands
from dlrun.config.typed import is_decimal, known_setting, readable, refuse_bare, refuse_idle, refuse_repeated
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["Composed", "Composer", "builtin_conf", "compose", "composer", "run"]

ROOT = "train"
EXPLAINING = {"--help", "--hydra-help", "--cfg", "--info", "--shell-completion"}


def run(
    verb: str,
    argv: list[str],
    task: Callable[[Settings, dict[str, Any]], int],
    sweep: Callable[[Composer, list[str], Flags], int] | None = None,
) -> int:
    """Compose a config from `argv` and call `task` with it and its record; with -m call `sweep`. Returns the exit code.

    Raises UserError for every error in the command or the config.
    """
    flags, overrides = split(argv)
    typed = tuple(overrides)
    if "--shell-completion" not in flags:
        refuse_bare(overrides, verb)
    if source := flags.pop("--from", None):
        with composer(flags) as made:
            overrides = [*repeated(source, overrides, made.defaults), *overrides]
    if EXPLAINING & set(flags):
        with in_one_line(), _hydra(flags) as hydra:
            words, root = readable(overrides), flags.get("--config-name") or ROOT
            left_out = Composer(hydra.config_loader, root).unused(words) if "--cfg" in flags else []
            text = answer(hydra, verb, root, flags, [*words, *left_out])
        print(text, end="")
        if flags.get("--cfg", "hydra") != "hydra":
            with composer(flags, typed) as made:
                made.compose(made.typed(overrides))  # what training refuses is shown, and said
        return Exit.FINE
    with composer(flags, typed) as made:
        if "--multirun" in flags:
            if sweep is None:
                raise UserError(f"-m: dlrun {verb} runs one setup; for a sweep type dlrun train -m")
            return sweep(made, overrides, flags)
        parsed = made.typed(overrides)
        refuse_idle(parsed)
        composed = made.compose(parsed)
        record = composed.record()
    return task(Settings.of(composed.config), record)


def compose(*overrides: str) -> Settings:
    """Return the config that `dlrun train <overrides>` would train. Raises UserError."""
    with composer({}, overrides) as made:
        return Settings.of(made.config(made.parse(overrides)))


@contextmanager
def composer(flags: Flags, typed: Sequence[str] = ()) -> Iterator[Composer]:
    """Open a Composer over the user's folders of options, the built-in one and `--config-dir`.

    `typed` are the words of this command: only they allow code, further folders and shell commands.
    """
    trust = packages(typed)
    with in_one_line(), _hydra(flags) as hydra:
        yield Composer(hydra.config_loader, flags.get("--config-name") or ROOT, typed, trust)


@contextmanager
def _hydra(flags: Flags) -> Iterator[Any]:
    """Open Hydra over the folders of options, the first winning: ./conf, $DLRUN_CONF, built-in, --config-dir."""
    builtin, further = builtin_conf(), flags.get("--config-dir")
    if further and not Path(further).expanduser().is_dir():
        raise UserError(f"--config-dir {further}: no such folder")
    with opened(builtin, user_conf(), [Path(further).expanduser().resolve()] if further else []) as hydra:
        yield hydra


@dataclass
class Composed:
    """A resolved and validated config and its origin; a sweep may adjust the config before it calls `record`."""

    config: dict[str, Any]
    typed: list[str]  # the overrides
    launcher: dict[str, Any]  # hydra.launcher, with its option as `name`
    defaults: Callable[[], dict[str, Any]]  # called only for runs that start, not for every point that a sweep checks

    def record(self) -> dict[str, Any]:
        """Return what is stored with a run: the overrides, and for every changed key the default of its option."""
        return {"typed": self.typed, "changed": changed(self.config, self.defaults())}


class Composer:
    """Composes configs and validates them; each combination of options is read once."""

    def __init__(self, loader: Any, root: str, typed: Sequence[str] = (), trust: Sequence[str] = ()) -> None:
        self._loader = loader
        self._root = root
        self._typed = frozenset(typed)
        self._trust = list(trust)
        self._read_already: dict[tuple[str, ...], dict[str, Any]] = {}
        self._listed: dict[str, list[str]] = {}
        self._folders: list[str] = []  # overrides that name further folders of options
        self._options_of: dict[tuple[str, ...], Options] = {}  # the same files as text, for their rules

    def parse(self, overrides: Sequence[str], sweeping: bool = False) -> list[Any]:
        """Return the overrides as objects of Hydra, `input_line` as typed. Raises UserError if one cannot be parsed."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        with in_one_line():
            words = readable(overrides, sweeping)
            parsed: list[Any] = OverridesParser.create(config_loader=self._loader).parse_overrides(words)
        for word, override in zip(overrides, parsed, strict=True):
            override.input_line = word
            self._refuse(override)
            if override.key_or_group == "hydra.searchpath":
                self._folders.append(override.input_line)
                self._listed.clear()
        return parsed

    def typed(self, overrides: Sequence[str]) -> list[Any]:
        """Return the overrides of a command as objects. Raises UserError for two options of a group as well."""
        parsed = self.parse(overrides)
        refuse_repeated(parsed, [o.key_or_group for o in parsed if self.chooses(o)])
        return parsed

    def _refuse(self, override: Any) -> None:
        key, line = override.key_or_group, override.input_line
        if key == STUDIES:
            raise UserError(f"{line}: a study is a command: type dlrun study {override.value()}")
        if override.package is not None or not key:
            raise UserError(f"{line}: expected key=value or group=option")
        if override.is_delete():
            raise UserError(f"{line}: no group or key can be removed; choose another option or value with {key}=")
        if not allowed(line, self._typed):
            raise UserError(f"{line}: found in a file; it is allowed only if it is typed: add {shlex.quote(line)}")
        if key.split(".")[0].split("/")[0] == "hydra" and not known_setting(key):
            raise UserError(f"{line}: this setting of Hydra has no effect in dlrun; see run.dir=, sweep.dir= and -m")

    def chooses(self, override: Any) -> bool:
        """Whether an override chooses an option rather than a value, so that files have to be read for it."""
        group = override.key_or_group
        picks = bool(self._options(group)) and not isinstance(override.value(), dict)
        return picks or group in ("experiment", "hydra.searchpath")

    def _options(self, group: str) -> list[str]:
        if group not in self._listed:
            # without further folders, ask past the loader, which copies every place first: a tenth of composing
            more = (self._root, self._folders) if self._folders else ()
            found = (self._loader if more else self._loader.repository).get_group_options(group, None, *more)
            # the launcher of Hydra cannot run trials of dlrun
            self._listed[group] = [o for o in found if "." not in group and (group, o) != ("hydra/launcher", "basic")]
        return self._listed[group]

    def config(self, overrides: Sequence[Any]) -> dict[str, Any]:
        """Return the config of these overrides, resolved and validated. Raises UserError."""
        return self.compose(overrides).config

    def compose(self, overrides: Sequence[Any]) -> Composed:
        """Return the config of these overrides and its origin. Raises UserError."""
        from omegaconf import OmegaConf

        with in_one_line():
            for override in overrides:
                self._must_be_one(override)
            chosen = tuple(readable([o.input_line])[0] for o in overrides if self.chooses(o) and o.value() is not None)
            base = self._read(self._root, chosen)
            default = base["hydra"]["launcher"]
            schema = {**self._schema(chosen, base), "hydra": {"launcher": default}}
            cfg = OmegaConf.create(_fitting(base, schema, chosen), flags={"struct": True})
            values = [o for o in overrides if not self.chooses(o)]
            for override in values:
                self._set(cfg, override, schema)
            plain: Any = OmegaConf.to_container(cfg, resolve=True)
            launcher = plain.pop("hydra")["launcher"]
        added = {o.key_or_group for o in values if o.is_add() or o.is_force_add()}
        runtime = base["hydra"]["runtime"]
        options = self._options_of.setdefault(runtime["folders"], Options(runtime["folders"], self._root))
        validate({**plain, "hydra": {"launcher": launcher}}, schema, added, runtime["choices"], options)
        from dlrun.config.extras import require_dataset, require_logger, require_model, require_optimizer
        from dlrun.config.targets import check_targets

        if base.get("trust"):
            raise UserError("trust: only allowed on the command line, not in a file; type trust=[PACKAGE] there")
        refuse_commands(launcher, default, [o.input_line for o in overrides])
        plain["trust"] = list(self._trust)
        check_targets(plain, self._trust)
        require_dataset(plain)
        look(plain := by_loss(plain))
        require_logger(plain)
        require_optimizer(plain)
        require_model(plain)
        plain["choices"] = _choices(base)
        name = runtime["choices"]["hydra/launcher"]
        words = [o.input_line for o in overrides]
        return Composed(plain, words, {"name": name, **launcher}, lambda: {**schema, "choices": self._usual_choices()})

    def unused(self, words: Sequence[str]) -> list[str]:
        """Return words for Hydra that delete what a preset sets for an option that was typed away."""
        if not any(word.startswith("experiment=") for word in words):
            return []
        parsed = [o for o in self.parse(words, sweeping=True) if not o.is_sweep_override()]
        chosen = tuple(o.input_line for o in parsed if self.chooses(o) and o.value() is not None)
        base = self._read(self._root, chosen)
        unfit = _unfit(base, self._schema(chosen, base), chosen)
        return [f"~{g}.{k}" for g, k in unfit if base[g][k] is not None]

    def defaults(self, chosen: Sequence[str]) -> dict[str, Any]:
        """Return the config of some chosen options before interpolation. Raises UserError for an unknown option."""
        with in_one_line():
            return {k: v for k, v in self._read(self._root, tuple(chosen)).items() if k != "hydra"}

    def _must_be_one(self, override: Any) -> None:
        """Raise UserError unless the override has one value, and an existing option if it chooses one."""
        group, option = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: got several values; {self._of_several(override)}")
        options = self._options(group)
        if not options or option in options or isinstance(option, dict) or (option, group) == (None, "experiment"):
            return
        raise no_such_option(override.input_line, option, options)

    def _of_several(self, override: Any) -> str:
        """What to type for several values of a key outside of a sweep."""
        key, _, text = override.input_line.partition("=")
        parts = text.split(",")
        if self._options(key) and key in COMBINED:
            return f"add -m to try each; they combine as {key}={parts[0]} {key}.{parts[1]}=VALUE"
        usual = lookup(self._schema((), self._read(self._root, ())), key)
        point = f", or {key}={'.'.join(parts)} with a point" if is_decimal(parts) and isinstance(usual, float) else ""
        if isinstance(usual, list):
            return f"type {key}=[{text}] for a list"
        whole = f", or quote the value ('{key}=\"{text}\"') to pass one string" if isinstance(usual, str) else ""
        return f"type -m {key}={text} to sweep over them{point}{whole}"

    def _read(self, root: str, chosen: tuple[str, ...]) -> dict[str, Any]:
        """The config of some options before interpolation, with the few parts of `hydra` that dlrun uses."""
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        if (root, *chosen) not in self._read_already:
            cfg = self._loader.load_configuration(root, list(chosen), run_mode=RunMode.RUN)
            plain: Any = {str(k): _plain(cfg._get_node(k)) for k in cfg if k != "hydra"}
            runtime = {"cwd": os.getcwd(), "choices": OmegaConf.to_container(cfg.hydra.runtime.choices)}
            runtime["folders"] = tuple(s.path for s in cfg.hydra.runtime.config_sources if s.schema == "file")
            launcher = OmegaConf.to_container(cfg.hydra.launcher)
            plain["hydra"] = {"runtime": runtime, "job": {"name": ROOT}, "launcher": launcher}
            self._read_already[(root, *chosen)] = plain
        return self._read_already[(root, *chosen)]

    def _schema(self, chosen: tuple[str, ...], base: dict[str, Any]) -> dict[str, Any]:
        """The defaults of the chosen options, which are the schema of all values.

        Presets and root configs of users set values. They are omitted, so that their keys and types are checked too.
        """
        choices = _choices(base)
        if self._root != ROOT or choices.get("experiment") is not None:
            known = self._read(ROOT, ())["hydra"]["runtime"]["choices"]
            words = [f"{'' if k in known else '+'}{k}={v}" for k, v in choices.items() if k != "experiment"]
            base = self._read(ROOT, (*self._folders, *words))
        return {k: v for k, v in base.items() if k != "hydra"}

    def _usual_choices(self) -> dict[str, Any]:
        """The option of every group if none is chosen."""
        from hydra.core.default_element import GroupDefault

        # reading this one file takes a tenth of the time of composing, which only a root made of other configs needs
        listed = self._loader.repository.load_config(ROOT).defaults_list
        if all(isinstance(one, GroupDefault) or one.path == "_self_" for one in listed):
            return {str(one.group): one.value for one in listed if isinstance(one, GroupDefault)}
        return _choices(self._read(ROOT, ()))

    def _set(self, cfg: Any, override: Any, schema: dict[str, Any]) -> None:
        from omegaconf import OmegaConf
        from omegaconf.errors import ConfigAttributeError, ConfigKeyError

        key, adds = override.key_or_group, override.is_add() or override.is_force_add()
        try:
            # an empty mapping accepts any keys (optimizer.per_layer)
            adds = adds or (lookup(schema, key) == {} and isinstance(override.value(), dict))
            OmegaConf.update(cfg, key, override.value(), force_add=adds)
        except (ConfigAttributeError, ConfigKeyError) as error:
            wrong = getattr(error, "full_key", None) or key
            section = key.split(".")[0]
            if (schema.get(section) or {}).get("_target_") == "???":
                raise UserError(
                    f"{key}: no such key; type +{override.input_line} to pass it as an argument to your own class"
                ) from None
            groups = [g for g in self._loader.list_groups("") if g != "hydra"]
            # a value that follows another key is never the one to set
            names = [n for n in flatten(schema) if not str(lookup(schema, n)).startswith("${")]
            given = override.input_line.partition("=")[2]
            if meant := respelled(key, given, names):
                raise UserError(f"{key}: no such key; did you mean {meant}?") from None
            text = given if str(wrong) == key else None
            folders = cfg["hydra"]["runtime"]["folders"]
            known = groups if "." not in str(wrong) else ()
            raise UserError(unknown(str(wrong), names, known, text, Options(folders, self._root))) from None


def _fitting(base: dict[str, Any], schema: dict[str, Any], chosen: Sequence[str]) -> dict[str, Any]:
    """The config without what a preset sets for the option that was typed away, such as the image size of a folder."""
    unfit = _unfit(base, schema, chosen)
    return {**base, **{g: {k: v for k, v in base[g].items() if (g, k) not in unfit} for g, _ in unfit}}


def _unfit(base: dict[str, Any], schema: dict[str, Any], chosen: Sequence[str]) -> list[tuple[str, str]]:
    """The groups and keys that a preset sets although the option that was typed does not have them."""
    preset = base["hydra"]["runtime"]["choices"].get("experiment") is not None
    typed = {word.partition("=")[0] for word in chosen} & schema.keys() & base.keys() if preset else set()
    typed = {group for group in typed if isinstance(base[group], dict)}  # a preset may set a number, which is refused
    return [(group, key) for group in sorted(typed) for key in base[group] if key not in schema[group]]


def _choices(cfg: dict[str, Any]) -> dict[str, Any]:
    """The chosen option of every group."""
    return {k: v for k, v in cfg["hydra"]["runtime"]["choices"].items() if not k.startswith("hydra/")}


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
