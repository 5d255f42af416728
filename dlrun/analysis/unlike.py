"""Verdicts on a training that is not what it seems: the cause before the advice (B1, B2, M5, O3, O4).

They stand before those on learning and fitting, which see the same numbers and would send one elsewhere.
"""

from __future__ import annotations

import math
from statistics import median

from dlrun.analysis.evidence import Evidence, digit, end
from dlrun.analysis.finding import Finding

__all__ = ["clipped", "idle", "unlike_evaluation", "unlike_validation", "warming"]

LOST = 0.15  # of accuracy, in evaluation mode on images that are known: below, running means and dropout explain it
KNOWN = 0.8  # accuracy on training images in evaluation mode: it has learned them
CHANCE = 0.05  # of the way from the largest class to no error
FEW = 8  # samples per normalised part, as in the check batch_norm
CUT = 10.0  # times: gradients are cut to a tenth and less in most steps
IDLE, LONG = 1e-3, 0.25  # of the highest rate; of the epochs
LOW = 0.5  # of optimizer.lr


def unlike_evaluation(run: Evidence) -> Finding | None:
    """M5: the same training images are recognised in training mode and not in evaluation mode: norms."""
    known = [value for value in run.train_eval if not math.isnan(value)]
    if not known or not run.acc or len(known) < len(run.acc):
        return None
    there, here = end(run.acc), end(known)
    images = max(1, int(run.data.get("train") or 1000) // 10)
    if there - here < max(LOST, 4 * math.sqrt(0.25 / min(256, images))):
        return None
    sentence = (
        f"evaluation unlike training: accuracy {there:.3f} on training images in training mode, {here:.3f} in "
        "evaluation mode, which uses the running statistics of batch norm"
    )
    return Finding("unlike_evaluation", "stop", sentence, there - here, _norms(run))


def _norms(run: Evidence) -> str:
    batch, count = int(run.key("trainer.batch_size", 32)), int(run.key("trainer.accumulate", 1))
    if count > 1 and batch // min(count, max(batch // 2, 1)) < FEW:
        return f"trainer.accumulate={max(1, batch // (4 * FEW))}"
    norm = str(run.key("model.norm", ""))
    if batch < FEW:
        return "model.norm=group" if norm == "batch" else f"trainer.batch_size={4 * FEW}"
    if run.steps < 100:
        return f"trainer.epochs={2 * int(run.key('trainer.epochs', len(run.epochs)))}"
    return "model.norm=group" if norm == "batch" else ""


def unlike_validation(run: Evidence) -> Finding | None:
    """B2: training images are recognised in evaluation mode, validation images no better than by chance."""
    if not run.train_eval or not run.counts or math.isnan(known := end(run.train_eval)):
        return None
    share, found = max(run.counts) / sum(run.counts), end(run.val_acc)
    if known < KNOWN or found - share > max(CHANCE * (1 - share), 2 * run.val_error):
        return None
    sentence = (
        f"validation unlike training: accuracy {known:.3f} on training images in evaluation mode, {found:.3f} on "
        "validation images, which is chance: look at how they are read and labelled, with `dlrun check`"
    )
    return Finding("unlike_validation", "stop", sentence, known - found, "")


def clipped(run: Evidence) -> Finding | None:
    """O4: gradients are clipped to so little that nothing moves."""
    limit = float(run.key("trainer.clip_norm", 0.0))
    norms = [norm for norm in run.grad_norm if math.isfinite(norm)]
    if not limit or not norms or median(norms) < CUT * limit or not run.misses or run.ratio > 3e-4:
        return None
    size = median(norms)
    sentence = f"clipped: gradients of norm {size:.2g} are cut to {limit:g} before every step, and weights hardly move"
    return Finding("clipped", "stop", sentence, size / limit, f"trainer.clip_norm={digit(max(1.0, size))}")


def idle(run: Evidence) -> Finding | None:
    """O3: the rate is next to nothing in many epochs."""
    if len(run.lr) < 4 or not run.misses or not max(run.lr) > 0:
        return None
    still = [epoch for epoch, lr in zip(run.epochs, run.lr, strict=True) if lr < IDLE * max(run.lr)]
    if len(still) < max(2, LONG * len(run.lr)):
        return None
    sentence = (
        f"idle: the rate is below a thousandth of its highest since epoch {still[0]}, in {len(still)} of "
        f"{len(run.lr)} epochs"
    )
    epochs = int(run.key("trainer.epochs", len(run.epochs)))
    keys = {"scheduler.epochs": epochs, "scheduler.every": max(1.0, epochs / 4), "scheduler.k": 3 / epochs}
    fix = next((f"{k}={digit(v) if v < 1 else f'{v:g}'}" for k, v in keys.items() if run.key(k) is not None), "")
    return Finding("idle", "warn", sentence, len(still) / len(run.lr), fix or "scheduler=one_cycle")


def warming(run: Evidence) -> Finding | None:
    """O3: the training ended before the rate had reached its peak."""
    wanted = float(run.key("optimizer.lr", 0.0))
    if not run.complete or len(run.lr) < 2 or not run.misses or not run.lr[-1] == max(run.lr) < LOW * wanted:
        return None
    sentence = f"warming: the rate still rises in the last epoch, and has reached {run.lr[-1]:.2g} of {wanted:g}"
    if not run.lr[0] < LOW * run.lr[-1]:
        return None
    warmup, epochs = float(run.key("scheduler.warmup", 0.0)), int(run.key("trainer.epochs", len(run.epochs)))
    fix = f"scheduler.warmup={max(1, epochs // 10)}" if warmup >= epochs / 2 else f"scheduler.epochs={epochs}"
    return Finding("warming", "warn", sentence, run.lr[-1] / wanted, fix)
