"""What only the person who types a command may allow: code, folders of options, shell commands (`trust=[mynet]`).

A config that is composed, repeated or stored adds none of them, whoever wrote it. What a person allows for good stands
in their own folder of settings, by the folder and the content of its code (`dlrun trust`). Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.errors import UserError

__all__ = [
    *("allowed", "code_of", "digest", "has_resolver", "kept", "only_typed", "packages", "recorded"),
    *("refuse_commands", "stale", "store"),
]

# settings of a launcher that start programs, or connect to those of others, and what they may hold in a file
COMMANDS: dict[str, tuple[Any, ...]] = {
    "setup": (None, []),
    "additional_parameters": (None, {}),
    "address": (None, "auto"),  # a Ray cluster sends pickles
}
LARGEST, MOST = 64_000_000, 5_000  # bytes and files of code that are hashed
CODE = (".py", ".so", ".pyd")
OMITTED = ("__pycache__", "outputs", "site-packages")
RECORD = 1_000_000  # bytes of the file of what is allowed


def only_typed(key: str) -> bool:
    """Whether a key may only be set by the person who types the command, also if `+` adds it."""
    key = key.lstrip("+~").replace("/", ".")
    names = (f"hydra.launcher.{name}" for name in COMMANDS)
    own = ("trust", "hydra.searchpath", "search.storage", *names)  # the storage: where results and a password are sent
    return any(key == name or key.startswith(f"{name}.") for name in own)


def has_resolver(text: str) -> bool:
    """Whether a text calls a function of OmegaConf, such as ${oc.env:HOME}; ${trainer.epochs} names another key."""
    return re.search(r"\$\{.*:", text, re.DOTALL) is not None


def allowed(word: str, typed: Iterable[str]) -> bool:
    """Whether a word of a command may be used: it was typed, or it sets no key of trust and reads no environment.

    One of several values of a key counts as typed. A stored sweep has such words only if somebody typed them, who may
    be somebody else.
    """
    key, _, value = word.lstrip("+").partition("=")
    if word in typed or not (only_typed(key) or has_resolver(word)):
        return True
    part = value[value.find("${") : value.rfind("}") + 1]
    return not only_typed(key) and any(
        other.lstrip("+").partition("=")[0] == key and part and part in other for other in typed
    )


def packages(words: Iterable[str]) -> list[str]:
    """Return the packages in each `trust=[a,b]` among the words of a command, and those kept for this folder.

    Raises UserError for anything but names of packages.
    """
    found: list[str] = []
    for word in words:
        key, given, value = word.partition("=")
        if key.lstrip("+") != "trust" or not given:
            continue
        names = [name.strip(" '\"") for name in value.strip(" '\"").removeprefix("[").removesuffix("]").split(",")]
        names = [name for name in names if name]
        if wrong := next((name for name in names if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name)), None):
            raise UserError(f"{word}: {wrong}: expected names of packages; type trust=[mynet]")
        found += names
    return list(dict.fromkeys([*found, *kept(Path.cwd())]))


def refuse_commands(launcher: Mapping[str, Any], composed: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Raise UserError if a file sets what a launcher starts; `composed` is the launcher before what was typed.

    No text of a launcher has a line break: each becomes a line of a job script.
    """
    for name, harmless in COMMANDS.items():
        key = f"hydra.launcher.{name}"
        if composed.get(name) not in harmless and not any(word.lstrip("+").startswith(f"{key}=") for word in typed):
            raise UserError(f"{key}: only allowed on the command line, not in a file; type {key}=… there")
    for key, value in _texts(launcher, "hydra.launcher"):
        if not value.isprintable():
            raise UserError(f"{key}={value!r}: expected one line of text without control characters")


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield key, str(name)
            yield from _texts(value, f"{key}.{name}")
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, key)


def store() -> Path:
    """Return the file of what the user allows for good."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.config")) / "dlrun" / "trust.json"


def recorded() -> dict[str, dict[str, Any]]:
    """Return by folder what the user allows: `packages` and the `sha256` of the code at that time."""
    try:
        with open(store(), "rb") as file:
            found = json.loads(file.read(RECORD).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    folders = found.get("folders") if isinstance(found, dict) else None
    return {
        str(folder): {"packages": [str(name) for name in one["packages"]], "sha256": str(one["sha256"])}
        for folder, one in (folders if isinstance(folders, dict) else {}).items()
        if isinstance(one, dict) and isinstance(one.get("packages"), list) and "sha256" in one
    }


def kept(folder: Path) -> list[str]:
    """Return the packages that the user allows in a folder for good, if its code is the same as then."""
    found = recorded().get(str(folder.resolve()))
    return found["packages"] if found and found["sha256"] == digest(folder) else []


def stale(folder: Path) -> str:
    """Return what to know, and to type, if a folder's code differs from what the user allowed; else ""."""
    found = recorded().get(str(folder.resolve()))
    if not found or found["sha256"] == digest(folder):
        return ""
    again = shlex.join(["dlrun", "trust", str(folder), *found["packages"]])
    return f"; its code changed since you allowed it: look at it, then type `{again}`"


def digest(folder: Path) -> str:
    """Return the SHA-256 of names and contents of the code in a folder. Raises UserError if it is too much to hash."""
    total, size = hashlib.sha256(), 0
    for number, file in enumerate(code_of(folder)):
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would never end
                raise UserError(f"{file}: expected a regular file; code that cannot be read cannot be allowed")
            content = file.read_bytes() if (size := size + found.st_size) <= LARGEST else b""
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; code that cannot be read cannot be allowed") from error
        if number >= MOST or size > LARGEST:
            limit = f"{MOST:,} files and {LARGEST:,} bytes"
            raise UserError(f"{folder}: more code than {limit}; allow a smaller folder, or type trust=[PACKAGE]")
        name = file.relative_to(folder).as_posix().encode(errors="surrogateescape")
        total.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big") + content)
    return total.hexdigest()


def code_of(folder: Path) -> Iterator[Path]:
    """Yield the files of code of a folder, in order, also behind links: Python imports through them.

    Hidden folders, outputs and installed packages are omitted: no package of the folder contains them by its name.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back would have no end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in OMITTED)
        yield from (Path(place, name) for name in sorted(files) if name.endswith(CODE))
