"""A schedule that ends with the time: exact plans from exact times, and a run that is killed (trainer.hours)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlrun.config.settings import Trainer
from dlrun.run import execute
from dlrun.training import loop, pace
from dlrun.training.checkpoint import State
from support.commands import TINY, Outcome
from support.tensors import tensors


def walked(
    trainer: Trainer, seconds: Callable[[int], float], before: float = 0.0, test: float = 0.0
) -> tuple[State, list[float]]:
    """The state at the end, and the place in the schedule after each epoch."""
    state, places = State(), []
    pace.begin(trainer, state, before)
    for epoch in pace.epochs(trainer, state):
        places.append(pace.at(trainer, state, 1.0))
        state.epoch, state.seconds = epoch, state.seconds + seconds(epoch)
        pace.end_epoch(trainer, state, test)
    return state, places


def test_without_hours_epochs_count() -> None:
    trainer = Trainer(epochs=4)
    state, places = walked(trainer, lambda epoch: 1.0)
    assert (state.epoch, places, pace.planned(trainer, State(epoch=2))) == (4, [1, 2, 3, 4], 4)
    assert pace.at(trainer, State(epoch=2), 0.25) == 2.25
    assert pace.at(Trainer(epochs=3), State(epoch=1), 1 / 3) == 1 + 1 / 3
    assert walked(Trainer(epochs=4, stop_after=3), lambda epoch: 1.0)[0].epoch == 3


@pytest.mark.parametrize(
    ("epochs", "seconds", "before", "expected"),
    [(30, 10.0, 0.0, 12), (30, 10.0, 35.0, 8), (5, 10.0, 0.0, 12), (30, 2.0, 0.0, 60), (30, 150.0, 0.0, 1)],
)
def test_the_schedule_ends_with_the_time(epochs: int, seconds: float, before: float, expected: int) -> None:
    trainer = Trainer(epochs=epochs, hours=120 / 3600)
    state, places = walked(trainer, lambda epoch: seconds, before)
    assert state.epoch == expected
    if expected > 1:
        assert places[-1] == pytest.approx(epochs)
    steps = [b - a for a, b in zip([0.0, *places], places, strict=False)]
    assert min(steps) > 0
    assert steps[1:] == pytest.approx([(epochs - steps[0]) / max(1, expected - 1)] * (expected - 1))
    assert pace.finished(trainer, state)


def test_the_final_test_is_part_of_the_time() -> None:
    trainer = Trainer(epochs=30, hours=120 / 3600)
    assert walked(trainer, lambda epoch: 10.0, 20.0, test=25.0)[0].epoch == 7  # of the 75 seconds that are left
    # an image takes 0.1 s; with an average and mirrored views there are five passes over the 12 + 100 images
    for kind, average, seconds in (("none", None, 0.1 * 112), ("mirror", 1, 0.1 * 5 * 112)):
        held, val = [0] * 100, [0] * 12
        data = SimpleNamespace(audited=None, held=held, val=val)
        cfg = SimpleNamespace(trainer=Trainer(multi_crop=kind))
        exp: Any = SimpleNamespace(kept=SimpleNamespace(data=data), cfg=cfg, average=average)
        found = loop._test_seconds(exp, 40, 0.1 * (40 + (12 if average is None else 24)))
        assert found == pytest.approx(seconds)


def test_the_first_steps_decide_how_much_of_the_schedule_the_first_epoch_takes() -> None:
    trainer, state = Trainer(epochs=30, hours=100 / 3600), State()
    pace.begin(trainer, state, before=10.0)
    asked = []

    def clock() -> float:
        asked.append(1)
        return 4.0

    for step in range(100):
        pace.measure(trainer, state, step, 100, clock)
        assert state.left == (30 if step < 5 else 1)  # 5 of 100 steps took 4 of the 90 seconds
    assert pace.at(trainer, state, 1.0) == 30
    assert len(asked) == 1
    for hours, late in ((100, False), (85, True)):  # 80 seconds an epoch, 10 of the time are over
        state = State()
        pace.begin(Trainer(hours=hours / 3600), state, before=10.0)
        assert ("dataset.limit" in pace.measure(Trainer(hours=hours / 3600), state, 5, 100, lambda: 4.0)) is late
        assert state.left == 1
    pace.measure(Trainer(), State(), 5, 100, clock)
    pace.measure(trainer, State(epoch=1), 5, 100, clock)
    assert len(asked) == 1


def test_a_machine_that_slows_down_shortens_the_rest() -> None:
    trainer = Trainer(epochs=10, hours=100 / 3600)
    state, places = walked(trainer, lambda epoch: 5.0 if epoch < 8 else 20.0)
    assert places[-1] == pytest.approx(10)
    assert sorted(places) == places
    assert 80 <= state.seconds <= 120  # within one epoch


def test_a_killed_run_follows_the_recorded_plan(dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            Clock.now += 1.0
            return Clock.now

    begin, passed = pace.begin, list[float]()
    monkeypatch.setattr(loop, "time", Clock())

    def begun(trainer: Trainer, state: State, before: float) -> None:
        passed.append(before)
        begin(trainer, state, 2.0)

    monkeypatch.setattr(pace, "begin", begun)
    words = [w for w in TINY if not w.startswith("trainer.epochs")]
    words += ["trainer.hours=0.012", "trainer.epochs=9", "trainer.diagnostics=false", "trainer.ema=0.9"]
    assert dlrun("train", *words, "run.dir=whole").code == 0
    done: dict[str, Any] = json.loads(Path("whole/result.json").read_text())
    whole = torch.load("whole/checkpoints/last.pt", weights_only=True)
    assert 2 < done["epochs"] < 9
    assert done["reason"].startswith("trainer.hours")
    assert min(passed) > execute.OUTSIDE  # and what it took to read the data
    # every epoch ends with a score of validation; the third is interrupted there
    scores, calls = loop.scores, []

    def killed(*given: Any) -> dict[str, Any]:
        calls.append(given[-1])
        if len(calls) == 7:
            raise KeyboardInterrupt
        return scores(*given)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "scores", killed)
        assert dlrun("train", *words, "run.dir=cut").code == 130
    cut = torch.load("cut/checkpoints/last.pt", weights_only=True)
    assert cut["epoch"] == 2
    assert 0 < cut["pace"]["position"] < 9
    assert asdict(State(2, 0, None, 0.0, **cut["pace"]))["left"] == cut["pace"]["left"] > 0
    assert dlrun("resume", "cut").code == 0
    again = torch.load("cut/checkpoints/last.pt", weights_only=True)
    assert again["epoch"] == whole["epoch"]
    assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(whole), strict=True))
