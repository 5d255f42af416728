"""Splits the arguments of a verb into flags and overrides (`dlrun train seed=1,2 -m optimizer=adam`).

The parser of Hydra drops overrides on both sides of a flag on Python 3.11, and prints ten lines for a mistake.
"""

from __future__ import annotations

import difflib

from dlrun.errors import UserError

__all__ = ["Flags", "split"]

Flags = dict[str, str | None]

ALIASES = {
    "-h": "--help",
    "-m": "--multirun",
    "-r": "--run",
    "-c": "--cfg",
    "-i": "--info",
    "-p": "--package",
}
ALIASES |= {
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "-sc": "--shell-completion",
    "--shell_completion": "--shell-completion",
}
PLAIN = {"--help", "--hydra-help", "--resolve", "--multirun", "--run", "--shell-completion"}
# the values that a flag accepts; empty: any
VALUED: dict[str, tuple[str, ...]] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": (),
    "--config-name": (),
    "--config-dir": (),
    "--from": (),
}


def split(argv: list[str]) -> tuple[Flags, list[str]]:
    """Return the flags by their long names, each with its value, and the overrides in their order.

    Raises UserError for an unknown flag and for a flag without its value.
    """
    flags: Flags = {}
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, given, value = word.partition("=")
        flag = ALIASES.get(name, name)
        if flag in PLAIN and not given:
            flags[flag] = None
        elif flag in VALUED:
            allowed = VALUED[flag]
            if not given and flag == "--info" and (not rest or rest[0] not in allowed):
                value = "all"
            elif not given:
                value = rest.pop(0) if rest else ""
            if not value or (allowed and value not in allowed):
                hint = f"; did you mean --from {value}?" if _is_file(value) else ""
                raise UserError(f"{name} {value}".rstrip() + f": expected {name} {'|'.join(allowed) or 'NAME'}{hint}")
            flags[flag] = value
        else:
            following = value if given else rest[0] if rest and not rest[0].startswith("-") else None
            raise UserError(f"{word}: no such flag; {_meant(name, following)}")
    return flags, overrides


def _is_file(value: str) -> bool:
    return value.endswith((".yaml", ".yml"))


def _meant(name: str, value: str | None) -> str:
    from dlrun.config.meant import flag
    from dlrun.config.options import Options

    if value is not None and _is_file(value):
        return f"did you mean --from {value}?"
    near = difflib.get_close_matches(name, [*PLAIN, *VALUED], 1, 0.75)
    plain = "settings are typed without dashes, as key=value"
    if near:
        return f"did you mean {near[0]}?"
    if name in ("--version", "-V"):
        return "type dlrun --version"
    return f"{plain}{f'; {hint}' if (hint := flag(name, None if value and '=' in value else value, Options())) else ''}"
