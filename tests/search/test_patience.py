"""How often a trial may lose its process or its node, and how long it may be silent."""

from __future__ import annotations

import pytest

from dlrun.search import patience
from dlrun.search.launchers.protocol import Ended
from dlrun.search.patience import ATTEMPTS, Patience
from dlrun.search.study import Trial
from dlrun.vocabulary import Exit


@pytest.mark.parametrize(
    "ended", [Ended(0, Exit.INTERRUPTED), Ended(0, Exit.FAILED, lost=True)], ids=["preempted", "lost"]
)
def test_a_trial_that_gets_further_each_time_is_never_given_up(ended: Ended) -> None:
    assert ended.outside
    patient, trial = Patience(), Trial(0, {})
    for epoch in range(1, 20):
        trial.seen = epoch
        assert patient.surrounded(ended, trial, 0) == (0, False)
    counts = [patient.surrounded(ended, trial, 0)[0] for _ in range(ATTEMPTS)]
    assert counts == [0] * (ATTEMPTS - 2) + [1, 1]  # no retry is left: search.retries=0


def test_only_a_holder_that_renewed_and_then_stopped_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    patient = Patience()

    def silent(word: str, renewed: float, limit: float = 60.0) -> bool:
        return patient.silent(0, (word, renewed), "before", limit)

    for second in range(0, 300, 4):  # it waits in a queue, then works
        now[0] = float(second)
        assert not silent("before" if second < 100 else "mine", 5.0 if second < 100 else 1000.0 + second)
    now[0] += 59
    assert not silent("mine", 1296.0)
    now[0] += 2
    assert silent("mine", 1296.0)
    assert not silent("mine", 1296.0, limit=0.0)  # its launcher notices
    assert not silent("", 1296.0)  # released: it waits to be queued again
    assert not silent("next", 1296.0)  # another process has it, from now on
    now[0] += 61
    assert silent("next", 1296.0)
