"""What an epoch leaves behind: rows, layers, histograms, checkpoints, progress, warnings (`dlrun train`, B1, O8).

Written while the next epoch trains, in an order that makes a kill at any moment repeat an epoch and lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from dlrun.analysis import scores, verdicts
from dlrun.console import Screen
from dlrun.folders import reading
from dlrun.folders.run import Run
from dlrun.training import checkpoint, objective, pace, tasks
from dlrun.training.checkpoint import State
from dlrun.training.choosing import remember
from dlrun.training.diagnostics import Look
from dlrun.training.experiment import Experiment
from dlrun.training.loggers import Follower
from dlrun.vocabulary import AVERAGED, COLUMNS, FURTHER, LOGGED

__all__ = ["Recorder", "Unrecorded", "right"]

SPLITS = ("train", "val")


class Recorder:
    """Records the epochs of a run; leaving its `with` block waits until everything is written.

    `history` holds the rows of metrics.csv, those of an earlier process as text.
    """

    def __init__(self, exp: Experiment, run: Run, state: State, screen: Screen, follower: Follower | None) -> None:
        self.history: list[Mapping[str, Any]] = [*reading.metrics(run.path)]
        self._exp, self._run, self._state, self._screen, self._follower = exp, run, state, screen, follower
        self._config, self._data = exp.cfg.plain, exp.kept.data.record()
        columns = COLUMNS if exp.average is None else COLUMNS + AVERAGED
        columns += tuple(name for name in objective.columns(exp.objective) if name not in columns)
        columns += tasks.columns(exp.data.tasks)
        # a run that an older dlrun began keeps the columns of its file
        self._columns = tuple(filter(None, self.history[0])) if self.history else columns
        self._writer = checkpoint.Writer()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def record(self, row: Mapping[str, Any], look: Look, *, is_best: bool) -> None:
        """Begin to write an epoch, and show it. Raises what went wrong while the epoch before was written."""
        self.history.append(row)
        self._writer.wait()  # before the snapshot, so that no two are in memory
        self._writer.begin(self._writing(row, look, is_best))
        rights = {
            split: right(row.get(f"{split}_acc"), scores.images({"data": self._data}, split))
            for split in SPLITS
            if f"{split}_loss" in row
        }
        monitor = self._exp.cfg.trainer.monitor
        if monitor in FURTHER and row.get(monitor) is not None:
            score = f" {monitor.removeprefix('val_')} {row[monitor]:.4f}"
            rights["val"] = (rights["val"][0] + score, rights["val"][1] + score)
        self._screen.epoch(row, pace.planned(self._exp.cfg.trainer, self._state), is_best, rights)
        valid = self._exp.train_acc_valid
        self._screen.warn(verdicts.urgent(self.history, look.rows, self._config, self._data, valid))
        if self._follower is not None and self._follower.listens:
            self._writer.wait()  # a logger gets only epochs that no kill can undo
            self._follower.follow(self.history)

    def _writing(self, row: Mapping[str, Any], look: Look, is_best: bool) -> Callable[[], None]:
        """Return what writes the epoch, from copies of everything that the next one changes."""
        run, trainer = self._run, self._exp.cfg.trainer
        columns = {c: row.get(c) for c in self._columns}
        name, drop = remember(self._state, run, self.history, trainer)
        content = checkpoint.snapshot(self._exp, self._state)
        best = is_best and trainer.keep != "last"
        progress = _progress(self._state, row) | objective.record(self._exp.objective)

        def write() -> None:
            # the checkpoint follows the rows that belong to it, and result.json names the epoch only after both
            run.append_layers(look.rows)
            run.add_histograms(row["epoch"], look.histograms)
            run.append_metrics(columns)
            checkpoint.write(run, content, is_best=best, name=name, drop=drop)
            run.progress(**progress)

        return write


class Unrecorded:
    """What takes the place of a Recorder in all processes but the first."""

    def __init__(self) -> None:
        self.history: list[Mapping[str, Any]] = []

    def __enter__(self) -> Unrecorded:
        return self

    def __exit__(self, *_: object) -> None: ...

    def record(self, row: Mapping[str, Any], look: Look, *, is_best: bool) -> None:
        """Leave it to the first process."""


def right(accuracy: float | None, images: int) -> tuple[str, str]:
    """Return an accuracy with how many of few images are right, and the same in fewer letters; - for none (M10)."""
    if accuracy is None:
        return "-", "-"
    few = 0 < images < scores.FEW
    return scores.share(accuracy, images), f"{round(accuracy * images)}/{images}" if few else f"{accuracy:.4f}"


def _progress(state: State, row: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of result.json that change while the run trains."""
    best = state.best or {}
    return {
        "epochs": state.epoch,
        "best_epoch": int(best.get("epoch", 0)),
        **{column: row[column] for column in LOGGED if column in row},
        "seconds": round(state.seconds, 3),
    }
