"""What a run's numbers mean, in plain sentences, each with one override to try: `dlrun train` (B1–B4, D6).

A verdict rests on metrics.csv, layers.csv, the config and the class counts alone, so that tables and reports
can draw it again from the files. Nothing here imports torch. A healthy run has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

from dlrun.analysis.evidence import WANTED_RATIO, Evidence, digit, end, span
from dlrun.vocabulary import Status, is_accuracy, is_loss, lower_is_better

__all__ = ["Finding", "judge", "summary", "urgent"]

BAND = 3.0  # factor on the wanted update : weight ratio that is still fine (B3)
DEAD = 0.10  # share of a layer's units (B4)
IMBALANCE = 1.5  # largest : smallest class (D6)
# the essays give no number for these; each parts healthy runs on digits and CIFAR images from spoilt ones
TINY = 1e-9  # in place of a loss of zero, which a network that is sure of itself has in float32
ROSE = 2.0  # train loss over its lowest: exploding (B1)
LEARNT = 0.05  # of the way from always naming the largest class to no error: less is flat (B1)
LINEAR = 0.5  # slope of the train loss in the second half over that in the first: too low a rate (B1)
JITTER = 0.08  # all rises of the train loss over its whole descent: noisy (B1)
LEFT = 0.3  # of the first train loss: below this there is little left to be slow about (B1, B3)
STEADY = 300  # optimizer steps: the first ones are long in every run (B3)
GAP, LOW = 0.10, 0.80  # train accuracy minus validation accuracy; train accuracy that is low (B2)
WORSE = 1.25  # validation loss over its lowest: overfitting (O8)
SATURATED = 0.25  # share of a layer's activations (B4)
OFFSET = 3.0  # |mean| over standard deviation before the activation: |mean| ≫ 0 (B4)
GAIN = 0.01  # accuracy won in the last third of a run whose best epoch is the last (O9)
ANNEALED_GAIN = 0.05  # the same where the schedule has ended, which wins some by itself
CLOSED, ANNEALED_CLOSED = 0.02, 0.05  # of the first train loss: val_loss - train_loss still shrinks (O9)
SEVERE = 0.5  # share of dead units at which a layer is lost


@dataclass(frozen=True)
class Finding:
    """One verdict: `sentence` holds `number`; `try_` is one override (two for Muon), empty where none would help."""

    name: str
    severity: str  # stop: going on is waste; warn: the run can be better
    sentence: str
    number: float
    try_: str

    @property
    def text(self) -> str:
        """The sentence and the override, on one line."""
        return f"{self.sentence}: try {self.try_}" if self.try_ else self.sentence

    def record(self) -> dict[str, Any]:
        """The finding as JSON types, for result.json: `name severity sentence number try`."""
        found = asdict(self)
        found["number"] = self.number if math.isfinite(self.number) else None
        found["try"] = found.pop("try_")
        return found


def judge(
    metrics: Iterable[Mapping[str, Any]],
    layers: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    status: str = Status.COMPLETED,
) -> list[Finding]:
    """Return the verdicts on a run, worst first.

    metrics and layers are rows of the CSV files, as text or numbers; config is the resolved one; data is what
    result.json records of the splits, and status its status.
    """
    run = Evidence(metrics, layers, config, data or {}, status)
    found = {f.name: f for rule in RULES if (f := rule(run)) is not None}
    for name, consequences in HIDES.items():
        if name in found:
            found = {n: f for n, f in found.items() if n not in consequences}
    return sorted(found.values(), key=lambda f: f.severity != "stop")


def urgent(
    metrics: Iterable[Mapping[str, Any]],
    layers: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Return what is worth an interruption after the epochs so far; layers may be of the last one alone."""
    run = Evidence(metrics, layers, config, data or {}, Status.RUNNING)
    warm = sum(lr >= 0.3 * run.peak for lr in run.lr) >= 3  # a warm-up is allowed to learn nothing
    found = [rule(run) for rule in ((_exploding, _flat, _dead) if warm else (_exploding,))]
    return [f for f in found if f is not None and f.severity == "stop"]


def summary(findings: Iterable[Finding | Mapping[str, Any]]) -> str:
    """Return the names of findings, or of their records, for a table; `none` for a healthy run."""
    return " ".join(f.name if isinstance(f, Finding) else str(f["name"]) for f in findings) or "none"


def _exploding(run: Evidence) -> Finding | None:
    """B1, B8: the loss is not finite, or has risen far above its lowest."""
    if run.status == Status.DIVERGED or not all(map(math.isfinite, run.loss)):
        epoch = run.epochs[-1] + 1 if run.epochs else 1
        sentence = f"exploding: the loss is not finite in epoch {epoch} with lr {run.peak:.2g}"
        return Finding("exploding", "stop", sentence, run.peak, run.rate(0.1))
    if len(run.loss) < 3:
        return None
    low, last = min(run.loss), end(run.loss, 2)
    # a loss near zero may double without harm, and that of a model trained before begins there
    harmless = 0.1 * run.chance if math.isfinite(run.chance) else 0.0
    if last <= max(ROSE * low, 0.5 * run.loss[0], harmless):
        return None
    times = last / max(low, TINY)
    sentence = f"exploding: the train loss rose to {last:.3g}, {times:.1f} times its lowest"
    return Finding("exploding", "stop", sentence, times, run.rate(0.1))


def _flat(run: Evidence) -> Finding | None:
    """B1: the network does no better than one that always names the largest class."""
    if not run.loss or not run.counts:
        return None
    share, accuracy = max(run.counts) / sum(run.counts), end(run.acc, 2)
    if accuracy - share > LEARNT * (1 - share) or end(run.loss, 2) < 0.9 * min(run.loss[0], run.chance):
        return None
    if max(run.loss) > ROSE * run.chance:  # it exploded and came to rest: its weights are large, its ratio is small
        fix = run.rate(0.1)
    elif max(run.now("dead_fraction").values(), default=0.0) > SEVERE:
        fix = _revive(run)
    elif not WANTED_RATIO / BAND < run.ratio < WANTED_RATIO * BAND:
        fix = run.rate(run.towards_ratio())
    else:
        fix = "model.norm=batch" if run.key("model.norm") == "none" else _larger(run)
    sentence = (
        f"flat: train accuracy {accuracy:.3f} after {len(run.loss)} epochs, "
        f"and always naming the largest class gives {share:.3f}"
    )
    return Finding("flat", "stop", sentence, accuracy, fix)


def _dead(run: Evidence) -> Finding | None:
    """B4: units that were above zero for none of the images."""
    shares = run.now("dead_fraction")
    bad = [layer for layer, share in shares.items() if share > DEAD]
    if not bad:
        return None
    worst = max(shares.values())
    sentence = f"dead: up to {worst:.0%} of the units in {span(bad, len(shares))} never fire"
    return Finding("dead", "stop" if worst > SEVERE else "warn", sentence, worst, _revive(run))


def _revive(run: Evidence) -> str:
    """What keeps units from dying: smaller steps, a norm, or an activation that does not die."""
    if _too_fast(run):
        return run.rate(run.towards_ratio())
    if run.key("model.norm") == "none":
        return "model.norm=batch"
    return "model.activation=leaky_relu" if run.key("model.activation") == "relu" else run.rate(1 / 3)


def _slow(run: Evidence) -> Finding | None:
    """B1: a loss that falls in a straight line, measured against the rate spent, wants a higher rate."""
    if len(run.loss) < 5 or run.loss[-1] < LEFT * run.loss[0] or run.ratio > WANTED_RATIO:
        return None
    spent = list(accumulate(run.lr))
    middle = next(k for k, s in enumerate(spent) if s >= (spent[0] + spent[-1]) / 2)
    if not 0 < middle < len(spent) - 1:
        return None
    early = (run.loss[0] - run.loss[middle]) / max(spent[middle] - spent[0], 1e-30)
    late = (run.loss[middle] - run.loss[-1]) / max(spent[-1] - spent[middle], 1e-30)
    if early <= 0 or late < LINEAR * early:
        return None
    sentence = (
        f"slow: the train loss fell from {run.loss[0]:.3g} to {run.loss[-1]:.3g} in {len(run.loss)} epochs, "
        f"in the second half {late / early:.0%} as steeply as in the first"
    )
    factor = max(3.0, run.towards_ratio()) if run.ratio > 0 else 3.0
    return Finding("slow", "warn", sentence, late / early, run.rate(factor))


def _update_ratio(run: Evidence) -> Finding | None:
    """B3: steps more than three times too long or too short for the weights."""
    ratio = run.ratio
    high = _too_fast(run)
    # once a run has learnt what there is, its gradients and steps are rightly small
    low = ratio < WANTED_RATIO / BAND and bool(run.loss) and run.loss[-1] > LEFT * run.loss[0]
    if not (high or low):
        return None
    off = [n for n, r in run.ratios.items() if (r > WANTED_RATIO * BAND if high else r < WANTED_RATIO / BAND)]
    shown = f"{ratio:.0e}".replace("e-0", "e-")
    sentence = f"update_ratio {shown} in {span(off, len(run.ratios))}, wanted about 1e-3"
    return Finding("update_ratio", "warn", sentence, ratio, run.rate(run.towards_ratio(), off))


def _too_fast(run: Evidence) -> bool:
    return run.ratio > WANTED_RATIO * BAND and run.steps >= STEADY


def _saturated(run: Evidence) -> Finding | None:
    """B4, M4: tanh and its like at their limits pass no gradient on."""
    shares = run.now("saturated_fraction")
    bad = [layer for layer, share in shares.items() if share > SATURATED]
    if not bad:
        return None
    if str(run.key("model.init")).startswith(("normal", "glorot_sigmoid")):
        fix = "model.init=glorot_uniform"
    elif run.key("model.norm") == "none":
        fix = "model.norm=batch"
    else:
        fix = "model.activation=relu" if run.key("model.activation") else run.rate(1 / 3)
    worst = max(shares.values())
    sentence = f"saturated: up to {worst:.0%} of the values in {span(bad, len(shares))} are at their limits"
    return Finding("saturated", "warn", sentence, worst, fix)


def _offset(run: Evidence) -> Finding | None:
    """B4: a mean far from zero before the activation makes a layer nearly linear, or dead."""
    means, stds = run.now("act_mean"), run.now("act_std")
    hidden = list(means)[:-1]  # the logits may be anywhere
    shifts = {n: abs(means[n]) / stds[n] for n in hidden if stds.get(n, 0.0) > 1e-6}
    bad = [layer for layer, shift in shifts.items() if shift > OFFSET]
    if not bad:
        return None
    worst = max(shifts.values())
    sentence = (
        f"offset: before the activation of {span(bad, len(shifts))} the mean is up to {worst:.1f} "
        "standard deviations from zero"
    )
    fix = "model.norm=batch" if run.key("model.norm") == "none" else run.rate(1 / 3)
    return Finding("offset", "warn", sentence, worst, fix)


def _noisy(run: Evidence) -> Finding | None:
    """B1: a train loss that goes up and down from epoch to epoch."""
    descent = run.loss[0] - min(run.loss) if run.loss else 0.0
    share = sum(max(0.0, later - earlier) for earlier, later in pairwise(run.loss)) / max(descent, 1e-30)
    if len(run.loss) < 5 or share <= JITTER:
        return None
    batch = int(run.key("trainer.batch_size", 32))
    sentence = (
        f"noisy: from epoch to epoch the train loss rose by {share:.0%} of what it fell in all, with batches of {batch}"
    )
    fix = f"trainer.batch_size={4 * batch}" if batch <= 16 else run.rate(1 / 3)
    return Finding("noisy", "warn", sentence, share, fix)


def _overfitting(run: Evidence) -> Finding | None:
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


def _gap(run: Evidence) -> Finding | None:
    """B2: train accuracy far above validation accuracy asks for more regularisation."""
    if not run.acc or (gap := end(run.acc) - end(run.val_acc)) < GAP + run.val_error:
        return None
    sentence = f"gap: accuracy {end(run.acc):.3f} in training and {end(run.val_acc):.3f} in validation"
    return Finding("gap", "warn", sentence, gap, _more_regularisation(run))


def _more_regularisation(run: Evidence) -> str:
    """The first that is off of augmentation, penalty, dropout; else a stronger penalty."""
    photographs = ("cifar10", "cifar100", "stl10", "image_folder")  # a mirrored digit is no digit
    if run.key("choices.dataset") in photographs and not run.augmented:
        return "augment=crop_flip"
    if not (run.key("regularizer.l2") or run.key("optimizer.weight_decay")):
        return "regularizer.l2=0.0005" if run.regularised else "regularizer=l2"
    if run.key("model.dropout") is not None and not run.key("regularizer.dropout"):
        return "regularizer.dropout=0.3"
    key = "regularizer.l2" if run.key("regularizer.l2") else "optimizer.weight_decay"
    return f"{key}={digit(3 * float(run.key(key)))}"


def _capacity(run: Evidence) -> Finding | None:
    """B2: no gap at a low accuracy: the model cannot hold what there is to learn."""
    if len(run.acc) < 5 or end(run.acc) >= LOW or end(run.acc) - end(run.val_acc) > GAP / 2 + run.val_error:
        return None
    fell = 1 - run.loss[-1] / run.loss[len(run.loss) * 2 // 3 - 1]
    if fell > 0.1 and not run.annealed:
        return None  # it still learns
    sentence = (
        f"capacity: accuracy stops at {end(run.acc):.3f} in training, "
        f"{end(run.val_acc):.3f} in validation, without a gap"
    )
    fix = "regularizer=none" if run.regularised else _larger(run)
    return Finding("capacity", "warn", sentence, end(run.acc), fix)


def _larger(run: Evidence) -> str:
    width = run.key("model.width")
    return "model=resnet20" if width is None else f"model.width={2 * int(width)}"


def _unfinished(run: Evidence) -> Finding | None:
    """O9: the best epoch is the last, and not only because the schedule ended; or the gap still shrinks."""
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
        what = f"the last epoch is the best, {run.monitor} went from {abs(before):.3f} to {run.monitored[-1]:.3f}"
    elif narrow > 0 and closed >= (ANNEALED_CLOSED if run.annealed else CLOSED):
        gain, what = closed, f"val_loss - train_loss still shrinks, from {wide:.3f} to {narrow:.3f}"
    else:
        return None
    fix = f"trainer.epochs={2 * int(planned)}"
    return Finding("unfinished", "warn", f"unfinished: {what} in the last third", gain, fix)


def _imbalance(run: Evidence) -> Finding | None:
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


# in the order in which they should be acted on
RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    *(_exploding, _flat, _dead, _slow, _update_ratio, _saturated, _offset, _noisy),
    *(_overfitting, _gap, _capacity, _unfinished, _imbalance),
)
# what only follows from another verdict is not said
_LEARNING = {"slow", "update_ratio", "noisy", "overfitting", "gap", "capacity", "unfinished"}
HIDES = {
    "exploding": _LEARNING | {"flat", "offset"},
    "flat": _LEARNING,
    "slow": {"update_ratio", "capacity", "unfinished"},
    "update_ratio": {"noisy"},
    "overfitting": {"unfinished"},
}
