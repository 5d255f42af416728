"""Remedies: the override that a verdict suggests (B1–B4).

tests/benchmarks/bench_verdicts.py follows each of them.
"""

from __future__ import annotations

import math

from dlrun.analysis.evidence import STEADY, WANTED_RATIO, Evidence, digit

__all__ = ["BAND", "WIDE_BAND", "larger", "longer", "more_regularisation", "revive", "smaller_batch"]
__all__ += ["smaller_steps", "too_fast"]

BAND = 3.0  # factor on the wanted update : weight ratio that is still fine (B3)
WIDE_BAND = 10.0  # the same for the first steps
# the same for steps that are too long by themselves: at its default rate a healthy network with norms reaches 20
FAR = 30.0
FEW = 50  # optimizer steps that are needed to judge their length
TINY_BATCH = 4  # images whose mean gradient is mostly noise
LEARNS = 2000  # optimizer steps in which small networks come to fit images that change
BATCH = 32  # images: the default of trainer.batch_size


def too_fast(run: Evidence) -> bool:
    """Whether the steps are too long for the weights, and the train loss suffers.

    A long step does no harm by itself: norm layers make it relative (Arora, Li and Lyu 2019), and `dlrun lr_range` and
    grids prefer rates with ratios of up to 1e-2. It is too long if the run does not come to fit its training images,
    and up to FAR only if the loss jumps or the batch is tiny: a small network, or a short training, fits badly at any
    rate. Of 12 healthy runs on photographs at default rates seven had ratios of 1e-2 to 2e-2, and beat the runs of
    Adam, whose ratios were smaller.
    """
    if not run.underfits or run.steps < FEW:
        return False
    symptom = run.steps >= STEADY and (run.jumps or run.key("trainer.batch_size", BATCH) <= TINY_BATCH)
    return run.ratio > WANTED_RATIO * (BAND if symptom else FAR)


def smaller_steps(run: Evidence) -> str:
    """Return the override against steps that are too long: of a tiny batch its size, otherwise the rate."""
    batch = int(run.key("trainer.batch_size", BATCH))
    return f"trainer.batch_size={8 * batch}" if batch <= TINY_BATCH else run.rate(run.towards_ratio())


def smaller_batch(run: Evidence) -> str:
    """Return the batch size that turns an epoch of a few steps into many: a power of two, at most the default."""
    images = int(run.data.get("train", BATCH))
    return f"trainer.batch_size={2 ** max(0, min(math.log2(BATCH), math.floor(math.log2(max(1, images / 10))))):.0f}"


def longer(run: Evidence, steps: int = 0) -> str:
    """Return the override for twice as many epochs, or more for `steps` optimizer steps in all."""
    return (
        f"trainer.epochs={max(2 * int(run.key('trainer.epochs', len(run.epochs))), math.ceil(steps / run.epoch_steps))}"
    )


def revive(run: Evidence) -> str:
    """Return a remedy for dying units: smaller steps, a norm, or an activation that cannot die.

    Steps may have been too long in the first epochs alone: dead units let weights and steps rest.
    """
    if too_fast(run):
        return smaller_steps(run)
    if run.longest > WANTED_RATIO * WIDE_BAND:
        return run.rate(0.1)
    if run.key("model.norm") == "none":
        return "model.norm=batch"
    return "model.activation=leaky_relu" if run.key("model.activation") == "relu" else run.rate(1 / 3)


def more_regularisation(run: Evidence, *, memorised: bool) -> str:
    """Return the first of augmentation, dropout and penalty that is off, or else a stronger penalty.

    Changed images are harder to fit: in the same epochs, or a few hundred steps, augmentation loses more than it gains.
    Slight rotation and shift keep the label of any image. A run that has `memorised`, whose validation got worse, has
    time left for larger changes.
    """
    if not run.augmented:
        photographs = ("cifar10", "cifar100", "stl10", "image_folder")  # a mirrored digit is no digit
        if run.key("choices.dataset") in photographs:
            return f"augment=crop_flip {longer(run, LEARNS)}"
        return f"{'augment=affine' if memorised else 'augment.rotate=10 augment.shift=0.1'} {longer(run, LEARNS)}"
    if run.key("model.dropout") is not None and not run.key("regularizer.dropout"):
        return "regularizer.dropout=0.3"
    if not (run.key("regularizer.l2") or run.key("optimizer.weight_decay")):
        return "regularizer.l2=0.0005"
    key = "regularizer.l2" if run.key("regularizer.l2") else "optimizer.weight_decay"
    return f"{key}={digit(3 * float(run.key(key)))}"


def larger(run: Evidence) -> str:
    """Return a model with more capacity: twice the width, or a residual network if the model has no width."""
    if widths := run.key("model.widths"):
        return f"model.widths=[{','.join(str(2 * int(w)) for w in widths)}]"
    width = run.key("model.width")
    return "model=resnet18" if width is None else f"model.width={2 * int(width)}"
