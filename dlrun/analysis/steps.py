"""What each step of a search brought: the best score before and after it (`dlrun train -m search=default`, S7).

Read from the rounds in sweep.yaml and the scores of the trials. Nothing here imports torch.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlrun.analysis import scores
from dlrun.analysis.sweeps import Trials
from dlrun.errors import UserError
from dlrun.folders import sweep as sweep_folder

__all__ = ["gains", "sentences"]


def gains(folder: Path, found: Trials) -> list[dict[str, Any]]:
    """Return one row per step: its key, trials, the best setting before and after it, and `chance`.

    `chance` is the gain in an accuracy that guessing explains on so many images (95 %), nan if it is unknown. Empty if
    the sweep has no steps.
    """
    rounds: list[dict[str, Any]] = []
    with suppress(UserError, KeyError, TypeError):  # a damaged or foreign file, or no sweep
        plan = sweep_folder.plan(folder)
        rounds = list(plan["rounds"]) if plan["search"].get("steps") else []
    if not all(one.get("axes") and {"stage", "first", "new"} <= one.keys() for one in rounds):
        return []
    means = _means(found)
    rows: list[dict[str, Any]] = []
    best = math.nan
    for stage in sorted({int(one["stage"]) for one in rounds}):
        parts = [one for one in rounds if one["stage"] == stage]
        numbers = {n for one in parts for n in range(one["first"], one["first"] + one["new"])}
        reached = [means[n] for n in numbers if n in means]
        after = (min if found.lower else max)([s for s in (best, *reached) if not math.isnan(s)], default=math.nan)
        if stage:
            key = str(parts[0]["axes"][-1]["key"]).lstrip("+")
            chance = _chance(found, best, after)
            rows.append({"step": key, "trials": len(numbers), "before": best, "after": after, "chance": chance})
        best = after
    return rows


def _means(found: Trials) -> dict[int, float]:
    """The mean score over seeds of the setting of each trial, by the number of the trial."""
    of_setting: dict[int, list[float]] = {}
    for k in found.done:
        of_setting.setdefault(found.settings[k], []).append(found.scores[k])
    return {
        int(found.entries[k].path.name): math.fsum(values) / len(values)
        for k in found.done
        if (values := of_setting[found.settings[k]]) and found.entries[k].path.name.isdecimal()
    }


def _chance(found: Trials, before: float, after: float) -> float:
    if found.metric != "val_acc" or not found.best or math.isnan(before) or math.isnan(after):
        return math.nan
    count = scores.images(found.entries[found.best[0]].result, "val")
    return scores.noise(after, before, count) if count else math.nan


def sentences(rows: list[dict[str, Any]], metric: str) -> list[str]:
    """Return one line per step: what it brought, and whether that is more than chance."""
    lines = []
    for row in rows:
        said = f"step {row['step']}, {row['trials']} trials: "
        gain = abs(row["after"] - row["before"])
        if math.isnan(gain):
            said += f"{metric} {row['after']:.4g}"
        elif not gain:
            said += f"no gain, {metric} {row['after']:.4g}"
        else:
            said += f"{metric} {row['before']:.4g} to {row['after']:.4g}"
            said += f", within chance (up to {row['chance']:.2g})" if gain <= row["chance"] else ""
        lines.append(said)
    return lines
