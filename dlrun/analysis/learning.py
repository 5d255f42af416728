"""Verdicts on how the network learns: its train loss, the length of its steps, its units (B1, B3, B4)."""

from __future__ import annotations

import math
from itertools import accumulate

from dlrun.analysis.evidence import ABOVE_CHANCE, LEFT, STEADY, TINY, WANTED_RATIO, Evidence, end, span
from dlrun.analysis.finding import Finding, Severity
from dlrun.analysis.remedies import BAND, WIDE_BAND, larger, longer, revive, smaller_batch, smaller_steps, too_fast
from dlrun.vocabulary import Status

__all__ = ["dead", "exploding", "flat", "long_steps", "noisy", "offset", "saturated", "short_steps", "slow"]

DEAD = 0.10  # share of a layer's units (B4)
# the essays give no number for these; each separates healthy runs on digits and CIFAR images from broken ones
ROSE = 2.0  # train loss over its lowest: exploding (B1)
LEARNT = 0.05  # of the way from always naming the largest class to no error: less is flat (B1)
LINEAR = 0.5  # slope of the train loss in the second half over that in the first: too low a rate (B1)
SATURATED = 0.25  # share of a layer's activations (B4)
OFFSET = 3.0  # |mean| over standard deviation before the activation: |mean| ≫ 0 (B4)
FORGOT = 0.10  # train accuracy that a run had reached and lost again
SEVERE = 0.5  # share of dead units at which a layer is lost
GROWN = 0.10  # share of dead units beyond those of pretrained weights
WIDESPREAD = 0.25  # of the layers: a gate of eight units has an eighth of them dead by one, and does no harm


def exploding(run: Evidence) -> Finding | None:
    """B1, B8: the loss is not finite, or rose far above its lowest value."""
    if run.status == Status.DIVERGED or not all(map(math.isfinite, run.loss)):
        epoch = run.epochs[-1] + 1 if run.epochs else 1
        sentence = f"exploding: the loss is not finite in epoch {epoch} with lr {run.peak:.2g}"
        return Finding("exploding", "stop", sentence, run.peak, run.rate(0.1))
    if len(run.loss) < 3:
        return None
    low, last = min(run.loss), end(run.loss, 2)
    # a loss near zero may double without harm, and a pretrained model starts there
    harmless = 0.1 * run.chance if math.isfinite(run.chance) else 0.0
    if last <= max(ROSE * low, 0.5 * run.loss[0], harmless):
        return None
    times = last / max(low, TINY)
    sentence = f"exploding: the train loss rose to {last:.3g}, {times:.1f} times its lowest value"
    return Finding("exploding", "stop", sentence, times, run.rate(0.1))


def flat(run: Evidence) -> Finding | None:
    """B1: the network does no better than always predicting the largest class."""
    if not run.learned or not run.counts:
        return None
    share, accuracy = max(run.shares), end(run.learned, 2)
    if accuracy - share > LEARNT * (1 - share) or end(run.loss, 2) < 0.9 * min(run.loss[0], run.chance):
        return None
    severity: Severity = "stop"
    done = _counted(len(run.loss), "epoch")
    if max(run.loss) > ABOVE_CHANCE * run.chance >= end(run.loss, 2):  # it exploded and settled at chance
        fix = run.rate(0.1)
    elif run.coarse:  # nothing is known yet about the rate or the network
        steps = "one step" if run.epoch_steps == 1 else f"{run.epoch_steps:.0f} steps"
        severity, done, fix = "warn", f"{_counted(run.steps, 'step')}, since an epoch is {steps}", smaller_batch(run)
    elif (found := _flat_fix(run)) is not None:
        fix = found
    elif run.steps < STEADY:
        severity, done, fix = "warn", f"{run.steps:.0f} steps", longer(run)
    else:
        fix = "model.norm=batch" if run.key("model.norm") == "none" else larger(run)
    sentence = (
        f"flat: train accuracy {accuracy:.3f} after {done}, always predicting the largest class gives {share:.3f}"
    )
    shares = run.now("dead_fraction")
    if lost := [layer for layer, part in shares.items() if part > SEVERE]:
        sentence += f"; most units of {span(lost, len(shares))} are dead{_since(run, lost)}"
    return Finding("flat", severity, sentence, accuracy, fix)


def _counted(number: float, what: str) -> str:
    return f"{number:.0f} {what}{'' if round(number) == 1 else 's'}"


def _flat_fix(run: Evidence) -> str | None:
    """Return the override against the cause that the numbers show; None if they show none."""
    if max(run.learned) > end(run.learned, 2) + FORGOT:  # large weights make the ratio small
        return run.rate(0.1)
    if max(run.now("dead_fraction").values(), default=0.0) > SEVERE:
        return revive(run)
    if (stuck := saturated(run) or offset(run)) is not None:
        return stuck.try_
    if run.steps < STEADY and not run.ratio < WANTED_RATIO / BAND and not run.ratio > WANTED_RATIO * WIDE_BAND:
        return None
    return None if WANTED_RATIO / BAND < run.ratio < WANTED_RATIO * BAND else run.rate(run.towards_ratio())


def dead(run: Evidence) -> Finding | None:
    """B4: units that are above zero for none of the images, in a network that misses them."""
    shares = _died(run)
    bad = [layer for layer, share in shares.items() if share > DEAD]
    if not bad or not run.underfits or run.coarse:
        return None
    worst = max(shares.values())
    if worst <= SEVERE and len(bad) < WIDESPREAD * len(shares):
        return None
    sentence = (
        f"dead: up to {worst:.0%} of the units in {span(bad, len(shares))} are zero for every image{_since(run, bad)}"
    )
    return Finding("dead", "stop" if worst > SEVERE else "warn", sentence, worst, revive(run))


def _died(run: Evidence) -> dict[str, float]:
    """Return the share of dead units by layer; of pretrained weights, which come with some, where it has grown."""
    shares = run.now("dead_fraction")
    if not (run.key("model.weights") or run.key("trainer.start_from")):
        return shares
    first = run.first("dead_fraction")
    return {layer: share for layer, share in shares.items() if share > first.get(layer, 1.0) + GROWN}


def _since(run: Evidence, layers: list[str]) -> str:
    """Return since when layers are dead: from the first epoch on it is the start, later the steps."""
    first = run.first("dead_fraction")
    if len(run.epochs) < 2 or not all(layer in first for layer in layers):
        return ""
    return (
        ", from the first epoch on" if min(first[layer] for layer in layers) > DEAD else ", but not in the first epoch"
    )


def slow(run: Evidence) -> Finding | None:
    """B1: a loss that falls in a straight line over the sum of the rates needs a higher rate."""
    if len(run.loss) < 5 or not _much_left(run) or run.ratio > WANTED_RATIO:
        return None
    if run.jumps or not run.misses:
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
        f"the slope of the second half is {late / early:.0%} of that of the first"
    )
    factor = max(3.0, run.towards_ratio()) if run.ratio > 0 else 3.0
    return Finding("slow", "warn", sentence, late / early, run.rate(factor))


def _much_left(run: Evidence) -> bool:
    """Whether much of the first train loss is left, not counting what smoothed labels leave."""
    floor = _smoothed(run)
    return run.loss[-1] - floor > LEFT * (run.loss[0] - floor)


def _smoothed(run: Evidence) -> float:
    """The cross-entropy that is left when every smoothed label is predicted exactly: the labels' entropy (R3)."""
    share, classes = float(run.key("loss.label_smoothing", 0) or 0), len(run.counts)
    if run.key("loss._target_") != "dlrun.losses.CrossEntropy" or not 0 < share < 1 or classes < 2:
        return 0.0
    wrong = share / classes
    return -(1 - share + wrong) * math.log(1 - share + wrong) - (classes - 1) * wrong * math.log(wrong)


def long_steps(run: Evidence) -> Finding | None:
    """B3: steps too long for the weights, in a run that does not come to fit its training images."""
    return _ratio(run, smaller_steps(run), high=True) if too_fast(run) else None


def short_steps(run: Evidence) -> Finding | None:
    """B3: steps more than three times too short for the weights, with much left to learn."""
    if not run.misses or not _much_left(run) or not run.ratio < WANTED_RATIO / BAND:
        return None
    return _ratio(run, "", high=False)


def _ratio(run: Evidence, fix: str, *, high: bool) -> Finding:
    off = [n for n, r in run.ratios.items() if (r > WANTED_RATIO * BAND if high else r < WANTED_RATIO / BAND)]
    shown = f"{run.ratio:.0e}".replace("e-0", "e-")
    sentence = f"update_ratio {shown} in {span(off, len(run.ratios))}, expected about 1e-3"
    if "batch_size" not in fix:
        fix = run.rate(run.towards_ratio(), off)
    return Finding("update_ratio", "warn", sentence, run.ratio, fix)


def saturated(run: Evidence) -> Finding | None:
    """B4, M4: tanh and similar activations pass no gradient on at their limits."""
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


def offset(run: Evidence) -> Finding | None:
    """B4: a mean far from zero before the activation makes a layer nearly linear, or dead."""
    means, stds = run.now("act_mean"), run.now("act_std")
    hidden = list(means)[:-1]  # logits may have any mean
    shifts = {n: abs(means[n]) / stds[n] for n in hidden if stds.get(n, 0.0) > 1e-6}
    bad = [layer for layer, shift in shifts.items() if shift > OFFSET]
    if not bad:
        return None
    worst = max(shifts.values())
    sentence = (
        f"offset: the mean before the activation of {span(bad, len(shifts))} is up to {worst:.1f} "
        "standard deviations from zero"
    )
    fix = "model.norm=batch" if run.key("model.norm") == "none" else run.rate(1 / 3)
    return Finding("offset", "warn", sentence, worst, fix)


def noisy(run: Evidence) -> Finding | None:
    """B1: a train loss that goes up and down from epoch to epoch, without coming to fit the images."""
    if not run.underfits or not run.jumps:
        return None
    batch = int(run.key("trainer.batch_size", 32))
    sentence = f"noisy: with batches of {batch}, the rises of the train loss add up to {run.rises:.0%} of its descent"
    fix = f"trainer.batch_size={4 * batch}" if batch <= 16 else run.rate(1 / 3)
    return Finding("noisy", "warn", sentence, run.rises, fix)
