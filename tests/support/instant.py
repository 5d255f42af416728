"""A launcher whose trials end at once with a score that follows from their config: sweeps without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.search.launchers import choose
from dlrun.search.launchers.job import Job
from dlrun.search.launchers.protocol import Ended
from support.stored import result, write, write_run

Score = Callable[[dict[str, Any]], float]


class Instant:
    """One trial at a time; `jobs` are those that were run. The training score is a little better than `score`."""

    slots = threads = 1

    def __init__(self, score: Score) -> None:
        self.score, self.jobs, self._ended = score, list[Job](), list[Ended]()

    def submit(self, job: Job) -> None:
        acc = min(max(self.score(job.config), 0.0), 1.0)
        about = {"data": {"val": 1000, "classes": list("abc")}, "seconds": 2.0, "tested_epoch": 2}
        ending = {**result(job.config, acc, epochs=2, seed=job.config["seed"], parameters=1234), **about}
        path = write_run(Path(job.folder), **ending)
        lines = [f"{e},{2 - acc * e},{acc * e / 2 + 0.005},{2 - acc * e},{acc * e / 2},1.5" for e in (1, 2)]
        head = "epoch,train_loss,train_acc,val_loss,val_acc,train_seconds"
        write(path / "metrics.csv", "\n".join([head, *lines]) + "\n")
        self.jobs.append(job)
        self._ended.append(Ended(job.number, 0))

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def waiting(self) -> str:
        return ""

    def close(self) -> None:
        pass


def instantly(monkeypatch: pytest.MonkeyPatch, score: Score) -> Instant:
    """Let the sweeps of this test end at once."""
    made = Instant(score)
    monkeypatch.setattr(choose, "launcher", lambda *_: made)
    return made
