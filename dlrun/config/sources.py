"""What every key is set to by some words of a command, and by what: without Hydra, for `dlrun explain`.

Files are read as text, in the order in which Hydra composes them: the root, the chosen options, a preset, the
command line. A test compares the outcome with what Hydra composes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dlrun.config.option_text import Key, Option
from dlrun.config.options import PRESETS, Options, no_such_option, prefix
from dlrun.errors import UserError

__all__ = ["Choice", "Setting", "Sources"]


@dataclass(frozen=True)
class Choice:
    """The chosen option of a group, and the word or file that chose it."""

    option: str | None
    by: str | Key


@dataclass(frozen=True)
class Setting:
    """A key with its default and its value, both as text; `word` is what was typed, if that sets it."""

    default: Key
    now: Key
    word: str | None = None

    @property
    def value(self) -> str:
        """The value as text."""
        return self.now.value if self.word is None else self.word.partition("=")[2]


class Sources:
    """The choices and keys that overrides lead to. Raises UserError for a word or option that cannot be read."""

    def __init__(self, options: Options, words: Sequence[str] = ()) -> None:
        self.options = options
        self.choices: dict[str, Choice] = {}
        self.typed: dict[str, str] = {}
        picked: dict[str, str] = {}
        for word in words:
            key, given, value = word.lstrip("+").partition("=")
            if not given or not key:
                raise UserError(f"{word}: expected key=value or group=option")
            names = options.names(key)
            if not names or value.startswith("{"):
                self.typed[key] = word
            elif value in names or (key, value) == (PRESETS, "null"):
                picked[key] = word
            else:
                raise no_such_option(word, value, names)
        self._root = list(options.chain("", options.root))
        if not self._root:
            raise UserError(f"{options.root}: no such config; a file conf/{options.root}.yaml would make it one")
        self._choose(self._root)
        if PRESETS in picked:
            self.choices[PRESETS] = Choice(picked[PRESETS].partition("=")[2], picked[PRESETS])
        preset = self.choices[PRESETS].option if PRESETS in self.choices else None
        self._presets = list(options.chain(PRESETS, preset)) if preset and preset != "null" else []
        self._choose(self._presets)
        for group, word in picked.items():
            self.choices[group] = Choice(word.partition("=")[2], word)

    def _choose(self, files: Sequence[Option]) -> None:
        for file in files:
            for group, key in file.chosen.items():
                if group == "hydra/launcher" or not group.startswith("hydra/"):
                    self.choices[group] = Choice(None if key.value == "null" else key.value, key)

    def about(self, group: str) -> str:
        """Return what a group is for: the comment of its entry in the root."""
        found = [file.chosen[group].comment for file in self._root if group in file.chosen]
        section = self.options.common().get(group)
        return next(filter(None, reversed(found)), section.comment if section else "")

    def keys(self) -> dict[str, Setting]:
        """Return every key of the config by its full name, in the order of the files."""
        low = next((i for i, file in enumerate(self._root) if file.first), -1) + 1
        found: dict[str, Key] = {}
        for file in self._root[:low]:
            self._over(found, file, "")
        for group, choice in self.choices.items():
            if group != PRESETS and choice.option is not None:
                for file in self.options.chain(group, choice.option):
                    self._over(found, file, prefix(group))
        defaults = dict(found)
        for file in [*self._presets, *self._root[low:]]:
            self._over(found, file, "")
        sections = {key.rpartition(".")[0] for key in found}
        return {
            key: Setting(defaults.get(key, one), one, self.typed.get(key))
            for key, one in found.items()
            if key not in sections and (key.startswith("hydra.launcher.") or not key.startswith("hydra"))
        }

    @staticmethod
    def _over(found: dict[str, Key], file: Option, start: str) -> None:
        for name, one in file.keys.items():
            key = start + name
            outer, _, last = key.rpartition(".")
            if outer in found and found[outer].value.startswith("{"):  # names of the user's own, as in per_layer
                inner = ", ".join(filter(None, (found[outer].value[1:-1].strip(), f"{last}: {one.value}")))
                found[outer] = replace(found[outer], value=f"{{{inner}}}", file=one.file, line=one.line)
            elif not (one.value == "" and key in found and found[key].value.startswith("{")):
                found[key] = replace(one.over(found.get(key)), name=key)

    def elsewhere(self) -> Iterator[tuple[str, str, Key]]:
        """Yield group, option and key for all keys of all options, chosen or not."""
        for group in self.options.groups():
            for name in self.options.names(group) if group != PRESETS else []:
                for key, one in self.options.keys(group, name).items():
                    yield group, name, replace(one, name=key)
