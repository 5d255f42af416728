"""What to type in place of words that dlrun does not know, by their meaning and then by their spelling (`dlrun train`).

The words of other programs are in `dlrun.config.synonyms`. Everything here is called for an error only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.config.synonyms import GROUPS, KEYS, OPTIONS, UNNEEDED, VALUES, VERBS, fold, squeezed

if TYPE_CHECKING:
    from dlrun.config.options import Options

__all__ = [
    "advice",
    "bare_word",
    "flag",
    "likely_option",
    "likely_value",
    "likely_verb",
    "number",
    "respelled",
    "settings_meant",
]

FALSE = ("false", "no", "off", "0", "none", "null")
TRUE = ("true", "yes", "on")
# a usual value for a number that is switched on
USUAL = {"trainer.ema": "0.999", "trainer.patience": "5", "trainer.clip_norm": "1.0", "scheduler.warmup": "5"}
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_BETWEEN = re.compile(rf"({_NUMBER})\s*(?:\.\.+|-|:|to|…)\s*({_NUMBER})")
_LISTED = re.compile(rf"{_NUMBER}(?:\s*[;|,]\s*{_NUMBER})+")
_LOG = re.compile(rf"(?:log|logspace|log_uniform|loguni|logrange)[:(]\s*({_NUMBER})\s*[:,]\s*({_NUMBER})\s*\)?")
# a class, perhaps with its module: mynet.MyNet, mynet:MyNet, mynet
_CLASS = re.compile(r"([A-Za-z_]\w*(?:\.[a-z_]\w*)*)(?:[.:/]([A-Z]\w*))?")
_RANGE = re.compile(r"(loguniform|uniform|logint|int|range|interval)[:(]")


def likely_verb(word: str, verbs: Collection[str]) -> str:
    """Return the hint for an unknown verb: what to type."""
    commands = [command for command in VERBS.get(fold(word), "").split(", ") if command]
    if fold(word) in ("test", "evaluate", "eval", "score", "validate"):
        return (
            "dlrun train evaluates the test split itself: `dlrun compare` shows it, `dlrun predict RUN IMAGES` others"
        )
    near = difflib.get_close_matches(fold(word), verbs, 1)
    commands = commands or [f"dlrun {name}" for name in near]
    if "=" in word:
        commands = [f"dlrun train {word}"]
    if commands:
        return f"did you mean {' or '.join(f'`{c}`' for c in commands)}?"
    if Path(word).suffix in (".yaml", ".yml"):
        return f"did you mean `dlrun train --from {word}`?"
    return f"verbs: {' '.join(verbs)}"


def likely_option(group: str, word: object, options: Sequence[str]) -> list[str]:
    """Return the options that a word most likely means, the likeliest first; none if nothing is near."""
    text = "null" if word is None else str(word).lower() if isinstance(word, bool) else str(word)
    plain = {squeezed(option): option for option in options}
    table = OPTIONS.get(group, {})
    for word in (squeezed(text), squeezed(text.rpartition(".")[2])):  # torch.optim.SGD
        if (found := table.get(word) or plain.get(word)) in options:
            return [str(found)]
    return difflib.get_close_matches(text.lower(), options, 3, 0.5)


def settings_meant(group: str, value: object) -> list[str]:
    """Return the settings that a value of a group means which is no option but a file, a folder or a class.

    Several settings are one string. None if the value is a plain word.
    """
    text = str(value)
    path = Path(text).expanduser()
    if group == "model" and (found := _CLASS.fullmatch(text.removesuffix(".py").replace("/", "."))):
        module, name = found.groups()
        if name or text.endswith(".py"):
            return [f"model=custom model._target_={module}.{name or 'CLASS'} 'trust=[{module.partition('.')[0]}]'"]
    foreign = [word for word, option in OPTIONS["model"].items() if option == "torchvision"]
    if group == "model" and squeezed(text).startswith(tuple(foreign)) and text[-1].isdigit():
        return [f"model=torchvision model.name={fold(text)}"]
    if group == "dataset" and path.suffix == ".npz":
        return [f"dataset=arrays dataset.path={text}"]
    if group == "dataset" and path.suffix == ".npy":
        return [f"dataset=arrays dataset.x={text} dataset.y=Y.npy"]
    if group == "dataset" and path.suffix in (".csv", ".tsv", ".parquet"):
        return [f"dataset=table dataset.csv={text}"]
    if group == "dataset" and path.suffix == ".tar":
        return [f"dataset=shards dataset.urls={text}"]
    if group == "dataset" and (text.startswith(("~", ".")) or "/" in text or path.is_dir()):
        return [f"dataset=image_folder dataset.root={text}"]
    if group == "experiment" and path.suffix in (".yaml", ".yml"):
        return [f"--from {text}"]
    return []


def respelled(key: str, value: str, names: Collection[str]) -> str:
    """Return the setting whose key was written with another sign or in capitals; empty if there is none."""
    folded = fold(key).replace("/", ".").replace(":", ".")
    same = [name for name in names if name.lower() == folded]
    return f"{same[0]}={value.lstrip('= ')}" if same else ""


def likely_value(key: str, value: object, words: Collection[str]) -> str | None:
    """Return the allowed word that a value most likely means."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if (found := VALUES.get(key, {}).get(fold(text))) is not None:
        return found
    folded = {fold(word): word for word in words}
    near = difflib.get_close_matches(fold(text), folded, 1)
    return folded[near[0]] if near else None


def number(name: str, value: object, whole: bool) -> str:
    """Return what to type for a number that was written as a range, list, share or switch; empty if nothing fits."""
    if isinstance(value, list):
        return f"-m {name}={','.join(map(str, value))}" if value else ""
    text = str(value).strip().lower()
    if found := _BETWEEN.fullmatch(text):
        low, high = sorted(map(float, found.groups()))
        if whole and low.is_integer() and high.is_integer():
            return f"-m {name}=range:{int(low)}:{int(high) + 1}"
        form = "loguniform" if low > 0 and high >= 10 * low else "uniform"
        return f"-m {name}={form}:{low:g}:{high:g}"
    if re.fullmatch(_NUMBER, text):
        return "" if whole and not float(text).is_integer() else f"{name}={text}"
    if text.startswith("="):
        return f"{name}={text.lstrip('= ')}"
    if _LISTED.fullmatch(text):
        return f"-m {name}={re.sub(r'[ ;|,]+', ',', text)}"
    if found := _LOG.fullmatch(text):
        return f"-m {name}=loguniform:{found[1]}:{found[2]}"
    if _RANGE.match(text):
        shown = f"'{name}={text}'" if "(" in text else f"{name}={text}"
        return f"-m {shown}"
    if text in TRUE and name in USUAL:
        return f"{name}={USUAL[name]}"
    if text in FALSE:
        return f"{name}=0"
    if found := re.fullmatch(rf"({_NUMBER})\s*%", text):
        return f"{name}={float(found[1]) / 100:g}"
    if found := re.fullmatch(rf"({_NUMBER})\s*k", text):
        return f"{name}={float(found[1]) * 1000:g}"
    if found := re.fullmatch(r"(\d+)\s*[x×*]\s*\1", text):
        return f"{name}={found[1]}"
    if found := re.fullmatch(rf"({_NUMBER})\s*(px|s|sec|epochs?|pixels?|gb|images?|e)", text):
        return f"{name}={found[1]}"
    return ""


def advice(
    key: str,
    text: str | None,
    names: Collection[str],
    options: Options | None = None,
    groups: Collection[str] = (),
) -> str:
    """Return what to type for an unknown key; empty if nothing is near.

    `names` are the keys of the config; keys of other options are looked up in `options`.
    """
    folded = fold(key)
    last = folded.rpartition(".")[2]
    for name in (folded, last):
        if name in UNNEEDED:
            return UNNEEDED[name]
    if folded in GROUPS:
        return f"did you mean {_chosen(GROUPS[folded], text, options)}?"
    where, _, inner = folded.rpartition(".")
    if options is not None and where in options.groups() and inner in options.names(where):
        return f"did you mean {where}={inner}?"
    same = [name for name in names if fold(name) == folded]
    if options is not None and text is None and folded in options.groups() and folded != key:
        return f"did you mean {folded}?"
    if options is not None and not same and (folded in options.groups()):
        return f"did you mean {_chosen(folded, text, options)}?"
    templates = [t.strip() for t in KEYS.get(folded, KEYS.get(last, "")).split(", ") if t]
    templates = [_switched(template, text) for template in templates]
    ready = [t for t in templates if t.partition("=")[0] in names and t != key]
    if options is not None:
        ready += [t for t in templates if "=" in t and t.partition("=")[0] in options.groups()]
    if same or ready:
        return f"did you mean {_complete((same or ready)[0], text, folded)}?"
    elsewhere = next((f for t in (key, *templates) if (f := _elsewhere(t.partition("=")[0], options))), None)
    if elsewhere is not None:
        group, option, others, name = elsewhere
        more = f" (and {', '.join(others)})" if others else ""
        setting = _complete(next((t for t in templates if t.startswith(f"{name}=")), name), text, folded)
        return f"{name.rpartition('.')[2]} belongs to {group}={option}{more}; type {group}={option} {setting}"
    if group_like := difflib.get_close_matches(folded, groups, 1):
        return f"did you mean {_chosen(group_like[0], text, options)}?"
    near = _spelled(key, names)
    return f"did you mean {' or '.join(_complete(n, text, folded) for n in near[:3])}?" if near else ""


def _spelled(key: str, names: Collection[str]) -> list[str]:
    """Keys with the same last part, or a similar spelling in the same section, then in any."""
    where, _, last = fold(key).rpartition(".")
    beside = {n.rpartition(".")[2]: n for n in names if where and n.startswith(f"{where}.")}
    near = [beside[n] for n in difflib.get_close_matches(last, beside, 2, 0.65)]
    near = near or [n for n in names if n.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(fold(key), names, 2, 0.8)
    if not where:
        near = near or [n for n in names if difflib.get_close_matches(last, [n.rpartition(".")[2]], 1, 0.75)]
    return near


def _switched(template: str, text: str | None) -> str:
    """The side of `on | off` that a value means."""
    on, _, off = template.partition(" | ")
    return off if off and text is not None and text.lower() in FALSE else on


def _complete(name: str, text: str | None, typed: str) -> str:
    """A setting with its value, which is translated too."""
    if name.startswith("trainer.device=cuda") and typed in ("gpu", "cuda") and text is not None and text.isdigit():
        return f"trainer.device=cuda:{text}"
    if "=" in name or text is None:
        return name
    return f"{name}={VALUES.get(name, {}).get(fold(text), text)}"


def _chosen(group: str, text: str | None, options: Options | None) -> str:
    if not text:
        return f"{group}="
    near = likely_option(group, text, options.names(group)) if options is not None else []
    return f"{group}={near[0] if near else text}"


def _elsewhere(key: str, options: Options | None) -> tuple[str, str, list[str], str] | None:
    """The group and options that have a key: group, the shortest name, up to two others, the key."""
    if options is None or "." not in key:
        return None
    for group in options.groups():
        if key.startswith(f"{group.replace('/', '.')}."):
            having = [o for o in options.names(group) if (found := options.keys(group, o).get(key)) and found.line]
            # an option that cannot do without the key, then the shortest name
            having = sorted(having, key=lambda o: (options.keys(group, o)[key].value != "???", len(o), o))
            if having:
                return group, having[0], having[1:3], key
    return None


def _usual_names(options: Options) -> list[str]:
    from dlrun.config.sources import Sources

    return [name for name, one in Sources(options).keys().items() if not one.default.value.startswith("${")]


def flag(name: str, value: str | None, options: Options) -> str:
    """Return the setting that an unknown flag such as --epochs=10 means; empty if none is near."""
    key = name.lstrip("-").lower()
    if key.replace("-", "_") in options.groups():
        return f"did you mean {_chosen(key.replace('-', '_'), value, options)}?"
    return advice(key.replace("-", "_"), value, _usual_names(options), options)


def bare_word(words: Sequence[str], place: int, verb: str, options: Options) -> str:
    """Return what to type for a word without `=`: a file, a run, an option, or a key whose value follows."""
    word, following = words[place], words[place + 1] if place + 1 < len(words) else None
    path = Path(word).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return f"did you mean dlrun {verb} --from {word}?"
    if (path / "config.yaml").is_file():
        return f"did you mean dlrun {verb} --from {word}, or dlrun resume {word}?"
    if following == "=" and place + 2 < len(words):
        return f"no spaces around =: type {word}={words[place + 2]}"
    before = words[place - 1] if place else ""
    if before.endswith("=") and "=" not in word:
        return f"no spaces around =: type {before}{word}"
    if before.endswith(",") and "=" in before:
        return f"no spaces after a comma: type {before}{word}"
    if following is not None and following.startswith("=") and following != "=":
        return f"no spaces around =: type {word}{following}"
    if found := re.fullmatch(r"([\w.]+)[:→](.+)", word):
        word, following = found.groups()
        if word in options.groups():
            return f"did you mean {_chosen(word, following, options)}?"
    if (groups := list(_having(word, options))) and fold(word) not in KEYS:
        return f"did you mean {' or '.join(groups)}?"
    if fold(word) in options.groups():
        chosen = _chosen(fold(word), following if following and "=" not in following else "OPTION", options)
        return f"did you mean {chosen}?"
    value = following if following is not None and "=" not in following and not following.startswith("-") else "VALUE"
    names = _usual_names(options)
    if word in names:
        return f"did you mean {word}={value}?"
    return advice(word, value, names, options)


def _having(word: str, options: Options) -> Iterator[str]:
    """The groups that have an option of this name, or one spelled alike, as settings."""
    for group in options.groups():
        same = [o for o in options.names(group) if squeezed(o) == squeezed(word)]
        if same and word not in ("none", "default", "auto"):
            yield f"{group}={same[0]}"
