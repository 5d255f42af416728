"""What the verbs share in reading their words: a parser of one-line errors, `trust=`, flags that are numbers."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dlrun.errors import UserError

__all__ = ["Parser", "next_command", "numbers", "trusted"]


class Parser(argparse.ArgumentParser):
    """The parser of verbs that compose no config: a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())  # argparse folds it at the width of the terminal
        raise UserError(f"{message}; {usage}")


def trusted(argv: list[str]) -> tuple[list[str], list[str]]:
    """Take `trust=[package]` out of the words; return the others, and the names of the packages."""
    words = [w for w in argv if not w.startswith("trust=")]
    found = ",".join(w.removeprefix("trust=").strip("[]") for w in argv if w.startswith("trust="))
    return words, [name.strip() for name in found.split(",") if name.strip()]


def numbers(argv: list[str], flags: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Take the flags that are numbers out of the words; return them with their defaults, and the other words.

    Raises UserError for a value that is no number above 0.
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
    """Return the command that uses a suggestion: the words as typed, those settings last."""
    import shlex

    keys = {setting.partition("=")[0] for setting in settings}
    # run.dir named the folder of the measurement
    kept = [w for w in words if w.lstrip("+").partition("=")[0] not in {*keys, "run.dir"}]
    return shlex.join(["dlrun", verb, *kept, *settings])
