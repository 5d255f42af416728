"""Verdicts on a training that is not what it seems: the cause before the advice (B1, B2, M5, O3, O4).

They stand before those on learning and fitting, which see the same numbers and would send one elsewhere.
"""

from __future__ import annotations

import math
from statistics import median

from dlrun.analysis.evidence import Evidence, digit, end, span
from dlrun.analysis.finding import Finding

__all__ = ["affine", "clipped", "frozen", "idle", "spent", "unlike_evaluation", "unlike_validation", "warming"]

LOST = 0.15  # of accuracy, in evaluation mode on images that are known: below, running means and dropout explain it
KNOWN = 0.8  # accuracy on training images in evaluation mode: it has learned them
CHANCE = 0.05  # of the way from the largest class to no error
FEW = 8  # samples per normalised part, as in the check batch_norm
CUT = 10.0  # times: gradients are cut to a tenth and less in most steps
IDLE, LONG = 1e-3, 0.25  # of the highest rate; of the epochs
LOW = 0.5  # of optimizer.lr
GONE, MOST = 0.02, 0.4  # of the highest rate; of the epochs, in which the loss no longer falls
FALLS = 0.03  # of the loss
AT_ONCE = 0.2  # of accuracy, after an epoch or two: nothing is memorised yet
SPENT = 0.01, 1e-5  # of the first steps, and relative to the weights: steps that died out at a rate that did not
AFFINE = 0.01  # of a change of the logits: rounding explains no more
STILL = 0.5  # of the layers


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
        "evaluation mode, "
    )
    fix = _norms(run)
    if run.augmented and fix == _norms(run, few=False):
        sentence += "without augmentation: it makes images unlike the originals, or batch norm's running statistics do "
        return Finding(
            "unlike_evaluation", "stop", f"{sentence}not fit; see `dlrun check`", there - here, "augment=none"
        )
    return Finding("unlike_evaluation", "stop", f"{sentence}which uses {STATISTICS}", there - here, fix)


STATISTICS = "the running statistics of batch norm; does one norm stand in several places?"


def _norms(run: Evidence, few: bool = True) -> str:
    """The override against too few samples or steps for batch norm; without these causes, another norm."""
    batch, count = int(run.key("trainer.batch_size", 32)), int(run.key("trainer.accumulate", 1))
    if few and count > 1 and batch // min(count, max(batch // 2, 1)) < FEW:
        return f"trainer.accumulate={max(1, batch // (4 * FEW))}"
    norm = str(run.key("model.norm", ""))
    if few and batch < FEW:
        return "model.norm=group" if norm == "batch" else f"trainer.batch_size={4 * FEW}"
    if few and run.steps < 100:
        return f"trainer.epochs={2 * int(run.key('trainer.epochs', len(run.epochs)))}"
    return "model.norm=group" if norm == "batch" else ""


def unlike_validation(run: Evidence) -> Finding | None:
    """B2: training images are recognised in evaluation mode, validation images no better than by chance."""
    if not run.train_eval or not run.counts or math.isnan(known := end(run.train_eval)):
        return None
    share, found = max(run.counts) / sum(run.counts), end(run.val_acc)
    if (early := _at_once(run)) is not None:
        return early
    if known < KNOWN or found - share > max(CHANCE * (1 - share), 2 * run.val_error):
        return None
    sentence = (
        f"validation unlike training: accuracy {known:.3f} on training images in evaluation mode, {found:.3f} on "
        "validation images, which is chance: look at how they are read and labelled, with `dlrun check`"
    )
    return Finding("unlike_validation", "stop", sentence, known - found, "")


def _at_once(run: Evidence) -> Finding | None:
    """The same after an epoch or two, before anything can be memorised."""
    for k, (known, found) in enumerate(zip(run.train_eval[:2], run.val_acc[:2], strict=True)):
        error = math.hypot(run.val_error, math.sqrt(0.25 / min(256, max(1, int(run.data.get("train") or 1000) // 10))))
        if not known - found > max(AT_ONCE, 4 * error) or end(run.train_eval) - end(run.val_acc) < AT_ONCE:
            return None
        if k == 1 or len(run.epochs) == 1:
            sentence = (
                f"validation unlike training: accuracy {known:.3f} on training images in evaluation mode, {found:.3f} "
                f"on validation images in epoch {run.epochs[k]}, too early for overfitting: look at how they are read "
                "and labelled, with `dlrun check`"
            )
            return Finding("unlike_validation", "warn", sentence, known - found, "")
    return None


def affine(run: Evidence) -> Finding | None:
    """M4: the layers together do what one would: no activation acts."""
    known = [value for value in run.nonlinear if math.isfinite(value)]
    count = len({layer for _, layer, _ in run.layers})
    if not known or max(known[-3:]) > AFFINE or count < 2 or not run.misses:
        return None
    sentence = (
        f"affine: the logits follow the image as those of one linear layer do (all but {known[-1]:.1g} of a change), "
        f"so {count} layers count as one: the activation is never called, or is the identity"
    )
    fix = "model.activation=relu" if run.key("model.activation") not in (None, "relu") else ""
    return Finding("affine", "stop", sentence, known[-1], fix)


def _still(run: Evidence) -> tuple[list[str], int]:
    """The layers that moved in no epoch, and how many layers there are; none if no step was measured."""
    moved = {layer for _, layer, row in run.layers if float(row.get("update_ratio") or 0.0) > 0}
    found = dict.fromkeys(layer for _, layer, _ in run.layers)
    return [layer for layer in found if layer not in moved] if moved else [], len(found)


def frozen(run: Evidence) -> Finding | None:
    """C9: most layers moved in no epoch, though nothing in the config freezes them."""
    still, count = _still(run)
    asked = str(run.key("model.freeze", "none")) not in ("none", "[]", "False", "") or run.key("model.weights")
    if asked or len(still) < max(1, STILL * count) or not run.misses:
        return None
    sentence = (
        f"frozen: {span(still, count)} did not change in any epoch, though model.freeze is none: does code set "
        "requires_grad_(False), run them under no_grad(), or leave them out of the optimizer?"
    )
    return Finding("frozen", "stop", sentence, len(still) / count, "")


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
    still = [k for k, lr in enumerate(run.lr) if lr < IDLE * max(run.lr)]
    if len(still) < max(2, LONG * len(run.lr)):
        still = [k for k, lr in enumerate(run.lr) if lr < GONE * max(run.lr)]
        if len(still) < max(2, MOST * len(run.lr)) or still[-1] != len(run.lr) - 1:
            return None
        if run.loss[-1] < (1 - FALLS) * run.loss[still[0]]:
            return None  # it still learns
    low = max(run.lr[k] for k in still) / max(run.lr)
    sentence = (
        f"idle: the rate is gone: {low:.1g} of its highest and less since epoch {run.epochs[still[0]]}, in "
        f"{len(still)} of {len(run.lr)} epochs"
    )
    epochs = int(run.key("trainer.epochs", len(run.epochs)))
    keys = {"scheduler.epochs": epochs, "scheduler.every": max(1.0, epochs / 4), "scheduler.k": 3 / epochs}
    fix = next((f"{k}={digit(v) if v < 1 else f'{v:g}'}" for k, v in keys.items() if run.key(k) is not None), "")
    return Finding("idle", "warn", sentence, len(still) / len(run.lr), fix or "scheduler=one_cycle")


def spent(run: Evidence) -> Finding | None:
    """O1, B3: steps die out although the rate does not: the optimizer divides by something that only grows."""
    known = [(lr, size) for lr, size in zip(run.lr, run.step_sizes, strict=True) if size > 0]
    if len(known) < 5 or not run.misses or not run.underfits or not run.lr[-1] >= LOW * max(run.lr):
        return None
    first, last = known[0][1], known[-1][1]
    if not last < SPENT[0] * first or last > SPENT[1]:
        return None
    sentence = (
        f"spent: steps shrank from {first:.1g} to {last:.1g} of the weights at the same rate: the optimizer lowers the "
        "rate by itself (a running sum in place of a mean, a decay of its own), or the gradient vanishes"
    )
    return Finding("spent", "warn", sentence, last / first, "optimizer=adam" if run.key("choices.optimizer") else "")


def warming(run: Evidence) -> Finding | None:
    """O3: the training ended before the rate had reached its peak."""
    wanted, top = float(run.key("optimizer.lr", 0.0)), max(run.lr, default=0.0)
    if not run.complete or len(run.lr) < 2 or not run.misses or top >= LOW * wanted:
        return None
    how = "still rises in the last epoch, and has reached" if run.lr[-1] == top else "has never been above"
    sentence = f"warming: the rate {how} {top:.2g} of {wanted:g}: the warm-up, or the schedule, outlasts the training"
    warmup, epochs = float(run.key("scheduler.warmup", 0.0)), int(run.key("trainer.epochs", len(run.epochs)))
    fix = f"scheduler.warmup={max(1, epochs // 10)}" if warmup >= epochs / 2 else f"scheduler.epochs={epochs}"
    return Finding("warming", "warn", sentence, top / wanted, fix)
