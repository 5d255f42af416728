"""Arguments that several verbs share: a parser with one-line errors, `trust=`, flags that take a number."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from dlrun.config.trust import packages
from dlrun.errors import UserError

__all__ = ["Parser", "described", "expect_device", "expect_paths", "new_file", "next_command", "numbers", "trusted"]
__all__ += ["PAGE", "TABLE", "refuse_foreign", "verbose"]

PAGE, TABLE = (
    rb"<title>dlrun\b",
    rb"\A(\xef\xbb\xbf)?(run\b|[^\n]*\bval_(acc|loss)\b)",
)  # at the head of what dlrun wrote itself

IDS = re.compile(r" \([A-Z]\d+(?:[,–-] ?[A-Z]?\d+)*\)")  # practices, whose list users do not have


class Parser(argparse.ArgumentParser):
    """The parser of verbs that compose no config; an error is one line, and the help names no practice ids."""

    def __init__(self, *, description: str | None = None, **options: Any) -> None:
        super().__init__(description=described(description or ""), **options)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and the usage."""
        usage = " ".join(self.format_usage().split())  # argparse wraps it at the width of the terminal
        raise UserError(f"{message}; {usage}")


def described(docstring: str) -> str:
    """Return the docstring of a verb as its help, without ids of practices."""
    return IDS.sub("", docstring)


def trusted(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separate `trust=[package]` from the other arguments; return the others, and the names of the packages.

    Those that the user allows in this folder for good are among them. Raises UserError for other than names.
    """
    return [w for w in argv if not w.startswith("trust=")], packages(argv)


def expect_device(name: str) -> None:
    """Raise UserError for a --device whose name trainer.device= would not take."""
    from dlrun.config.meant import likely_value
    from dlrun.config.rules import NAMED

    rule = NAMED["device"]()
    if not rule.holds(name):
        near = likely_value("trainer.device", name, rule.words)
        hint = f"did you mean --device {near}?" if near else f"expected {rule.expected}"
        raise UserError(f"--device {name}: {hint}")


def expect_paths(names: Iterable[str]) -> None:
    """Raise UserError for the first name of images that is not there."""
    for name in names:
        if not Path(name).expanduser().exists():
            raise UserError(f"{name}: no such file or folder; expected images, folders of them, .npy or .npz")


def new_file(name: str, force: bool) -> Path:
    """Return the file to write. Raises UserError if it exists and not `force`, and if its folder does not exist."""
    out = Path(name).expanduser()
    if out.exists() and not force:
        raise UserError(f"{out} already exists; add --force to overwrite it, or choose another --out")
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        raise UserError(f"--out={out}: expected a file name in an existing folder")
    return out


def refuse_foreign(file: Path, mark: bytes, flag: str) -> None:
    """Raise UserError if a file is there without the mark of what dlrun writes: it would be overwritten."""
    if not file.is_file():
        return
    with file.open("rb") as opened:
        head = opened.read(4096)
    if head and not re.search(mark, head):
        raise UserError(f"{flag}: {file} was not written by dlrun; delete it, or choose another {flag}")


def verbose(argv: list[str]) -> tuple[bool, list[str]]:
    """Separate `-v`, `--verbose` from the other arguments; return whether it was there, and the others."""
    rest = [word for word in argv if word not in ("-v", "--verbose")]
    return len(rest) < len(argv), rest


def numbers(argv: list[str], flags: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Separate flags that take a number from the other arguments; return their values or defaults, and the others.

    Raises UserError for a value that is not a finite number above 0.
    """
    found, rest, words = dict(flags), [], list(argv)
    while words:
        word = words.pop(0)
        name, given, value = word.partition("=")
        if name not in flags:
            rest.append(word)
            continue
        value = value if given or not words else words.pop(0)
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf"):
            raise UserError(f"{name}={value}: expected a number above 0, such as {name}={flags[name]:g}")
    return found, rest


def next_command(verb: str, words: list[str], *settings: str) -> str:
    """Return the command that applies a suggestion: the arguments as typed, then the suggested settings."""
    import shlex

    keys = {setting.partition("=")[0] for setting in settings}
    # run.dir was the folder of the measurement
    kept = [w for w in words if w.lstrip("+").partition("=")[0] not in {*keys, "run.dir"}]
    return shlex.join(["dlrun", verb, *kept, *settings])
