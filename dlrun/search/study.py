"""The trials of a sweep as an Optuna study in study.journal or a database: their values and their results (S5, S6).

`optuna-dashboard SWEEP/study.journal` opens it. A trial is recorded before it starts, so that a kill loses none.
Nothing imports torch.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlrun.errors import Surroundings
from dlrun.search.space import Axis
from dlrun.search.storage import Storage
from dlrun.vocabulary import Status

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial as Optunas
    from optuna.trial import TrialState

__all__ = ["Study", "Trial"]

TRIAL, FAILURES, REASON, ATTEMPTS = "trial", "failures", "reason", "attempts"


@dataclass
class Trial:
    """A trial: its number names its folder, `values` its axes; `closed` once its result is in the study.

    `failures` are its own, `attempts` all that did not end well, those for which a full disk is to blame as well.
    """

    number: int
    values: dict[str, Any]
    failures: int = 0
    reason: str = ""
    closed: bool = False
    seen: int = 0  # epochs reported
    attempts: int = 0


class Study:
    """The Optuna study of a sweep."""

    def __init__(self, storage: Storage, metric: str, minimise: bool, seed: int, prune: str, epochs: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners = {
            "none": optuna.pruners.NopPruner(),
            "median": optuna.pruners.MedianPruner(n_startup_trials=4),
            "hyperband": optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max(epochs, 2)),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls parts of itself experimental
            self._seed, self._optuna, self._storage = seed, optuna, storage
            self._study = optuna.create_study(
                storage=storage.open(),
                study_name=storage.name,
                direction="minimize" if minimise else "maximize",
                pruner=pruners[prune],
                load_if_exists=True,
            )
            if self._study.metric_names != [metric]:
                self._study.set_metric_names([metric])  # optuna-dashboard labels its axes with it
        self._ids: dict[int, int] = {}

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Raise Surroundings if the journal or the database cannot be written."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (OSError, self._optuna.exceptions.StorageInternalError) as error:
            why = getattr(error, "strerror", None) or self._storage.told(error)
            again = shlex.join(["dlrun", "resume", str(self._storage.folder)])
            raise Surroundings(f"{self._storage}: cannot write: {why}; `{again}` continues") from None

    def trials(self) -> list[Trial]:
        """Return the recorded trials by number; one that a kill left without a number is closed as failed."""
        found: dict[int, Trial] = {}
        states = self._optuna.trial.TrialState
        for one in self._study.get_trials(deepcopy=False):
            number = one.user_attrs.get(TRIAL)
            if number is None:
                if not one.state.is_finished():
                    self._study.tell(one.number, state=states.FAIL)
                continue
            self._ids[number] = one._trial_id
            attrs = {**one.system_attrs, **one.user_attrs}
            found[number] = Trial(
                number,
                dict(one.params),
                int(attrs.get(FAILURES, 0)),
                str(attrs.get(REASON, "")),
                one.state.is_finished(),
                max(one.intermediate_values, default=0),
                int(attrs.get(ATTEMPTS, attrs.get(FAILURES, 0))),
            )
        return [found[number] for number in sorted(found)]

    def add(self, number: int, values: dict[str, Any], axes: Sequence[Axis], failures: int = 0) -> Trial:
        """Record a trial."""
        made = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING,
            params=values,
            distributions={a.key: self._distribution(a) for a in axes},
            user_attrs={TRIAL: number, FAILURES: failures},
        )
        with self._recorded():  # not study.add_trial, after which all trials must be read to learn the id of this one
            storage, study = self._study._storage, self._study._study_id
            self._ids[number] = storage.create_new_trial(study, template_trial=made)
        return Trial(number, values, failures, attempts=failures)

    def ask(self, number: int, axes: Sequence[Axis]) -> Trial:
        """Let Optuna's TPE choose the values of a trial from the results so far, and record it (S5)."""
        with self._recorded():
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=(self._seed * 1_000_003 + number) % 2**32, constant_liar=True, multivariate=True
            )
            asked = self._study.ask({a.key: self._distribution(a) for a in axes})
            asked.set_user_attr(TRIAL, number)
        self._ids[number] = asked._trial_id
        return Trial(number, {a.key: asked.params[a.key] for a in axes})

    def _distribution(self, axis: Axis) -> BaseDistribution:
        from optuna import distributions

        if axis.words:
            return distributions.CategoricalDistribution(axis.choices)
        if axis.whole:
            return distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)

    def failed(self, trial: Trial, reason: str, failures: int) -> None:
        """Count a failure of a trial."""
        trial.failures, trial.reason, trial.attempts = failures, reason, trial.attempts + 1
        with self._recorded():
            one = self._trial(trial)
            one.set_user_attr(FAILURES, failures)
            one.set_user_attr(ATTEMPTS, trial.attempts)
            one.set_user_attr(REASON, reason)

    def report(self, trial: Trial, epoch: int, value: float) -> bool:
        """Record the value of an epoch; returns whether the pruner would stop the trial."""
        with self._recorded():
            one = self._trial(trial)
            one.report(value, epoch)
            trial.seen = epoch
            return bool(one.should_prune())

    def close(self, trial: Trial, status: str, value: float | None) -> None:
        """Record the end of a trial: its value if it came to its end with one.

        To Optuna, which knows fewer states, a diverged trial is pruned, and one without a value has failed.
        """
        states = self._optuna.trial.TrialState
        ended: dict[str, TrialState] = {Status.COMPLETED: states.COMPLETE, Status.PAUSED: states.COMPLETE}
        ended |= {Status.PRUNED: states.PRUNED, Status.DIVERGED: states.PRUNED}
        state = ended.get(status, states.FAIL)
        if state == states.COMPLETE and value is None:
            state = states.FAIL
        with self._recorded():
            self._study.tell(self._trial(trial), value if state == states.COMPLETE else None, state=state)
        trial.closed = True

    def _trial(self, trial: Trial) -> Optunas:
        return self._optuna.trial.Trial(self._study, self._ids[trial.number])
