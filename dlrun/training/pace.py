"""Where a run is in its schedule, and how many epochs are left: by number, or by time (`trainer.hours=2`, O3).

With trainer.hours the schedule of trainer.epochs epochs is stretched or compressed, so that it ends with the time.
After a twentieth of the first epoch, and after each epoch, the epochs that still fit are counted anew, from the mean
time of those before, and the rest of the schedule is divided among them. The final test is part of the time. The plan
is part of the checkpoint: only measured times decide, and a resumed run continues it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dlrun.config.settings import Trainer
from dlrun.training.checkpoint import State

__all__ = ["at", "begin", "end_epoch", "epochs", "finished", "measure", "planned"]

MEASURED = 3  # steps, at least: the first one is slower


def begin(trainer: Trainer, state: State, before: float = 0.0) -> None:
    """Plan a new run; `before` are the seconds that passed until its first epoch, which count as well."""
    if trainer.hours and not state.epoch:
        state.before, state.left = before, trainer.epochs  # until the first epoch is measured


def epochs(trainer: Trainer, state: State) -> Iterator[int]:
    """Yield the number of the next epoch until this process has no more; the state advances in between."""
    while not finished(trainer, state) and not (trainer.stop_after and state.epoch >= trainer.stop_after):
        yield state.epoch + 1


def finished(trainer: Trainer, state: State) -> bool:
    """Whether all epochs are done."""
    return state.epoch >= planned(trainer, state)


def planned(trainer: Trainer, state: State) -> int:
    """Return the number of the last epoch, as far as it is known now."""
    return state.epoch + state.left if trainer.hours else trainer.epochs


def at(trainer: Trainer, state: State, done: float) -> float:
    """Return the place in the schedule, in epochs, when a share `done` of the epoch after state.epoch is over."""
    if not trainer.hours:
        return state.epoch + done
    return state.position + (trainer.epochs - state.position) / max(1, state.left) * done


def measure(trainer: Trainer, state: State, step: int, steps: int, clock: Callable[[], float]) -> str:
    """Plan a new run by a twentieth of its first epoch; `clock` gives the seconds that these steps took.

    Returns a line for the screen if not even this epoch fits into the time, else nothing.
    """
    if not trainer.hours or state.epoch or step != max(MEASURED, steps // 20):
        return ""
    seconds, needed = trainer.hours * 3600 - state.before, clock() / step * steps
    state.left = max(1, int(seconds / needed))
    if needed <= seconds:
        return ""
    left = f"{max(0.0, seconds):.0f} s are left of trainer.hours={trainer.hours:g}"
    return f"an epoch takes about {needed:.0f} s, and {left}: there will be one; try a smaller dataset.limit"


def end_epoch(trainer: Trainer, state: State, test: float = 0.0) -> None:
    """Plan what is left, after state.epoch and state.seconds advanced; `test` are the seconds of the final test.

    The last planned epoch is the last. As long as time is left there is one more epoch, in which the schedule ends.
    """
    if not trainer.hours:
        return
    state.position = at(trainer, state, 1.0)
    seconds = trainer.hours * 3600 - state.before - state.seconds - test
    fitting = max(1, int(seconds / (state.seconds / state.epoch))) if seconds > 0 else 0
    state.left = fitting if state.left > 1 else 0
