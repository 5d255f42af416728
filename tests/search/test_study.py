"""How the end of a trial is recorded in the Optuna study of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrun.search.space import Axis
from dlrun.search.storage import Storage
from dlrun.search.study import Study
from dlrun.vocabulary import Status

LR = Axis("optimizer.lr", low=1e-4, high=1.0, log=True)
ENDS = [
    (Status.COMPLETED, 0.5, "COMPLETE"),
    (Status.PAUSED, 0.5, "COMPLETE"),  # not selected for the next stage
    (Status.COMPLETED, None, "FAIL"),  # its metric is missing or not finite
    (Status.PRUNED, 0.5, "PRUNED"),
    (Status.DIVERGED, None, "PRUNED"),
    (Status.FAILED, None, "FAIL"),
    (Status.CHECK_FAILED, None, "FAIL"),
    ("unheard of", 0.5, "FAIL"),
]


def opened(folder: Path) -> Study:
    """The study of a sweep in a folder."""
    return Study(Storage(folder), "val_acc", False, 0, "none", 3)


@pytest.mark.parametrize(("status", "value", "state"), ENDS)
def test_every_status_has_a_state_of_optuna(tmp_path: Path, status: str, value: float | None, state: str) -> None:
    study = opened(tmp_path)
    study.close(study.add(7, {"optimizer.lr": 0.1}, [LR]), status, value)
    again = opened(tmp_path)
    (trial,) = again.trials()
    assert (trial.number, trial.values, trial.closed) == (7, {"optimizer.lr": 0.1}, True)
    (one,) = again._study.get_trials()
    assert (one.state.name, one.value) == (state, value if state == "COMPLETE" else None)
