"""Words that every part of dlrun shares, each written down once: statuses, exit codes, score columns, directions."""

from __future__ import annotations

from enum import Enum, IntEnum

__all__ = ["AVERAGED", "COLUMNS", "DONE", "FAILED", "FORMAT", "NOT_RANKED", "NUMBERS", "SCORES", "Exit", "Status"]
__all__ += ["lower_is_better", "minimised"]


FORMAT = 1  # of everything stored in a run, a sweep or an ensemble; what says nothing is of before, and reads the same


class Status(str, Enum):
    """How a run stands, as result.json and every table write it."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DIVERGED = "diverged"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    CHECK_FAILED = "check_failed"

    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


class Exit(IntEnum):
    """What a command returns to the shell."""

    FINE = 0
    FAILED = 1  # an error that is not the user's; the log has the traceback
    USAGE = 2  # a wrong command or config
    CHECK_FAILED = 3
    DIVERGED = 4
    SOME_FAILED = 5  # trials of a sweep
    INTERRUPTED = 130


# a trial of these has ended and has something to show; of those there is nothing
DONE = (Status.COMPLETED, Status.DIVERGED, Status.PRUNED)
FAILED = (Status.FAILED, Status.CHECK_FAILED)
# whatever these scored, they stand below the rest
NOT_RANKED = (Status.FAILED, Status.DIVERGED, Status.PRUNED, Status.CHECK_FAILED)

SCORES = ("val_acc", "val_loss", "test_acc", "test_loss")
NUMBERS = ("epochs", "best_epoch", *SCORES, "seconds")
# of metrics.csv
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "penalty", "grad_norm"),
    *("update_ratio", "dead_fraction"),
    *("train_seconds", "eval_seconds", "samples_per_second", "memory_mb"),
)
AVERAGED = ("ema_val_loss", "ema_val_acc")  # with trainer.ema: the same of the averaged weights


def lower_is_better(column: str) -> bool:
    """Say which way a column of metrics.csv should go: up for accuracies and speed, down for anything else."""
    return not column.endswith(("_acc", "_per_second"))


def minimised(column: str, direction: str) -> bool:
    """Say whether the lowest value of a column is the best: `auto` looks at the column, `min` and `max` say it."""
    return lower_is_better(column) if direction == "auto" else direction == "min"
