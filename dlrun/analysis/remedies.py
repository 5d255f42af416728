"""Remedies: the override that a verdict suggests (B1–B4)."""

from __future__ import annotations

from dlrun.analysis.evidence import WANTED_RATIO, Evidence, digit

__all__ = ["BAND", "larger", "more_regularisation", "revive", "too_fast"]

BAND = 3.0  # factor on the wanted update : weight ratio that is still fine (B3)
STEADY = 300  # optimizer steps: the first ones are long in every run (B3)


def too_fast(run: Evidence) -> bool:
    """Whether the steps are too long for the weights."""
    return run.ratio > WANTED_RATIO * BAND and run.steps >= STEADY


def revive(run: Evidence) -> str:
    """Return a remedy for dying units: smaller steps, a norm, or an activation that cannot die."""
    if too_fast(run):
        return run.rate(run.towards_ratio())
    if run.key("model.norm") == "none":
        return "model.norm=batch"
    return "model.activation=leaky_relu" if run.key("model.activation") == "relu" else run.rate(1 / 3)


def more_regularisation(run: Evidence) -> str:
    """Return the first of augmentation, penalty and dropout that is off, or else a stronger penalty."""
    photographs = ("cifar10", "cifar100", "stl10", "image_folder")  # a mirrored digit is no digit
    if run.key("choices.dataset") in photographs and not run.augmented:
        return "augment=crop_flip"
    if not (run.key("regularizer.l2") or run.key("optimizer.weight_decay")):
        return "regularizer.l2=0.0005" if run.regularised else "regularizer=l2"
    if run.key("model.dropout") is not None and not run.key("regularizer.dropout"):
        return "regularizer.dropout=0.3"
    key = "regularizer.l2" if run.key("regularizer.l2") else "optimizer.weight_decay"
    return f"{key}={digit(3 * float(run.key(key)))}"


def larger(run: Evidence) -> str:
    """Return a model with more capacity."""
    width = run.key("model.width")
    return "model=resnet20" if width is None else f"model.width={2 * int(width)}"
