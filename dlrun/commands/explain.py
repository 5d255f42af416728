"""`dlrun explain KEY|GROUP [key=value ...]`: what it means and allows, what sets it now, the practice behind it.

`dlrun explain practices` lists every practice with the command that does it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlrun.config import studies
from dlrun.config.flags import split
from dlrun.config.option_text import Key, Option
from dlrun.config.options import PRESETS, STUDIES, Options, builtin_conf, prefix, user_conf
from dlrun.config.practices import COMMANDS, PRACTICES, cited, without_ids
from dlrun.config.rules import scalar
from dlrun.config.schema import NAMES, check_value, unknown
from dlrun.config.sources import Choice, Setting, Sources
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["complete", "main"]

WIDTH = 80
USAGE = "usage: dlrun explain KEY|GROUP|practices [key=value ...]"
# keys that Hydra gives the same meaning in every option
COMMON = {
    "_target_": "The class or function that dlrun builds or calls; the other keys are its arguments.",
    "_partial_": "The function is given these arguments now and the rest later; part of the option, not a setting.",
}


def main(argv: list[str]) -> int:
    """Print the answer; returns 0. Raises UserError for a name or an override that does not exist."""
    flags, words = split(argv)
    folders = [*user_conf(), builtin_conf()]
    if extra := flags.pop("--config-dir", None):
        if not Path(extra).expanduser().is_dir():
            raise UserError(f"--config-dir {extra}: no such folder")
        folders.append(Path(extra).expanduser().resolve())
    places = [word for word in words if word.startswith("hydra.searchpath=")]
    folders += [Path(place) for word in places for place in re.findall(r"file://([^\],]+)", word)]
    words = [word for word in words if word not in places]
    options = Options(folders, flags.pop("--config-name", None) or "train")
    helping = flags.pop("--help", "no") is None
    if flags:
        raise UserError(f"{next(iter(flags))}: not a flag of dlrun explain; {USAGE}")
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"{names[1]}: one name at a time, then key=value; {USAGE}")
    sources = Sources(options, [word for word in words if "=" in word])
    _check_typed(sources)
    asked = names[0] if names else next((w.partition("=")[0].lstrip("+") for w in words), "")
    page = _overview if helping or not asked else _every_practice if asked == "practices" else None
    lines = page(sources) if page else _answer(sources, asked)
    print("\n".join(lines))
    return Exit.FINE


def complete(start: str) -> list[str]:
    """Return the groups and keys that begin with what has been typed so far."""
    sources = Sources(Options())
    names = [*sources.options.groups(), *sources.keys(), *(key.name for _, _, key in sources.elsewhere())]
    names += ["practices"]
    return sorted({name for name in names if name.startswith(start) and not name.rpartition(".")[2].startswith("_")})


def _check_typed(sources: Sources) -> None:
    keys = sources.keys()
    for key, word in sources.typed.items():
        if key not in keys:
            if word.startswith("+") or "={" in word:
                continue
            raise UserError(unknown(key, list(keys), sources.options.groups() if "." not in key else ()))
        rule = keys[key].now.rule()
        if rule is not None:
            check_value(key, _value(keys[key].value), rule)


def _value(text: str) -> object:
    if text.startswith("["):
        return [scalar(item.strip()) for item in text.strip("[]").split(",") if item.strip()]
    return scalar(text)


def _answer(sources: Sources, asked: str) -> Iterator[str]:
    keys, groups = sources.keys(), sources.options.groups()
    asked = asked.rstrip("./")
    if asked == STUDIES:
        return _studies()
    group = next((g for g in groups if asked in (g, prefix(g)[:-1])), None)
    if group is not None:
        return _group(sources, group)
    if asked in keys:
        return _key(sources, keys[asked])
    if any(key.startswith(f"{asked}.") for key in keys):
        return _section(sources, asked)
    elsewhere = list(sources.elsewhere())
    having = [(g, name, key) for g, name, key in elsewhere if key.name == asked]
    if having:
        return _of_others(sources, having)
    names = dict.fromkeys([*keys, *(key.name for _, _, key in elsewhere)])
    raise UserError(unknown(asked, list(names), groups if "." not in asked else ()))


def _studies() -> Iterator[str]:
    yield "dlrun study NAME asks what a hyperparameter does, and whether that agrees with the essay:"
    for name in sorted(studies.listed()):
        yield from _row(name, studies.load(name).question, 18)
    yield from _row("", "conf/study/NAME.yaml adds one; kinds of rules: " + ", ".join(studies.KINDS), 18)


def _overview(sources: Sources) -> Iterator[str]:
    yield USAGE
    yield ""
    yield from _row("dlrun explain optimizer", "the options of a group, and the keys of the chosen one", 30)
    yield from _row("dlrun explain optimizer.lr", "what a key means, what it allows, what sets it", 30)
    yield from _row("dlrun explain optimizer.lr optimizer=sgd experiment=quick", "", 30)
    yield from _row("", "the same with these words", 30)
    yield from _row("dlrun explain practices", "every practice and the command that does it", 30)
    yield ""
    yield "groups:"
    for group in sources.options.groups():
        yield from _row(group, sources.about(group), 16)
    yield "keys without a group:"
    groups = tuple(prefix(g) for g in sources.options.groups() if prefix(g))
    for key, one in sources.keys().items():
        if not key.startswith(groups):
            yield from _row(key, without_ids(one.now.comment), 16)


def _every_practice(_: Sources) -> Iterator[str]:
    for name, text in PRACTICES.items():
        yield from _row(name, f"{text[:1].upper()}{text[1:]}", 5)
        if name in COMMANDS:
            yield " " * 7 + f"dlrun {COMMANDS[name]}"


def _group(sources: Sources, group: str) -> Iterator[str]:
    choice = sources.choices.get(group) or Choice(None, "")
    about = sources.about(group)
    yield from _wrapped(f"{group}: {about}" if about else group)
    yield from _wrapped(f"choose with {group}=OPTION; now: {choice.option or 'none'}, {_by(choice.by)}")
    yield ""
    names = sources.options.names(group)
    width = max(map(len, names)) + 2
    for name in names:
        option = sources.options.option(group, name)
        title = option.title.partition(": dlrun ")[0] if option else ""
        yield from _row(f"{'*' if name == choice.option else ' '} {name}", title, width + 2)
    chosen = sources.options.option(group, choice.option) if choice.option else None
    if chosen is None:
        return
    yield ""
    details = chosen.title.partition(": dlrun ")[2].partition(") ")[2]
    if details:
        yield from _wrapped(f"{choice.option}: {details}")
        yield ""
    yield from _preset(sources) if group == PRESETS else _keys_of(sources, prefix(group))
    yield ""
    yield from _practices(cited(chosen.title))


def _preset(sources: Sources) -> Iterator[str]:
    yield "sets:"
    for group, choice in sources.choices.items():
        if isinstance(choice.by, Key) and choice.by.file.parent.name == PRESETS:
            yield from _row(f"{group}={choice.option}", "", 0)
    for key, one in sources.keys().items():
        if one.now.file.parent.name == PRESETS:
            yield from _row(f"{key}={one.value}", "", 0)


def _section(sources: Sources, section: str) -> Iterator[str]:
    yield from _wrapped(f"{section}: {sources.about(section)}")
    yield ""
    yield from _keys_of(sources, f"{section}.")


def _keys_of(sources: Sources, start: str) -> Iterator[str]:
    found = {key: one for key, one in sources.keys().items() if key.startswith(start)}
    yield "keys:" if found else "no keys"
    shown = {key: f"{key}={one.value}" for key, one in found.items() if key.rpartition(".")[2] not in COMMON}
    width = min(max(map(len, shown.values()), default=0) + 2, 40)
    for key, text in shown.items():
        yield from _row(text, without_ids(found[key].now.comment).partition("; ")[0], width)


def _key(sources: Sources, one: Setting, note: str = "") -> Iterator[str]:
    last, rule = one.now.name.rpartition(".")[2], one.now.rule()
    yield from _wrapped(f"{one.now.name}={one.value}")
    yield from _wrapped(note, "  ")
    yield ""
    yield from _wrapped(_sentence(COMMON.get(last) or without_ids(one.now.comment)), "  ")
    yield ""
    kind, null = _type(sources, one.default.value), one.default.value == "null"
    if kind:
        yield from _fact("type", kind)
    if rule is not None:
        yield from _fact("allowed", f"{'null, or ' * null}{rule.expected}")
    changed = one.word is not None or one.now != one.default
    yield from _fact("default", f"{one.default.value or 'nothing'}{f' ({_place(one.default)})' * changed}")
    if not note:
        yield from _fact("set by", f"the command line: {one.word}" if one.word else _origin(sources, one))
    if one.value.startswith("${"):
        other = sources.keys().get(one.value[2:-1])
        yield from _fact("follows", f"{one.value[2:-1]}, now {other.value if other else 'not set'}")
    ids = cited(_title(sources, one.default))
    # of a file that cites many practices it is unknown which one a key belongs to
    yield from _practices(cited(one.now.comment) or (ids if len(ids) < 3 else []))


def _of_others(sources: Sources, having: Sequence[tuple[str, str, Key]]) -> Iterator[str]:
    group, _, key = having[0]
    chosen = sources.choices.get(group)
    shown = f"{group}={chosen.option}" if chosen and chosen.option else f"the chosen {group}"
    others = ", ".join(f"{group}={name}" for _, name, _ in having)
    return _key(sources, Setting(key, key), f"not set now: {shown} has no such key; it is a key of {others}")


def _type(sources: Sources, text: str) -> str:
    """The type of a default, as a message would call it; nothing if it allows any."""
    if text.startswith("${"):
        other = sources.keys().get(text[2:-1])
        return _type(sources, other.default.value) if other else ""
    value = scalar(text)
    if value is None or text == "???":
        return ""
    kinds = {"[": list, "{": dict}
    return NAMES[kinds.get(text[0], str) if isinstance(value, str) else type(value)]


def _origin(sources: Sources, one: Setting) -> str:
    place = _place(one.now)
    for group, choice in sources.choices.items():
        option = sources.options.option(group, choice.option) if choice.option else None
        if option is not None and option.file == one.now.file:
            return f"{'the preset ' * (group == PRESETS)}{group}={choice.option}: {place}"
    return place


def _place(key: Key) -> str:
    return f"{_path(key.file)}, line {key.line}"


def _path(file: Path) -> str:
    if file.is_relative_to(builtin_conf()):
        return f"built-in conf/{file.relative_to(builtin_conf())}"
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _by(by: str | Key) -> str:
    return f"from {_place(by)}" if isinstance(by, Key) else f"from the command line: {by}" if by else ""


def _title(sources: Sources, key: Key) -> str:
    found: Option | None = sources.options.option(key.file.parent.name, key.file.stem)
    return found.title if found is not None and found.file == key.file else ""


def _practices(ids: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(ids):
        text = f"{name}: {PRACTICES[name]}"
        yield from _fact("practice" if number == 0 else "", text)


def _fact(name: str, text: str) -> Iterator[str]:
    yield from _row(name, text, 12)


def _row(name: str, text: str, width: int) -> Iterator[str]:
    """A name and its text beside it, or below if the name is too long."""
    left = f"  {name}"
    if len(left) > width or not text:
        yield from _wrapped(left, "", "    ")
        left = ""
    yield from _wrapped(text, left.ljust(width + 2), " " * (width + 2))


def _wrapped(text: str, indent: str = "", further: str | None = None) -> list[str]:
    further = indent if further is None else further
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else "No comment in its file."
