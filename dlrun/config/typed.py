"""The words of a command before Hydra reads them: values as typed, and nothing typed is ignored (`dlrun train …`)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

from dlrun.config.meant import bare_word
from dlrun.config.options import COMBINED, Options
from dlrun.errors import UserError

__all__ = ["is_decimal", "known_setting", "readable", "refuse_bare", "refuse_idle", "refuse_repeated"]

# their values are files, folders and prose, and are taken as typed
VERBATIM = (
    *(
        "dataset.root",
        "dataset.path",
        "dataset.cache",
        "objective.teacher",
        "objective.unlabelled",
        "run.dir",
        "sweep.dir",
        "run.note",
    ),
    *("dataset.x", "dataset.y", "dataset.x_val", "dataset.y_val", "dataset.x_test", "dataset.y_test"),
    *("dataset.train_dir", "dataset.val_dir", "dataset.test_dir", "dataset.csv", "dataset.images"),
)
HELP = "`dlrun train --help` lists groups and keys"
_CALL = re.compile(r"(choice|glob|sort|shuffle|range|interval|tag|cast)\(.*\)")
_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w./-]*")


def readable(words: Sequence[str], sweeping: bool = False) -> list[str]:
    """Return the words with values that Hydra cannot read, or would take apart, in quotes; `~` is expanded in paths.

    In a sweep commas separate the values of a path, unless a file or folder has the whole name.
    """
    return [_readable(word, sweeping) for word in words]


def _readable(word: str, sweeping: bool) -> str:
    key, given, value = word.partition("=")
    if not given or not _KEY.fullmatch(key):
        return word
    if key.lstrip("+") in VERBATIM:
        return _verbatim(key, value, sweeping)
    return word if _understood(word) else f"{key}={_quoted(value)}"


def _verbatim(key: str, value: str, sweeping: bool) -> str:
    quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
    # Hydra takes a letter after a backslash literally
    if value in ("", "null") or quoted or "${" in value or _CALL.fullmatch(value) or _escaped(value):
        return f"{key}={value}"
    if sweeping and "," in value and key not in ("run.dir", "sweep.dir", "run.note") and not _exists(value):
        return f"{key}={','.join(_verbatim('', part.strip(), False)[1:] for part in value.split(','))}"
    if value.startswith("~") and key != "run.note":
        value = os.path.expanduser(value)
        value = os.path.abspath(value) if value.startswith("~") else value  # no user has this name
    return f"{key}={_quoted(value)}"


def _exists(value: str) -> bool:
    return os.path.exists(os.path.expanduser(value))


def _escaped(value: str) -> bool:
    return "\\" in value and not _exists(value)


def _understood(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    except ValueError:
        return True  # such as a glob without its loader
    return True


def _quoted(value: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=value, quote=Quote.single).with_quotes()


def refuse_bare(words: Sequence[str], verb: str) -> None:
    """Raise UserError for a word without `=`, with what to type."""
    for place, word in enumerate(words):
        if ("=" not in word and not word.startswith("~")) or word.startswith("="):
            hint = bare_word(words, place, verb, Options())
            raise UserError(f"{word}: expected key=value or group=option; {hint or HELP}")


def refuse_repeated(parsed: Sequence[Any], groups: Collection[str]) -> None:
    """Raise UserError if two options of a group are typed, with how they combine; warn of a key that is typed twice.

    The later value of a key counts, so that a script can add its settings to those of a user.
    """
    seen: dict[str, Any] = {}
    for override in parsed:
        key = override.key_or_group
        before, seen[key] = seen.get(key, override), override
        first, second = before.input_line, override.input_line
        if first.lstrip("+") == second.lstrip("+"):
            continue
        if key not in groups and not (before.is_sweep_override() or override.is_sweep_override()):
            print(f"dlrun: {first} has no effect: {second} is typed after it", file=sys.stderr)
            continue
        if key in COMBINED and (keys := _own_keys(key, second.partition("=")[2])):
            raise UserError(f"{first} {second}: options of {key} combine by their keys; type {first} {' '.join(keys)}")
        raise UserError(f"{first} {second}: {key} is given twice; keep {first} or {second}")


def _own_keys(group: str, name: str) -> list[str]:
    """What an option sets, as settings; nothing if it is the one without settings, or unknown."""
    option = Options().option(group, name) if name != "none" else None
    keys = {} if option is None else option.keys
    return [f"{group}.{key}={one.value}" for key, one in keys.items() if not key.startswith("_") and one.value]


def refuse_idle(parsed: Sequence[Any]) -> None:
    """Raise UserError for a word that only a sweep reads."""
    for override in parsed:
        key = override.key_or_group
        if key.split(".")[0] in ("search", "sweep") or key.startswith(("hydra.launcher", "hydra/launcher")):
            example = "-m optimizer.lr=loguniform:1e-4:1e-1"
            raise UserError(f"{override.input_line}: belongs to a sweep; add -m and what to search, such as {example}")


def known_setting(key: str) -> bool:
    """Return whether dlrun reads a setting of Hydra: where options are, or what starts the trials of a sweep."""
    return key in ("hydra.searchpath", "hydra/launcher") or key.startswith("hydra.launcher.")


def is_decimal(parts: Sequence[str]) -> bool:
    """Return whether the parts between commas may be those of a number with a comma for a point."""
    return len(parts) == 2 and all(part.isdigit() for part in parts)
