"""The settings of an earlier run, or of a file, as words of a command (`dlrun train --from RUN seed=2`).

Packages are trusted by this command alone; the run's folder, name and search are not repeated. A value that followed
another key follows it again, so that trainer.epochs=5 shortens the schedule as well. With trainer.fit_all=true
the number of epochs is that of the run's best epoch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.config.defaults import changed, leaves
from dlrun.config.option_text import content
from dlrun.config.options import PRESETS, Options, prefix
from dlrun.config.own_options import settings
from dlrun.config.schema import lookup
from dlrun.config.trust import has_resolver
from dlrun.errors import UserError
from dlrun.folders import opener, plain

__all__ = ["repeated"]

OWN = ("run", "sweep", "search", "hydra", "trust", "choices")  # of the earlier run alone
_Defaults = Callable[[Sequence[str]], Mapping[str, Any]]


def repeated(source: str, typed: Sequence[str], defaults: _Defaults) -> list[str]:
    """Return the words that repeat a run or a file; those that `typed` replaces are omitted.

    `defaults` returns the config of some chosen options before interpolation. Raises UserError if there is nothing to
    repeat, and for an option that this machine does not have.
    """
    file, given = _file(source), [*typed]
    stored = _read(file, run=Path(source).expanduser().is_dir())
    if "trainer.fit_all=true" in typed:
        typed = [*_best_epoch(file.parent, typed), *typed]
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    if not isinstance(stored.get("choices"), Mapping):
        words = list(_of_file(file, stored))
    else:
        words = _of_run(file, stored, keys, defaults)
    words = [w for w in words if not _replaced(w.lstrip("+").partition("=")[0], keys)]
    for word in words:
        if has_resolver(word) or ("${" in word and "choices" in stored):
            key = word.lstrip("+").partition("=")[0]
            raise UserError(f"{file}: {key}: found ${{…}}, which could read this machine; type {key}=VALUE")
    return words + [word for word in typed if word not in given]


def _best_epoch(run: Path, typed: Sequence[str]) -> list[str]:
    """The number of epochs of a run on all images: that of the best epoch of the earlier run, unless it is typed.

    Raises UserError if that is not known.
    """
    if any(word.lstrip("+").startswith("trainer.epochs=") for word in typed):
        return []
    try:
        found = plain.json_of(opener.read(run, "result.json"), run / "result.json").get("best_epoch")
    except (OSError, UserError, AttributeError):
        found = None
    if not isinstance(found, int) or found < 1:
        raise UserError(f"trainer.fit_all=true: {run} has no best epoch to train for; type trainer.epochs=NUMBER")
    return [f"trainer.epochs={found}", "trainer.stop_after=0", "trainer.hours=0"]


def _replaced(key: str, typed: set[str]) -> bool:
    """Whether a word sets what another word sets: the key, a part of it, or the option of its group."""
    return any(key == other or key.startswith(f"{other}.") for other in typed)


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if (path / "sweep.yaml").is_file():
        raise UserError(f"--from {source}: a sweep; name one of its runs, such as --from {path / '0000'}")
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--from {source}: no run and no file here; expected a run's folder, or a .yaml file")
    return file


def _read(file: Path, run: bool) -> dict[str, Any]:
    """The keys of a file. In a run's folder it is no link; a file that is typed may be one."""
    try:
        text = (opener.read(file.parent, file.name) if run else content(file)).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: expected text in UTF-8: {error.reason}; save the file as UTF-8") from error
    found = plain.yaml_of(text, file)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{file}: expected lines such as `model: resnet20` or `trainer: {{epochs: 3}}`")
    return found


def _of_file(file: Path, found: Mapping[str, Any]) -> Iterator[str]:
    """A file in the form of a preset."""
    bases, choices, keys = settings(file, found, Options().groups())
    for base in bases:
        if base not in ("_self_", "train"):
            yield f"{PRESETS}={base}"
    for group, option in choices.items():
        yield f"{group}={_encoded(option)}"
    for key, value in leaves(keys):
        if not _of_its_own(key):
            yield f"{key}={_encoded(value)}"


def _of_its_own(key: str) -> bool:
    """Whether a key belongs to the earlier run alone, also if it is written so that it becomes another in a command."""
    return re.split(r"[^\w-]", key.lstrip("+~ "))[0] in OWN


def _of_run(file: Path, stored: Mapping[str, Any], keys: set[str], defaults: _Defaults) -> list[str]:
    chosen = [f"{g}={o}" for g, o in _choices(file, stored, keys).items()]
    groups = [word.partition("=")[0] for word in chosen]
    usual = defaults(chosen)
    config = {name: value for name, value in stored.items() if name not in OWN}
    if isinstance(data := config.get("dataset"), dict) and "split" not in data:
        # of before these keys: the same folds again
        config["dataset"] = {"split": "position", "test_seed": data.get("split_seed", 0), **data}
    differing = changed(config, {name: value for name, value in usual.items() if name not in OWN})
    sections = {group for group in stored["choices"] if group in keys and group not in groups}
    words = []
    for key, value in _differing(config, usual, set(differing)):
        if key.split(".")[0] not in sections and not _of_its_own(key):
            words.append(f"{'' if _known(usual, key) else '+'}{key}={_encoded(value)}")
    return [*chosen, *words]


def _choices(file: Path, stored: Mapping[str, Any], keys: set[str]) -> dict[str, str]:
    """The option of every group, or of one that this machine lacks the built-in option that builds the same."""
    options, found = Options(), {}
    for group, option in stored["choices"].items():
        names = options.names(group)
        if group in keys or group in (*OWN, PRESETS) or option is None or not names:
            continue
        target = lookup(stored, f"{prefix(group)}_target_")
        if option not in names:
            same = [name for name in names if target and options.target(group, name) == target]
            if not same and group != "model":
                raise UserError(f"{file}: {group}={option}: no such option here; copy its conf/{group}/{option}.yaml")
            option = same[0] if same else "custom"
        found[group] = str(option)
    return found


def _known(usual: Mapping[str, Any], key: str) -> bool:
    outer, _, last = key.rpartition(".")
    node = lookup(usual, outer) if outer else usual
    return isinstance(node, Mapping) and last in node


def _differing(
    config: Mapping[str, Any], usual: Mapping[str, Any], differing: set[str], start: str = ""
) -> Iterator[tuple[str, Any]]:
    """The keys whose values differ from their defaults; a mapping that is a value is one of them."""
    for name, value in config.items():
        key, default = f"{start}{name}", usual.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default and value:
            yield from _differing(value, default, differing, f"{key}.")
        elif any(one == key or one.startswith(f"{key}.") for one in differing):
            yield key, value


def _encoded(value: Any) -> str:
    """A value in the grammar of Hydra."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_encoded(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_encoded, value))}]"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    plain = text.replace(".", "").replace("_", "").isalnum() and text[0].isalpha() and text.isascii()
    words = ("null", "true", "false", "nan", "inf")
    return text if plain and text.lower() not in words else QuotedString(text=text, quote=Quote.single).with_quotes()
