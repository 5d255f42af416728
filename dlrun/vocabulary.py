"""Words that every part of dlrun shares, each written down once: statuses, exit codes, score columns, directions."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["AVERAGED", "COLUMNS", "DONE", "FAILED", "FORMAT", "FURTHER", "LABELLED", "LOGGED", "MEASURES", "NOT_RANKED"]
__all__ += ["NUMBERS", "PER_EPOCH", "RESULTS", "SCORES"]
__all__ += ["Exit", "Number", "Outcome", "Status"]
__all__ += [
    "array_slot",
    "is_accuracy",
    "is_loss",
    "lower_is_better",
    "minimised",
    "place",
    "reads_labels",
    "tars_of",
    "worst",
]


# `version` of result.json, sweep.yaml, ensemble.yaml and checkpoints; files without one are older and read the same
FORMAT = 1


class _Word(str, Enum):
    """Words that files and tables hold: as text, a member is its value."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


class Status(_Word):
    """The status of a run in result.json and in every table."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DIVERGED = "diverged"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    CHECK_FAILED = "check_failed"
    UNREADABLE = "unreadable"  # in tables alone: a newer dlrun wrote the folder


class Outcome(_Word):
    """The status of a check in checks.csv; the worst one of a run is in its result.json."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Exit(IntEnum):
    """What a command returns to the shell."""

    FINE = 0
    FAILED = 1  # an error that is not the user's; the log has the traceback
    USAGE = 2  # a wrong command or config
    CHECK_FAILED = 3
    DIVERGED = 4
    SOME_FAILED = 5  # trials of a sweep
    SURROUNDINGS = (
        75  # of a trial to its sweep, never to the shell: a full disk, permissions; EX_TEMPFAIL of sysexits.h
    )
    INTERRUPTED = 130


# trials that ended with something to show, and those without
DONE = (Status.COMPLETED, Status.DIVERGED, Status.PRUNED)
FAILED = (Status.FAILED, Status.CHECK_FAILED)
# sorted below all others, whatever they scored
NOT_RANKED = (Status.FAILED, Status.DIVERGED, Status.PRUNED, Status.CHECK_FAILED)


class Number(NamedTuple):
    """A number of result.json that every table shows.

    One way of a `score` is better (`lower_is_better`), so its best value is marked. `over_seeds` is what
    `dlrun compare --group-seeds` shows of it: mean ± std, the mean alone, or nothing. `digits` follow the point.
    """

    name: str
    score: bool = False
    over_seeds: Literal["spread", "mean", "nothing"] = "spread"
    digits: int = 4


# a column of `dlrun compare`, of its CSV, JSON and LaTeX, and of a sweep's page is added here and nowhere else
RESULTS = (
    Number("epochs", over_seeds="nothing"),
    Number("best_epoch", over_seeds="nothing"),
    Number("val_acc", score=True),
    Number("val_loss", score=True),
    Number("test_acc", score=True),
    Number("test_loss", score=True),
    Number("sparsity", over_seeds="mean"),  # share of the weights near 0, of a run with L1 or a pruned one (R4)
    Number("seconds", over_seeds="mean", digits=1),
)
NUMBERS = tuple(number.name for number in RESULTS)
SCORES = tuple(number.name for number in RESULTS if number.score)
# scores beside loss and accuracy (dlrun/analysis/classification.py): the first three are computed in every epoch, all
# at the end of a run; tables show those that somebody monitors or asks for
PER_EPOCH = ("balanced_acc", "macro_f1", "kappa")
MEASURES = (*PER_EPOCH, "weighted_f1", "macro_precision", "macro_recall", "mcc", "top5_acc", "auc", "ece")
LOGGED = ("val_loss", "val_acc", *(f"val_{name}" for name in PER_EPOCH))
FURTHER = tuple(f"{split}_{name}" for split in ("val", "test") for name in MEASURES)
# of metrics.csv
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "penalty", "grad_norm"),
    *("update_ratio", "dead_fraction"),
    *("train_seconds", "eval_seconds", "samples_per_second", "memory_mb"),
    *(f"val_{name}" for name in PER_EPOCH),
    "train_eval_acc",  # of a fixed part of the training images, without augmentation, in evaluation mode
    "nonlinear",  # share of a change of the logits that no affine map of the images explains; 0: layers act as one
)
# with trainer.ema: the scores of the averaged weights
AVERAGED = tuple(f"ema_{column}" for column in LOGGED)
# with images without labels: the share of them that got a label, and of these labels the share that is right, if known
LABELLED = ("accepted", "accepted_precision")
# endings of columns of which a higher value is better
HIGHER = ("_acc", "_f1", "_precision", "_recall", "_kappa", "_mcc", "_auc", "_map", "_per_second")
# by what names files of arrays call images, labels and splits: Keras x_train, MedMNIST train_images, scikit-learn data
_ARRAYS = {
    "x": ("x", "image", "images", "img", "imgs", "picture", "pictures", "photos", "pixels", "data", "input", "inputs"),
    "y": ("y", "label", "labels", "lbl", "target", "targets", "class", "cls"),
}
_SPLITS = {
    "train": ("train", "training", "tr", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "te", "tst", "eval", "evaluation"),
}


def reads_labels(config: Mapping[str, Any]) -> bool:
    """Whether the run of a config learns from labels: not with an objective such as simclr (M10)."""
    node = config.get("objective")
    target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
    return not target.startswith("dlrun.objectives.pretext.")


def worst(outcomes: Iterable[Any]) -> str:
    """Return the worst outcome of some checks: fail, warn or pass; "" if there is none of these."""
    found = set(outcomes)
    return next((one.value for one in (Outcome.FAIL, Outcome.WARN, Outcome.PASS) if one in found), "")


def is_loss(column: str) -> bool:
    """Whether a column holds a loss."""
    return column.endswith("loss")


def is_accuracy(column: str) -> bool:
    """Whether a column holds a share of images classified correctly, 0 to 1: not a mean over classes."""
    return column.endswith("_acc") and not column.endswith("_balanced_acc")


def lower_is_better(column: str) -> bool:
    """Whether a lower value of a column is better: not of accuracies, other shares right and speeds, else yes."""
    return not column.endswith(HIGHER)


def minimised(column: str, direction: str) -> bool:
    """Whether the lowest value of a column is the best: `auto` follows the column, `min` and `max` decide."""
    return lower_is_better(column) if direction == "auto" else direction == "min"


def place(value: Any, val_loss: Any, number: Any, *, lower: bool) -> tuple[bool, float, float, Any]:
    """Return the sort key of an epoch, a trial, a setting or a member, best first: the only rule of what is best.

    By score; among equal scores, which are common on small folds, by the lower val_loss; then by `number`: the earlier
    epoch, the lower trial, the first member. A score that is missing or not finite comes last.
    """
    if not _finite(value):
        return (True, math.inf, math.inf, number)
    score = float(value) if lower else -float(value)
    return (False, score, float(val_loss) if _finite(val_loss) else math.inf, number)


def array_slot(name: str) -> str:
    """Return what an array is by its name: x or y, with _val or _test if it is of that split; "" if it is neither.

    In any case and order: x_train, trainImages, Y, labels, test_targets, XVal.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W_]+", name)]
    if len(words) == 1:  # xtrain, testlabels
        pairs = [(kind, split) for kinds in _ARRAYS.values() for kind in kinds for split in sum(_SPLITS.values(), ())]
        words = next(([k, s] for k, s in pairs if words[0] in (k + s, s + k)), words)
    found = [next((slot for slot, names in [*_ARRAYS.items(), *_SPLITS.items()] if w in names), "?") for w in words]
    kinds, splits = [f for f in found if f in _ARRAYS], [f for f in found if f in _SPLITS]
    if len(kinds) != 1 or len(splits) > 1 or "?" in found:
        return ""
    return kinds[0] + {"val": "_val", "test": "_test"}.get("".join(splits), "")


TARS = 1_000_000  # that one name with braces may stand for


def tars_of(names: str | Sequence[str]) -> list[Path]:
    """Return the tar files of names: `{000..099}` is expanded as webdataset does, `*` as a shell does.

    Raises ValueError that says it, for a file that is not there or is named twice, and an address: nothing
    is fetched.
    """
    from braceexpand import braceexpand  # which webdataset brings

    found: list[Path] = []
    for name in names if isinstance(names, Sequence) and not isinstance(names, str) else [names]:
        if not isinstance(name, str):
            raise ValueError("expected a name, such as 'train-{000..099}.tar', or a list of names")
        if re.match(r"[A-Za-z][\w+.-]+:", name):  # webdataset runs the command behind pipe:
            raise ValueError(f"{name} is an address; expected files of this machine: download them first")
        # they are made at once
        if math.prod(abs(int(b) - int(a)) + 1 for a, b in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", name)) > TARS:
            raise ValueError(f"{name} stands for more than {TARS:,} files")
        try:
            paths = [Path(os.path.expanduser(one)) for one in braceexpand(name)]
        except ValueError:
            raise ValueError(f"{name}: unbalanced braces; expected such as 'train-{{000..099}}.tar'") from None
        for path in paths:
            exists = os.path.exists(path) or "*" not in path.name
            found += [path] if exists else map(Path, sorted(glob.glob(str(path))))
    missing = [path for path in found if not os.path.exists(path)]
    if missing or not found:
        first = missing[0] if missing else names
        what = f"{len(missing):,} of {len(found):,} files are missing, such as {first}" if missing else "no such file"
        raise ValueError(f"{what}; copy them here, or name those that are there")
    seen = set[str]()
    for path in found:
        if (place := os.path.abspath(path)) in seen:
            raise ValueError(f"names {path} twice; name it once")
        seen.add(place)
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
