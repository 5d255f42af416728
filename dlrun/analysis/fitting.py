"""Verdicts on what the run has fitted: overfitting, gap, capacity, too few epochs, classes of unequal size, its own
errors (B2, D6, D8).
"""

from __future__ import annotations

import math

from dlrun.analysis.evidence import STEADY, TINY, Evidence, digit, end
from dlrun.analysis.finding import Finding
from dlrun.analysis.remedies import larger, longer, more_regularisation, smaller_batch
from dlrun.vocabulary import is_accuracy, is_loss, lower_is_better

__all__ = ["capacity", "confirmation", "gap", "imbalance", "lost", "overfitting", "sparse", "unfinished"]

IMBALANCE = 1.5  # largest : smallest class (D6)
# the essays give no number for these; each separates healthy runs on digits and CIFAR images from broken ones
GAP, LOW = 0.10, 0.80  # train accuracy minus validation accuracy; train accuracy that is low (B2)
WORSE = 1.25  # validation loss over its lowest: overfitting (O8)
GAIN = 0.01  # accuracy won in the last third of a run whose best epoch is the last (O9)
HALFWAY = 0.5  # of the way from chance to no error on training images: beyond, an ended schedule has had its time
ANNEALED_GAIN = 0.05  # the same if the schedule has ended, which wins some by itself
CLOSED, ANNEALED_CLOSED = 0.02, 0.05  # of the first train loss: val_loss - train_loss still shrinks (O9)
GROWN = 0.05  # of the images without labels, that got one since validation was best (D8)
SURE = 0.99  # threshold above which few images that are right would get a label
DENSE, SPARSE = 0.01, 0.50  # of the weights near 0 with L1: it selects none; most could be left out (R4)
FALLS = 0.10  # of a loss, in the last third of the way: still falling, less is levelled off (O9, B2)


def confirmation(run: Evidence) -> Finding | None:
    """D8: validation gets worse, beyond noise, while more images without labels get one: the model learns its errors.

    Arazo et al. 2020, Pseudo-Labeling and Confirmation Bias in Deep Semi-Supervised Learning.
    """
    if len(run.val_acc) < 5 or not all(map(math.isfinite, run.accepted)):
        return None
    top, ending = max(run.val_acc), end(run.val_acc)
    best = run.val_acc.index(top)
    grown = end(run.accepted) - run.accepted[best]
    if top - ending < max(GAP / 2, 3 * run.val_error) or best > 0.7 * len(run.val_acc) or grown < GROWN:
        return None
    sentence = (
        f"confirmation: validation accuracy fell from {top:.3f} in epoch {run.epochs[best]} to {ending:.3f}, while "
        f"{grown:.0%} more of the unlabelled images got a label: the model learns its own errors"
    )
    threshold = float(run.key("objective.threshold", SURE))
    higher = f"objective.threshold={1 - (1 - threshold) / 5:.3g}"
    fix = higher if threshold < SURE else f"objective.weight={digit(float(run.key('objective.weight', 1.0)) / 3)}"
    return Finding("confirmation", "warn", sentence, top - ending, fix)


def overfitting(run: Evidence) -> Finding | None:
    """O8: validation gets worse while training still improves: its loss by a quarter, or its accuracy beyond noise."""
    if len(run.val_loss) < 5:
        return None
    low, last = min(run.val_loss), end(run.val_loss)
    best = run.val_loss.index(low)
    if last >= max(WORSE * low, low + 0.05) and _improves_after(run, best):
        what, found = f"validation loss was {low:.3g}", f"{last:.3g}"
        number = last / max(low, TINY)
    else:
        top, ending = max(run.val_acc), end(run.val_acc)
        best = run.val_acc.index(top)
        if top - ending < max(GAP / 2, 3 * run.val_error) or not _improves_after(run, best):
            return None
        what, found, number = f"validation accuracy was {top:.3f}", f"{ending:.3f}", top - ending
    sentence = f"overfitting: the {what} in epoch {run.epochs[best]} and is {found} now, though the train loss fell"
    return Finding("overfitting", "warn", sentence, number, more_regularisation(run, memorised=True))


def sparse(run: Evidence, share: float | None) -> Finding | None:
    """R4: L1 that leaves almost no weight near 0 selects none; one that leaves most of them there has made room."""
    strength = float(run.key("regularizer.l1", 0.0))
    if share is None or not strength or DENSE <= share < SPARSE:
        return None
    sentence = f"sparsity: {share:.1%} of the weights are near 0 with regularizer.l1={strength:g}"
    if share < DENSE:
        fix = f"regularizer.l1={10 * strength:.3g}"
        return Finding("sparsity", "warn", f"{sentence}: a penalty this small selects no weights", share, fix)
    said = f"{sentence}: `dlrun prune RUN --sparsity {math.floor(100 * share) / 100:g}` sets them to 0"
    return Finding("sparsity", "warn", said, share, "")


def lost(before: float | None, after: float | None, images: int, share: float) -> Finding | None:
    """R4: the validation accuracy that weights set to 0 have cost, beyond two standard errors; None within."""
    if before is None or after is None or not images:
        return None
    error = math.sqrt(max(before * (1 - before), after * (1 - after)) / images)
    if before - after <= 2 * error:
        return None
    sentence = f"sparsity: with {share:.0%} of the weights at 0 validation accuracy is {after:.3f}, {before:.3f} before"
    return Finding("sparsity", "warn", f"{sentence}: prune less, or train on with trainer.start_from=", after, "")


def _improves_after(run: Evidence, best: int) -> bool:
    """Whether training got better after the best epoch, which lies before the last third."""
    return run.loss[-1] < run.loss[best] and best <= 0.7 * len(run.loss)


def gap(run: Evidence) -> Finding | None:
    """B2: most of the validation error is no train error: more regularisation.

    Needs so many images that the gap is no chance: three standard errors of the difference.
    """
    gap, error = run.gap
    if not gap >= max(GAP, 3 * error, run.train_error) or (run.coarse and run.underfits):
        return None
    which = "validation" if run.comparable is run.val_acc else "balanced validation"
    sentence = f"gap: train accuracy {end(run.acc):.3f}, {which} accuracy {end(run.comparable):.3f}"
    return Finding("gap", "warn", sentence, gap, more_regularisation(run, memorised=False))


def capacity(run: Evidence) -> Finding | None:
    """B2: no gap at a low accuracy that has levelled off at the end of the schedule: the model is too small."""
    gap, error = run.gap
    if len(run.acc) < 6 or not run.complete or gap > GAP / 2 + 2 * error:
        return None
    if max(end(run.acc), end(run.val_acc)) >= LOW:  # wrong labels and augmentation lower the train accuracy alone
        return None
    if run.fell(run.loss) >= FALLS or end(run.acc) - run.acc[run.late] > max(GAIN, 2 * error):
        return None  # still learning
    sentence = (
        f"capacity: train accuracy stops at {end(run.acc):.3f} and validation accuracy at {end(run.val_acc):.3f}, "
        "without a gap"
    )
    fix = "regularizer=none" if run.regularised else larger(run)
    return Finding("capacity", "warn", sentence, end(run.acc), fix)


def unfinished(run: Evidence) -> Finding | None:
    """O9: the score or the validation loss still improves, and not only because the schedule ended."""
    if not run.complete or not (is_accuracy(run.monitor) or is_loss(run.monitor)):
        return None
    if run.coarse and run.underfits:
        return _few_steps(run)
    if run.annealed and (not run.underfits or _had_time(run)):
        return None  # more of the same schedule could only fit better what is fitted
    wide, narrow, closed = run.gap_closed
    if (won := _won(run)) is not None:
        number, what = won
    elif run.underfits and narrow > 0 and closed >= (ANNEALED_CLOSED if run.annealed else CLOSED):
        number, what = closed, f"val_loss - train_loss still shrinks: from {wide:.3f} to {narrow:.3f}"
    elif (fell := _falls(run)) is not None:
        number, what = fell
    else:
        return None
    return Finding("unfinished", "warn", f"unfinished: {what}", number, longer(run))


def _had_time(run: Evidence) -> bool:
    """Whether a schedule that has ended was long enough: more epochs would help any network, and need no verdict."""
    share = max(run.shares, default=0.0)
    return run.steps >= STEADY and run.train_error < 1 - share - HALFWAY * (1 - share)


def _few_steps(run: Evidence) -> Finding:
    steps = "one step" if run.epoch_steps == 1 else f"{run.epoch_steps:.0f} steps"
    sentence = f"unfinished: an epoch is {steps}, {run.steps:.0f} in all; train accuracy is {1 - run.train_error:.3f}"
    return Finding("unfinished", "warn", sentence, run.steps, smaller_batch(run))


def _won(run: Evidence) -> tuple[float, str] | None:
    """The last epoch is the best: how much of the monitored score the last third won, of a loss as a share."""
    if len(run.monitored) < 2:
        return None
    lower = lower_is_better(run.monitor)
    scores = [-v if lower else v for v in run.monitored]
    before = scores[len(scores) * 2 // 3 - 1]
    gain = (scores[-1] - before) / (abs(before) if lower else 1)
    needed = (ANNEALED_GAIN if run.annealed else GAIN) + (0 if lower else run.val_error)
    if scores[-1] < max(scores) or gain < needed:
        return None
    return gain, f"the last epoch is the best: {run.monitor} went from {abs(before):.3f} to {run.monitored[-1]:.3f}"


def _falls(run: Evidence) -> tuple[float, str] | None:
    """The validation loss still falls, and most of the validation error is train error; one epoch cannot level off."""
    gap, error = run.gap
    if not run.underfits or gap > max(run.train_error, 2 * error):
        return None
    if len(run.loss) == 1:
        return run.train_error, f"one epoch, train accuracy {end(run.acc):.3f}" if run.acc else "one epoch"
    fell = run.fell(run.val_loss)
    if not fell >= FALLS or run.val_loss[-1] > 1.02 * min(run.val_loss):
        return None
    return (
        fell,
        f"the validation loss still falls: by {fell:.0%} in the last third of the way, to {run.val_loss[-1]:.3g}",
    )


def imbalance(run: Evidence) -> Finding | None:
    """D6: one class has many more images than another, and nothing makes up for it, or two things do."""
    counts, on = run.counts, run.balanced
    if not counts or max(counts) <= IMBALANCE * min(counts):
        return None
    ratio = max(counts) / max(min(counts), 1)
    if len(on) > 1 and on[1] != "loss.weight=a list":
        sentence = f"imbalance: corrected twice, by {' and '.join(on)}: rare classes count more than frequent ones"
        return Finding("imbalance", "warn", sentence, ratio, "loss.weight=none")
    if on:
        return None
    names = run.data.get("classes") or [str(k) for k in range(len(counts))]
    most, least = counts.index(max(counts)), counts.index(min(counts))
    sentence = (
        f"imbalance: {names[most]} has {counts[most]} training images and {names[least]} {counts[least]}, "
        f"{ratio:.1f} times as many"
    )
    fix = "dataset.balance=true" if run.key("loss.weight") is None else "loss.weight=balanced"
    return Finding("imbalance", "warn", sentence, ratio, fix)
