"""The results of the trials of a sweep, read from their run folders (`dlrun train -m`).

A running trial is read each time, one that has ended only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlrun.analysis import sweeps
from dlrun.analysis.ranking import FOLD, Scored, ranked, repeats
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.opener import Unreadable
from dlrun.folders.version import NewerFormat
from dlrun.search.study import Trial
from dlrun.vocabulary import DONE, FAILED, Status

__all__ = ["Results"]


class Results:
    """Status, score and result.json of each trial of a sweep, by its number.

    `running` holds the running trials, each with the word of its last lock before (`folders.disk.token`).
    """

    def __init__(self, folder: Path, metric: str, minimise: bool, trials: Sequence[Trial]) -> None:
        self.folder, self.metric, self.minimise = folder, metric, minimise
        self.trials = {trial.number: trial for trial in trials}
        self.running: dict[int, str] = {}
        self._ended: dict[int, dict[str, Any]] = {}
        # score and val_loss, each with the result that they were read from
        self._scores: dict[int, tuple[dict[str, Any], float | None, float | None]] = {}
        # for the leader: trials to look at again, those that may lead by their settings, and the one that leads
        self._changed, self._fit = {*self.trials}, dict[Any, set[int]]()
        self._led: Trial | None = None

    def path(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return sweep_folder.run_folder(self.folder, number)

    def rows(self, number: int) -> list[dict[str, str]]:
        """Return metrics.csv of a trial; nothing if it is damaged, which must not end the sweep."""
        with suppress(UserError):
            return reading.metrics(self.path(number))
        return []

    def result(self, number: int) -> dict[str, Any]:
        """Return result.json of a trial."""
        if number in self.running:
            return _read(self.path(number))
        if number not in self._ended:
            self._ended[number] = _read(self.path(number))
        return self._ended[number]

    def keep(self, number: int, result: dict[str, Any]) -> None:
        """Keep the result of a trial that has just ended."""
        self._ended[number] = result
        self._changed.add(number)

    def forget(self, *numbers: int) -> None:
        """Read the results of these trials again, or those of all."""
        for number in numbers or list(self._ended):
            self._ended.pop(number, None)
            self._changed.add(number)

    def status(self, number: int) -> str:
        """Return the status of a trial; `failed` if its last attempt ended without a result."""
        status = str(self.result(number).get("status", ""))
        trial = self.trials.get(number)
        if trial is not None and trial.attempts and status not in (*DONE, Status.PAUSED, Status.CHECK_FAILED):
            return Status.FAILED
        return status

    def score(self, number: int) -> float | None:
        """Return the metric of a trial for the weights that are tested; None if it has none."""
        return self._read(number)[0]

    def _read(self, number: int) -> tuple[float | None, float | None]:
        """The metric of a trial and its val_loss, which decides among equal ones."""
        result, path = self.result(number), self.path(number)
        known = self._scores.get(number)
        if known is None or known[0] is not result:  # files are read once per trial, not once per trial and row
            value, loss = (sweeps.score(path, result, column) for column in (self.metric, "val_loss"))
            known = self._scores[number] = (result, value, loss)
        return known[1:]

    def ranked(self, numbers: Sequence[int] | None = None) -> list[Trial]:
        """Return the trials that have a score, of `numbers` or all, best first by their settings."""
        found = []
        for number in self.trials if numbers is None else numbers:
            value, loss = self._read(number) if number in self.trials else (None, None)
            if value is not None and self.status(number) not in FAILED:
                seeds = str([v for k, v in self.trials[number].values.items() if k.lstrip("+") in ("seed", FOLD)])
                found.append(Scored(self._setting(number), seeds, value, loss, number))
        settings = ranked(found, lower=self.minimise)
        return [self.trials[found[k].number] for setting in settings for k in setting.runs]

    def _setting(self, number: int) -> tuple[tuple[str, str], ...]:
        """What a trial has in common with those that differ in their seeds alone."""
        values = self.trials[number].values
        return tuple(sorted((k, str(v)) for k, v in values.items() if not repeats(k.lstrip("+"))))

    def leader(self) -> Trial | None:
        """Return the best trial so far of those that completed or may continue.

        Only settings whose trials changed are compared with that of the leader: all are too many after each trial.
        """
        touched = set()
        for number in self._changed & self.trials.keys():
            setting = self._setting(number)
            touched.add(setting)
            fit = self.status(number) in (Status.COMPLETED, Status.PAUSED)
            (set.add if fit else set.discard)(self._fit.setdefault(setting, set()), number)
        self._changed.clear()
        if touched:
            best = self._led and self._setting(self._led.number)
            among = self._fit if best is None or best in touched else {*touched, best}
            self._led = next(iter(self.ranked([n for setting in among for n in self._fit[setting]])), None)
        return self._led


def _read(path: Path) -> dict[str, Any]:
    """result.json of a trial; one that is damaged is written anew when the trial continues from its checkpoint."""
    try:
        return reading.result(path)
    except NewerFormat:
        raise
    except Unreadable:
        return {"status": Status.INTERRUPTED}
