"""What a study found: its settings with their spread over seeds, and whether each claim holds (`dlrun study NAME`).

Read from sweep.yaml and the files of the runs; the rules are in dlrun/analysis/claims.py. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dlrun.analysis.claims import AGREES, DOES_NOT, UNDECIDED, Judged, Setting, judge, overall
from dlrun.analysis.sweeps import Trials
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.vocabulary import Status, lower_is_better

__all__ = ["Found", "read", "rows", "sentences"]

NAMED = ("setting", "n", "std", "rest", "seconds per epoch")  # further columns of `rows`, which are no score
LOSSES = ("train_loss", "val_loss", "test_loss", "test_acc")  # and these no varied key
MOST = 2000  # trials of one page: a file may ask for a million


@dataclass
class Found:
    """A study as it was recorded, its settings in the order of its values, and its rules judged."""

    study: Mapping[str, Any]
    keys: list[str]
    settings: list[Setting]
    judged: list[Judged]


def read(folder: Path, found: Trials) -> Found | str | None:
    """Return the study of a sweep, judged; None if it is none, and why in words if its record cannot be judged."""
    plan = None
    with suppress(UserError, LookupError, TypeError, AttributeError, ValueError):  # damaged or foreign
        plan = sweep_folder.plan(folder)
        if not (plan.get("purpose") or {}).get("study"):
            return None
    if plan is None:
        return None
    try:
        return _judged(folder, found, plan, plan["purpose"]["study"])
    except UserError as error:
        return f"this study is not judged: {error}"
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        return f"this study is not judged: its record in {folder / 'sweep.yaml'} is damaged, or of another version"


def _judged(folder: Path, found: Trials, plan: Mapping[str, Any], study: Mapping[str, Any]) -> Found:
    runs = {int(e.path.name): (e.path, e.result) for e in found.entries if e.path.name.isdecimal()}
    sizes = study.get("combine") or ()
    if plan["rounds"][0]["new"] > MOST or len(sizes) > MOST:
        raise UserError(f"{folder / 'sweep.yaml'} asks for more than {MOST} trials")
    data = next(iter(runs.values()), (folder, {}))[1].get("data") or {}
    keys, settings = _settings(plan["rounds"][0], runs)
    if sizes:
        if data.get("tasks"):
            raise UserError(f"its runs have several targets, {', '.join(data['tasks'])}; a vote needs one")
        keys, settings = ["members"], _ensembles(settings, sizes)
    if study["score"] in (*keys, *NAMED) or {*keys} & {*NAMED, *LOSSES}:
        raise UserError(f"{folder / 'sweep.yaml'} gives a score or a key the name of a column")
    study = {**study, **{key: str(study[key]) for key in ("question", "essay", "control", "score")}}
    return Found(
        study, keys, settings, [judge(rule, settings, len(data.get("classes") or ())) for rule in study["rules"]]
    )


def _settings(
    one: Mapping[str, Any], runs: Mapping[int, tuple[Path, Mapping[str, Any]]]
) -> tuple[list[str], list[Setting]]:
    """The settings of the grid of a study; seeds are its last list, and vary fastest."""
    axes = {str(a["key"]).lstrip("+"): list(a["words"]) for a in one["axes"]}
    seeds = axes.pop("seed", None) or [""]
    made = []
    for place, point in enumerate(islice(product(*axes.values()), -(-one["new"] // len(seeds)))):
        point = tuple({"True": "true", "False": "false"}.get(word, word) for word in point)
        words = [f"{k}={w}" for k, w in zip(axes, point, strict=True)]
        first = one["first"] + place * len(seeds)
        name = point[0] if len(axes) == 1 else " ".join(words) or "as typed"
        made.append(Setting(name, [runs[n] for n in range(first, first + len(seeds)) if n in runs]))
    return [*axes], made


def _ensembles(settings: Sequence[Setting], sizes: Sequence[int]) -> list[Setting]:
    """Votes of so many runs: each run with those that follow it, so that every run votes equally often.

    Votes share runs, so that their spread is smaller than that of votes of other runs.
    """
    import numpy as np

    members = []
    for path, result in settings[0].runs:
        if result.get("status") == Status.COMPLETED:
            arrays = reading.arrays(path, "predictions")
            shares = {
                s: _softmax(arrays[f"{s}_logits"].astype(float)) for s in ("val", "test") if f"{s}_logits" in arrays
            }
            members.append((shares, {s: arrays[f"{s}_labels"] for s in shares}))
    made = []
    for size in sizes if members else ():
        one = Setting(str(size), voters=settings[0].runs)
        for first in range(len(members) if size <= len(members) else 0):
            chosen = [members[(first + k) % len(members)] for k in range(size)]
            scores: dict[str, float] = {}
            for split, labels in chosen[0][1].items():
                votes = np.mean([shares[split] for shares, _ in chosen], axis=0)
                scores[f"{split}_acc"] = float((votes.argmax(1) == labels).mean())
                right = votes[np.arange(len(labels)), labels]
                scores[f"{split}_loss"] = float(-np.log(np.clip(right, 1e-12, 1)).mean())
            one.ensembles.append(scores)
        made.append(one)
    return made


def _softmax(logits: Any) -> Any:
    import numpy as np

    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sentences(found: Found, table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return two sentences: what was seen, and whether it agrees with the essay; then one line per rule."""
    seen = _seen(found, table, str(found.study["score"]))
    outcome = overall(found.judged)
    counts = [f"{sum(j.outcome == o for j in found.judged)} {o}" for o in (AGREES, DOES_NOT, UNDECIDED)]
    said = f"This {outcome} with the essay"
    if outcome == UNDECIDED:
        said = "Whether this agrees with the essay is not decidable here"
    claim = str(found.study["essay"]).rstrip(".")
    return [f"{seen}.", f"{said} ({', '.join(counts)}): {claim}.", *(f"{j.outcome}: {j.said}" for j in found.judged)]


def _seen(found: Found, table: Sequence[Mapping[str, Any]], score: str) -> str:
    """Which settings have the best and the worst score; a setting that lost seeds is behind all that lost none."""
    key, sign = _column(found), 1 if lower_is_better(score) else -1
    by_name = {setting.name: setting for setting in found.settings}
    groups: dict[tuple[bool, float], list[str]] = {}
    said: dict[str, str] = {}
    for row in table:
        if not math.isnan(row[score]):
            one = by_name[row[key]]
            groups.setdefault((one.torn, sign * row[score]), []).append(one.name)
            said[one.name] = _spread(row, score) + (f" ({one.lost} of its seeds diverged)" if one.torn else "")
    gone = [setting.name for setting in found.settings if setting.diverged]
    after = f"; every run with {_all(gone)} diverged" if gone else ""
    if not groups:
        return f"no setting has a {score}{after}"
    best, worst = groups[min(groups)], groups[max(groups)]
    if len(groups) == 1:
        return f"{score} with {key} {_all(best)} is {'the same, ' if len(best) > 1 else ''}{said[best[0]]}{after}"
    seen = f"{score} is best with {key} {_all(best)}, {said[best[0]]}"
    return f"{seen}, and worst with {_all(worst)}, {said[worst[0]]}{after}"


def _all(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _spread(row: Mapping[str, Any], score: str) -> str:
    return f"{row[score]:.4f}" + ("" if math.isnan(row["std"]) else f" ± {row['std']:.4f}")


def _column(found: Found) -> str:
    """The column that names a setting: the varied key, if there is one alone."""
    return found.keys[0] if len(found.keys) == 1 else "setting"


def rows(found: Found) -> list[dict[str, Any]]:
    """Return one row per setting: mean and spread of its score, losses, seconds per epoch, and other endings."""
    score = str(found.study["score"])
    columns = ["train_loss@last", "val_loss", "test_loss", "test_acc", "train_seconds@mean"]
    made = []
    for setting in found.settings:
        row: dict[str, Any] = {_column(found): setting.name}
        values = setting.measured(score)
        row |= {"n": len(values), score: fmean(values) if values else math.nan}
        row["std"] = stdev(values) if len(values) > 1 else math.nan
        for column in columns:
            numbers = setting.measured(column)
            name = {"train_seconds@mean": "seconds per epoch", "train_loss@last": "train_loss"}.get(column, column)
            if column != score:
                row[name] = fmean(numbers) if numbers else math.nan
        others = [str(r.get("status")) for _, r in setting.runs if r.get("status") != Status.COMPLETED]
        row["rest"] = " ".join(f"{others.count(s)} {s}" for s in dict.fromkeys(others))
        made.append(row)
    known = {k for row in made for k, v in row.items() if v != "" and v == v} | {
        score,
        "std",
        _column(found),
    }  # nan differs from itself
    return [{k: v for k, v in row.items() if k in known} for row in made]
