"""Verdicts on what the run has fitted: overfitting, gap, capacity, too few epochs, classes of unequal size (B2, D6)."""

from __future__ import annotations

from dlrun.analysis.evidence import Evidence, end
from dlrun.analysis.finding import Finding
from dlrun.analysis.learning import TINY
from dlrun.analysis.remedies import larger, more_regularisation
from dlrun.vocabulary import is_accuracy, is_loss, lower_is_better

__all__ = ["capacity", "gap", "imbalance", "overfitting", "unfinished"]

IMBALANCE = 1.5  # largest : smallest class (D6)
# the essays give no number for these; each separates healthy runs on digits and CIFAR images from broken ones
GAP, LOW = 0.10, 0.80  # train accuracy minus validation accuracy; train accuracy that is low (B2)
WORSE = 1.25  # validation loss over its lowest: overfitting (O8)
GAIN = 0.01  # accuracy won in the last third of a run whose best epoch is the last (O9)
ANNEALED_GAIN = 0.05  # the same if the schedule has ended, which wins some by itself
CLOSED, ANNEALED_CLOSED = 0.02, 0.05  # of the first train loss: val_loss - train_loss still shrinks (O9)


def overfitting(run: Evidence) -> Finding | None:
    """O8: validation gets worse while training still improves."""
    if len(run.val_loss) < 5:
        return None
    low, last = min(run.val_loss), end(run.val_loss)
    best = run.val_loss.index(low)
    improves = run.loss[-1] < run.loss[best] and best <= 0.7 * len(run.val_loss)
    if last < WORSE * low or last - low < 0.05 or not improves:
        return None
    fix = f"trainer.epochs={run.epochs[best]}"
    if run.key("trainer.patience") is not None:
        fix = f"trainer.patience={max(3, len(run.epochs) // 10)}"
    sentence = (
        f"overfitting: the validation loss was {low:.3g} in epoch {run.epochs[best]} and is {last:.3g} now, "
        "while the train loss still falls"
    )
    return Finding("overfitting", "warn", sentence, last / max(low, TINY), fix)


def gap(run: Evidence) -> Finding | None:
    """B2: train accuracy far above validation accuracy needs more regularisation."""
    if not run.acc or (gap := end(run.acc) - end(run.val_acc)) < GAP + run.val_error:
        return None
    sentence = f"gap: train accuracy {end(run.acc):.3f}, validation accuracy {end(run.val_acc):.3f}"
    return Finding("gap", "warn", sentence, gap, more_regularisation(run))


def capacity(run: Evidence) -> Finding | None:
    """B2: no gap at a low accuracy: the model is too small for the data."""
    if len(run.acc) < 5 or end(run.acc) >= LOW or end(run.acc) - end(run.val_acc) > GAP / 2 + run.val_error:
        return None
    fell = 1 - run.loss[-1] / run.loss[len(run.loss) * 2 // 3 - 1]
    if fell > 0.1 and not run.annealed:
        return None  # still learning
    sentence = (
        f"capacity: train accuracy stops at {end(run.acc):.3f} and validation accuracy at {end(run.val_acc):.3f}, "
        "without a gap"
    )
    fix = "regularizer=none" if run.regularised else larger(run)
    return Finding("capacity", "warn", sentence, end(run.acc), fix)


def unfinished(run: Evidence) -> Finding | None:
    """O9: the last epoch is the best, and not only because the schedule ended; or the gap still shrinks."""
    planned = run.key("trainer.epochs")
    if len(run.monitored) < 2 or run.epochs[-1] != planned or not (is_accuracy(run.monitor) or is_loss(run.monitor)):
        return None
    lower = lower_is_better(run.monitor)
    scores = [-v if lower else v for v in run.monitored]
    before = scores[len(scores) * 2 // 3 - 1]
    gain = (scores[-1] - before) / (abs(before) if lower else 1)  # of a loss, the share that it fell
    needed = (ANNEALED_GAIN if run.annealed else GAIN) + (0 if lower else run.val_error)
    wide, narrow, closed = run.gap_closed
    if scores[-1] >= max(scores) and gain >= needed:
        what = f"the last epoch is the best: {run.monitor} went from {abs(before):.3f} to {run.monitored[-1]:.3f}"
    elif narrow > 0 and closed >= (ANNEALED_CLOSED if run.annealed else CLOSED):
        gain, what = closed, f"val_loss - train_loss still shrinks: from {wide:.3f} to {narrow:.3f}"
    else:
        return None
    fix = f"trainer.epochs={2 * int(planned)}"
    return Finding("unfinished", "warn", f"unfinished: {what} in the last third", gain, fix)


def imbalance(run: Evidence) -> Finding | None:
    """D6: one class has many more images than another."""
    counts = run.counts
    if not counts or max(counts) <= IMBALANCE * min(counts):
        return None
    names = run.data.get("classes") or [str(k) for k in range(len(counts))]
    most, least = counts.index(max(counts)), counts.index(min(counts))
    ratio = max(counts) / max(min(counts), 1)
    sentence = (
        f"imbalance: {names[most]} has {counts[most]} training images and {names[least]} {counts[least]}, "
        f"{ratio:.1f} times as many"
    )
    return Finding("imbalance", "warn", sentence, ratio, "model.output_bias=frequency")
