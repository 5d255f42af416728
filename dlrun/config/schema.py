"""Configs: one line for every mistake, before anything heavy is imported (`dlrun train …`).

The default in the YAML is the schema: the type of a key is the type of its default; a default of null allows any type.
Ranges and allowed values are in the comments of the YAML files, see `dlrun.config.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from dlrun.config.meant import advice, likely_value, number
from dlrun.config.options import Options, prefix
from dlrun.config.rules import METRICS, OF_TARGET, SCORED, Rule
from dlrun.errors import UserError
from dlrun.vocabulary import COLUMNS, FURTHER

__all__ = ["NAMES", "check_rules", "check_value", "flatten", "lookup", "unknown", "validate"]


NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    list: "a list",
    dict: "keys",
}
# what to type for a key that has no default
_WANTED = {
    "dataset.root": "FOLDER",
    "objective.teacher": "RUN|ENSEMBLE",
    "objective.unlabelled": "FOLDER|CSV",
    "dataset.csv": "train.csv",
    "model._target_": "PACKAGE.CLASS trust=[PACKAGE]",
}
# sections that every config has, also a stored one
_SECTIONS = (
    *("dataset", "model", "optimizer", "scheduler", "regularizer", "loss", "objective", "augment"),
    *("trainer", "check", "run"),
)


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every leaf; an empty mapping is a leaf."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name


def lookup(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def unknown(
    key: str,
    names: Collection[str],
    groups: Collection[str] = (),
    value: str | None = None,
    options: Options | None = None,
) -> str:
    """Return the message for an unknown key: what it means, or the nearest spelling, with the value that was typed."""
    hint = advice(key, value, names, options, groups)
    where = key.rpartition(".")[0]
    beside = [n for n in names if where and n.startswith(f"{where}.") and not n.rpartition(".")[2].startswith("_")]
    has = f"{where} has {', '.join(n.rpartition('.')[2] for n in beside)}" if beside else ""
    return f"{key}: no such key; {hint or has or '`dlrun train --help` lists the keys'}"


def validate(
    cfg: Mapping[str, Any],
    schema: Mapping[str, Any],
    added: Collection[str] = (),
    choices: Mapping[str, Any] | None = None,
    options: Options | None = None,
) -> None:
    """Compare a resolved config with the defaults it came from, and apply the rules of the chosen options.

    `added` are keys that the user appended on purpose (`+key=value`). Raises UserError for the first key
    that is unknown, missing, of a wrong type or out of range, and for a folder or file that does not exist.
    """
    rules = _rules(cfg, choices or {}, options or Options())
    _compare(cfg, schema, "", _Context(added, rules, options or Options()))
    _apply(cfg, rules)


def check_rules(cfg: Mapping[str, Any]) -> None:
    """Apply the rules of the options that a stored config names, and look for its folders and files.

    Options are found as `dlrun train` finds them; one that no longer exists has no rules. Raises UserError.
    """
    stored = cfg.get("choices")
    named = stored if isinstance(stored, Mapping) else {}
    # a section for which no option is named has the rules of the built-in option that builds the same class
    unnamed = {section: "" for section in _SECTIONS if not isinstance(named.get(section), str)}
    _apply(cfg, _rules(cfg, {**named, **unnamed}, Options()))


def _rules(cfg: Mapping[str, Any], choices: Mapping[str, Any], options: Options) -> Mapping[str, Rule]:
    sections = {prefix(str(group))[:-1] for group in (*choices, *cfg)} - {""}
    targets = {section: lookup(cfg, f"{section}._target_") for section in sorted(sections)}
    return options.rules({s: t for s, t in targets.items() if isinstance(t, str)}, choices)


def _apply(cfg: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    for section in _SECTIONS:
        if not isinstance(cfg.get(section), Mapping):
            raise UserError(f"{section} is missing; a config of dlrun has {', '.join(_SECTIONS)}")
    for key, rule in rules.items():
        check_value(key, lookup(cfg, key), rule)
    _paths(cfg)
    _reaches(cfg)


def check_value(key: str, value: Any, rule: Rule) -> None:
    """Raise UserError if the rule of a key does not allow a value; null passes."""
    if value is not None and not rule.holds(value):
        raise UserError(f"{key}={_shown(value)}: expected {rule.expected}{_near(key, value, rule)}")


def _near(key: str, value: Any, rule: Rule) -> str:
    words = [word for word in rule.words if isinstance(word, str)]
    if rule.listed and isinstance(value, list):
        value = next((v for v in value if v not in words), "")
    if not words:
        # a key that takes lists does not mean a sweep
        typed = "" if rule.several and isinstance(value, list) else number(key, value, "whole" in rule.text)
        return f"; type {typed}" if typed not in ("", f"{key}={value}") else ""
    near = likely_value(key, value, words)
    late = likely_value("search.metric", value, SCORED) if key == "trainer.monitor" else None
    if late is not None and late not in words and (near is None or _alike(value, late) > _alike(value, near)):
        other = f"search.metric={late} compares trials by it"
        return f"; {late} is computed at the end of a run: {other}, trainer.monitor=val_macro_f1 chooses epochs"
    if near is None:
        return ""
    return f"; did you mean {near}?" if rule.listed else f"; did you mean {key}={near}?"


def _alike(value: Any, name: Any) -> float:
    return SequenceMatcher(None, str(value), str(name)).ratio()


@dataclass
class _Context:
    added: Collection[str]
    rules: Mapping[str, Rule]
    options: Options


def _compare(cfg: Mapping[str, Any], schema: Mapping[str, Any], prefix: str, context: _Context) -> None:
    for key in schema:
        if key not in cfg:
            raise UserError(f"{prefix}{key} is missing; an option needs all of its keys")
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        if value == "???":
            raise UserError(f"{name} is missing; type {name}={_WANTED.get(name, 'VALUE')}")
        if key in schema:
            _type(name, value, schema[key], context)
        elif not _free(name, cfg, schema, context):
            text = str(value) if isinstance(value, (str, int, float)) else None
            known = [f"{prefix}{n}" for n in flatten(schema)]
            raise UserError(unknown(name, known, () if prefix else list(schema), text, context.options))


def _free(name: str, cfg: Mapping[str, Any], schema: Mapping[str, Any], context: _Context) -> bool:
    """Whether a key without a default is allowed: an argument of a `_target_`, added by the user."""
    if schema.get("_target_") == "???":
        return True
    if not any(f"{name}.".startswith(f"{a}.") or a.startswith(f"{name}.") for a in context.added):
        return False
    if "_target_" in cfg:
        return True
    last = name.rpartition(".")[2]
    raise UserError(f"+{name}: nothing reads this key; keys are added to what has a _target_, such as +model.{last}")


def _type(name: str, value: Any, default: Any, context: _Context) -> None:
    if isinstance(default, str) and default.startswith("${"):
        return  # it follows another key, whose type is checked; the rules check its value
    if default is None or default == "???":
        return
    kind = type(default)
    expected = NAMES.get(kind, kind.__name__)
    rule = context.rules.get(name)
    if rule is not None and rule.mixed:
        if value is None and None not in rule.words:
            raise UserError(f"{name}=null: expected {rule.expected}")
        return  # the rule lists values of several types
    if value is None:
        raise UserError(f"{name}=null: expected {expected} such as {_shown(default)}")
    if kind is dict:
        if not isinstance(value, Mapping):
            hint = f"; type run.name={value}" if name == "run" else ""
            below = ", ".join(default) or "name: value"
            raise UserError(f"{name}={_shown(value)}: expected keys below it ({below}){hint}")
        if default:
            _compare(value, default, f"{name}.", context)
        return
    fits = isinstance(value, kind)
    if kind in (int, float):
        fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not fits:
        wanted = f"{expected} such as {_shown(default)}"
        hint = f"; type {typed}" if (typed := _instead(name, value, kind, rule)) else ""
        if kind is list and not default and isinstance(value, (str, int, float)):
            hint = f"; type {name}=[{_shown(value).strip('[]')}]"
            wanted = expected
        raise UserError(f"{name}={_shown(value)}: expected {wanted}, found {_found(value)}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: expected a finite number such as {_shown(default)}")
    if kind is list and default:
        for i, item in enumerate(value):
            _type(f"{name}[{i}]", item, default[0], context)


def _instead(name: str, value: Any, kind: type, rule: Rule | None) -> str:
    """What to type for a value of another type; empty if that cannot be told."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"{name}={int(value)}"
    if kind in (int, float):
        return number(name, value, kind is int)
    if kind is bool and str(value).lower() in ("1", "yes", "on", "0", "no", "off", "none"):
        return f"{name}={str(str(value).lower() in ('1', 'yes', 'on')).lower()}"
    if kind is str and rule is not None and (word := likely_value(name, value, list(map(str, rule.words)))) is not None:
        return f"{name}={word}"
    return ""


def _shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value)


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f"the word {value!r}" if value else "nothing"
    return NAMES.get(type(value), type(value).__name__)


def _paths(cfg: Mapping[str, Any]) -> None:
    """A folder that cannot be downloaded must exist, and so must a file."""
    teacher = cfg["objective"].get("teacher")
    if isinstance(teacher, str) and not Path(teacher).expanduser().is_dir():
        raise UserError(f"objective.teacher={teacher}: no such folder; expected a run or an ensemble")
    others = cfg["objective"].get("unlabelled")
    if isinstance(others, str) and not Path(others).expanduser().exists():
        expected = "expected a folder of images, or a table that names images in its folder"
        raise UserError(f"objective.unlabelled={others}: no such file or folder; {expected}")
    dataset = cfg["dataset"]
    if not str(dataset.get("_target_")).startswith("dlrun."):
        return
    root, path = dataset.get("root"), dataset.get("path")
    if root is not None and not dataset.get("download") and not Path(str(root)).expanduser().is_dir():
        fetch = "; dataset.download=true downloads it" if "download" in dataset else " with train/<class>/<image> in it"
        what = "is a file" if Path(str(root)).expanduser().exists() else "no such folder"
        raise UserError(f"dataset.root={root}: {what}; expected the folder of the data{fetch}")
    hub = str(dataset["_target_"]).startswith("dlrun.data.huggingface.")  # where it may be no file
    if path is not None and not hub and not Path(str(path)).expanduser().exists():
        raise UserError(f"dataset.path={path}: no such file; expected an .npz with x and y")
    table, images = dataset.get("csv"), dataset.get("images")
    if table is not None and not Path(str(table)).expanduser().is_file():
        raise UserError(f"dataset.csv={table}: no such file; expected a table with one row per image")
    if images is not None and not Path(str(images)).expanduser().is_dir():
        raise UserError(f"dataset.images={images}: no such folder; expected the folder of the images")


def _objective_allows(cfg: Mapping[str, Any]) -> None:
    """What an objective makes of other keys; a batch that it compares as a whole cannot come in parts."""
    name, trainer = str(cfg["objective"].get("_target_")).rpartition(".")[2], cfg["trainer"]
    ours = str(cfg["objective"].get("_target_")).startswith("dlrun.")
    parts = trainer.get("accumulate")
    if ours and name == "SimCLR" and isinstance(parts, int) and parts > 1:
        why = "objective=simclr compares all images of a batch with each other, and a part holds fewer"
        raise UserError(f"trainer.accumulate={parts}: {why}; omit it, and lower trainer.batch_size to save memory")
    if ours and name == "FixMatch" and trainer.get("compile"):
        why = "objective=fixmatch passes batches of several sizes through the model, each compiled for minutes"
        raise UserError(f"trainer.compile=true: {why}; omit it")


def _of_targets(cfg: Mapping[str, Any]) -> None:
    """A score of one target needs that target (M11)."""
    dataset, search = cfg["dataset"], cfg.get("search") or {}
    names = [str(name) for name in dataset.get("targets") or ()]
    own = [f"val_{name}_{what}" for name in names for what in ("acc", "loss")]
    own += ["val_map"] if dataset.get("multilabel") else []
    for key, value, known in (
        ("trainer.monitor", cfg["trainer"].get("monitor"), METRICS),
        ("search.metric", search.get("metric"), SCORED),
    ):
        if isinstance(value, str) and value not in (*known, *own) and OF_TARGET.fullmatch(value):
            rule = Rule(lambda _: False, "one of ", lambda known=known: (*own, *known))  # type: ignore[misc]
            check_value(key, value, rule)


def _reaches(cfg: Mapping[str, Any]) -> None:
    """A key that the chosen model, loss or trainer cannot use is an error; it is not ignored silently."""
    for key, part in (("dropout", "model"), ("label_smoothing", "loss")):
        if lookup(cfg, f"regularizer.{key}") and key not in cfg[part]:
            raise UserError(f"regularizer.{key} has no effect: this {part} has no {key}; choose another {part}=")
    if lookup(cfg, "model.unfreeze_at") and not lookup(cfg, "model.freeze"):
        raise UserError("model.unfreeze_at has no effect without frozen weights; add model.freeze=backbone")
    only, skip = (set(lookup(cfg, f"check.{key}") or ()) for key in ("only", "skip"))
    if only and only <= skip:
        raise UserError(f"check.skip leaves nothing of check.only=[{','.join(sorted(only))}]; change one of them")
    _objective_allows(cfg)
    _of_targets(cfg)
    trainer = cfg["trainer"]
    if trainer.get("while_gap_shrinks") and not trainer.get("patience"):
        raise UserError("trainer.while_gap_shrinks has no effect without patience; add trainer.patience=5")
    if trainer.get("monitor") in ("update_ratio", "dead_fraction") and not trainer.get("diagnostics"):
        raise UserError(f"trainer.monitor={trainer['monitor']}: it needs trainer.diagnostics=true")
    search = cfg.get("search") or {}
    early = "search=staged" if search.get("stages") else "search.prune" if search.get("prune") != "none" else ""
    if early and search.get("metric") in FURTHER and search["metric"] not in COLUMNS:
        why = f"it is computed at the end of a run, and {early} compares epochs"
        raise UserError(f"search.metric={search['metric']}: {why}; choose another, such as search.metric=val_macro_f1")
