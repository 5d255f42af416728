"""What differs between two runs: config, typed words, code, versions, data, scores (`dlrun diff A B`).

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlrun.analysis import scores
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.vocabulary import NUMBERS, is_accuracy

__all__ = ["Difference", "between"]

ABSENT = "–"
PLACES = ("host", "git")
OUTCOME = ("status", "reason", "checks", "weights", *NUMBERS, "parameters")


class Difference(NamedTuple):
    """One key with its two values as text; `section` is config, typed, code, versions, data or scores."""

    section: str
    key: str
    first: str
    second: str


def between(first: Path, second: Path) -> list[Difference]:
    """Return what differs between two runs or ensembles, by section.

    Keys that repeat another one of the same name with the same two values are omitted. Raises UserError for a folder
    that is neither, NewerFormat if a newer dlrun wrote it.
    """
    results = [_read(path) for path in (first, second)]
    found = [
        Difference(section, key, *(_counted(key, results) if section == "scores" else _texts(key, pair)))
        for section, pair in _sections(results)
        for key in {key: None for values in pair for key in values}
        if pair[0].get(key) != pair[1].get(key)
    ]
    typed = {one.key for one in found if one.section == "typed"}
    return [one for one in found if not _follows(one, found, typed)]


def _follows(one: Difference, found: Sequence[Difference], typed: Collection[str]) -> bool:
    """Whether a key of the config repeats another: scheduler.epochs trainer.epochs, a _target_ its option."""
    group, _, last = one.key.rpartition(".")
    config = [other for other in found if other.section == "config"]
    if one.section != "config" or not group or one.key in typed:
        return False
    if last == "_target_" and any(other.key == group for other in config):
        return True
    same = [other for other in config if other.key.rpartition(".")[2] == last and other[2:] == one[2:]]
    leader = next((other for other in same if other.key in typed or other.key.startswith("trainer.")), same[0])
    return leader != one


def _read(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run")
    result = reading.result(path)
    if not result:
        raise UserError(f"{path}: no run here; `dlrun list` shows them")
    if not isinstance(result.get("config"), dict) and reading.is_run(path):
        result["config"] = reading.config(path)
    return result


def _sections(results: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    yield "config", [_config(result.get("config")) for result in results]
    yield "typed", _typed(results)
    yield "code", [_code(result) for result in results]
    yield "versions", [_mapping(result.get("versions")) for result in results]
    yield "data", [_leaves(_mapping(result.get("data"))) for result in results]
    yield "scores", [{key: result[key] for key in OUTCOME if key in result} for result in results]


def _config(config: Any) -> dict[str, Any]:
    """The keys of a config, the chosen options first and by their group's name."""
    flat = _leaves(_mapping(config))
    chosen = {k.removeprefix("choices."): v for k, v in flat.items() if k.startswith("choices.")}
    rest = {k: v for k, v in flat.items() if not k.startswith(("choices.", "run.dir", "sweep.dir"))}
    return {**chosen, **rest}


def _typed(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The words typed by their keys; without those that say where the run lies."""
    found = []
    for result in results:
        words = result.get("typed")
        texts = [str(word) for word in words] if isinstance(words, list) else []
        pairs = [text.partition("=")[::2] for text in texts]
        found.append({key: value for key, value in pairs if key not in ("run.dir", "sweep.dir")})
    return found


def _code(result: Mapping[str, Any]) -> dict[str, Any]:
    """Commit and machine, and the hash of each file of trusted packages."""
    code = _mapping(_mapping(result.get("code")).get("files"))
    return {**{key: result[key] for key in PLACES if result.get(key)}, **{k: str(v)[:12] for k, v in code.items()}}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found.update(
            _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
        )
    return found


def _texts(key: str, pair: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    first, second = (_shown(values[key]) if key in values else ABSENT for values in pair)
    if first == second:  # they differ after the sixth digit, or in their type
        first, second = (json.dumps(values.get(key)) for values in pair)
    return first, second


def _counted(key: str, results: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A score of both runs, accuracies on few images with how many are right."""
    if is_accuracy(key) and any(0 < scores.images(r, scores.split_of(key)) < scores.FEW for r in results):
        first, second = (scores.counted(key, r[key], r) if key in r else ABSENT for r in results)
        if first != second:
            return first, second
    return _texts(key, results)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
