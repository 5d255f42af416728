"""The study of a sweep, made again from the folders of its trials if it is damaged or gone (`dlrun resume`).

What a trial was, its words, stands in its result.json, how often it failed in table.csv. A trial without both is drawn
again: every sampler but TPE draws the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlrun.errors import Surroundings
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.search.plan import Plan
from dlrun.search.results import Results
from dlrun.search.space import Axis
from dlrun.search.storage import Storage
from dlrun.search.study import Study, Trial
from dlrun.vocabulary import DONE, FAILED, Status

__all__ = ["opened"]

FOLDER = re.compile(r"\d{4,9}")


def opened(
    folder: Path, plan: Plan, metric: str, minimise: bool, epochs: int, url: str = ""
) -> tuple[Study, list[Trial], str]:
    """Return the study of a sweep, its trials, and what to say if it had to be made again.

    It is in the database at `url`, if given. Raises Surroundings if the journal cannot be read or written, UserError if
    the database cannot be reached.
    """
    storage, search = Storage(folder, url, plan.study or "sweep"), plan.search
    file = sweep_folder.journal(folder)

    def study() -> Study:
        return Study(storage, metric, minimise, search["seed"], search["prune"], epochs)

    there = [path for path in sorted(folder.iterdir()) if FOLDER.fullmatch(path.name) and reading.is_run(path)]
    why = f"{file} is gone" if there and not url and not file.exists() else ""
    try:
        made = study()
        trials = made.trials()
    except Exception as error:  # Optuna raises whatever its parts do: the file may contain anything
        if Surroundings.caused(error):
            raise Surroundings(f"{file}: {getattr(error, 'strerror', '') or error}") from error
        if url or not file.exists():
            raise
        os.replace(file, file.with_name(f"{file.name}.damaged"))
        why = f"{file} was damaged, and is now {file.name}.damaged"
        made, trials = study(), []
    results = Results(folder, metric, minimise, trials)
    lost = [path for path in there if int(path.name) not in results.trials]
    failures = _failures(folder) if lost else {}
    for path in lost:
        number = int(path.name)
        axes = next((r.axes for r in plan.rounds[::-1] if number >= r.first), plan.axes)
        with suppress(KeyError, ValueError, TypeError):
            values = _values(reading.result(path).get("typed"), axes)
            ranges = [axis.reaching(values[axis.key]) for axis in axes]
            trial = results.trials[number] = made.add(number, values, ranges, failures.get(number, 0))
            if results.status(number) in (*DONE, *FAILED):
                made.close(trial, results.status(number), results.score(number))
    why = why or (f"{storage} lacks trials" if lost else "")
    return made, list(results.trials.values()), f"{why}; made again from their folders: {len(lost)}" if why else ""


def _values(typed: Any, axes: Sequence[Axis]) -> dict[str, Any]:
    """The values of a trial by the words that it was started with. Raises KeyError or ValueError for others."""
    words = dict(str(word).partition("=")[::2] for word in typed)
    values: dict[str, Any] = {}
    for axis in axes:
        text = words[axis.key]
        if axis.words:
            values[axis.key] = axis.choices[[axis.word(one) for one in axis.choices].index(f"{axis.key}={text}")]
        else:
            values[axis.key] = int(text) if axis.whole else float(text)
    return values


def _failures(folder: Path) -> dict[int, int]:
    """How often each trial failed."""
    found = {}
    for row in sweep_folder.table(folder):
        with suppress(KeyError, ValueError, TypeError):
            found[int(row["trial"])] = int(row["attempts"]) - (
                row["status"] not in (Status.FAILED, Status.CHECK_FAILED)
            )
    return found
