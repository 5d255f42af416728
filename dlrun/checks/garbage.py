"""C7: what the network learns on a subset holds for samples that it has not seen.

Any network can memorise twenty samples, even with shuffled labels or destroyed pixels. So a copy is trained on a
subset (300 samples of at most 10 classes first, Adam with fixed learning rates) and evaluated on other samples:
training samples held out, and validation samples. Detects: labels that do not match their images, inputs destroyed
on the way (all zero, scrambled), validation labels or images unlike those of training. Whether it beats chance is
decided by a binomial test, with chance computed from how often each class is predicted and occurs. If the network
does not learn the subset itself, the result is undecided, unless all its inputs are equal. Cannot detect: damage
that leaves enough to beat chance, such as a tenth of wrong labels, or classes renamed alike in training and
validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from time import perf_counter

import torch
from torch import Tensor, nn

from dlrun.checks.advice import limited
from dlrun.checks.blame import lost
from dlrun.checks.causes import nearest_mean
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import in_turn, replica, samples, settle, training
from dlrun.checks.smaller import shrunk, smaller_side
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["CLASSES", "garbage"]

CLASSES = 10
SURE, POSSIBLE = 1e-4, 2e-3  # p for a pass, and for a warning at worst: small, since there are 15 evaluations
FIRST, PLAIN = 100, 1e-6  # samples of each kind that are evaluated first, and p below which they are enough
UNLIKE = 1e-3  # p below which validation is above chance, or unlike the held-out training samples
BACKWARD, LOOK = 3, 30  # a training step takes that many forward passes; samples of each kind at least
SECONDS, LEAST = 20.0, 150  # at most; steps below which a failure is not conclusive


@dataclass(frozen=True)
class _Round:
    """How many samples are trained on and held out, at which learning rates, and the steps of the evaluations."""

    slice: int
    held: int
    batch: int
    rates: tuple[float, ...]
    looks: tuple[int, ...]


# most setups pass at the first evaluations; more data for hard tasks, other rates for unusual networks
ROUNDS = (
    _Round(300, 300, 25, (1e-3,), (6, 12, 24, 48, 96)),
    _Round(2000, 1000, 50, (1e-3,), (25, 50, 100, 200)),
    _Round(300, 300, 50, (1e-2, 1e-4), (24, 48, 96)),
)


@check(order=180, needs_outputs=True, timed=True, share=2)
def garbage(exp: Experiment, seconds: float = SECONDS) -> Verdict:
    """Train a copy on a subset and test whether it beats chance on other samples."""
    seconds = min(seconds, SECONDS)
    expected, deadline, steps = f"above chance, p < {SURE:g}", perf_counter() + seconds, 0
    best: _Found | None = None
    learned = False
    for trial in _trials(exp):
        sure: _Found | None = None
        for taken, model, most in _training(exp, trial, deadline):
            steps += taken
            found = trial.evaluate(model, most)
            learned = learned or found.slice_learned
            best = found if best is None or found.p < best.p else best
            sure = found if found.p < SURE else sure
            if sure is found and found.val_above_chance:
                break
        if sure is not None:
            return _learned(sure, expected)
        if perf_counter() > deadline:
            break
    if best is None:
        message = f"too few samples to hold some out, or no trainable parameter; add samples{limited(exp)}"
        return Verdict(Outcome.SKIP, "", expected, message)
    if steps < LEAST or (seconds < SECONDS and perf_counter() > deadline):
        why = "the model is too slow on this device" if seconds == SECONDS else "raise check.budget"
        message = f"undecided after {steps} steps in {seconds:.0f} s: {why}"
        return Verdict(Outcome.SKIP, best.shown, expected, message)
    if best.p < POSSIBLE:
        message = (
            "the network barely generalises from a subset: a hard dataset, or a partly corrupted one; "
            "look at some images and their labels"
        )
        return Verdict(Outcome.WARN, best.shown, expected, message)
    if best.all_right:
        message = "undecided: every held-out image is right, but so many are of one class that chance explains it"
        return Verdict(Outcome.SKIP, best.shown, expected, message)
    if not learned:
        message = f"undecided: in {steps} steps the network did not learn the subset itself; see `overfit`"
        return Verdict(Outcome.SKIP, best.shown, expected, message)
    message = f"the network memorises a subset and does not generalise from it at all: {_why(exp)}"
    return Verdict(Outcome.FAIL, best.shown, expected, message)


def _why(exp: Experiment) -> str:
    """Whether the data or the network is to blame: the means of the pixels know nothing of the network."""
    trial = _trials(exp)[0]
    (x, _), (held, y) = trial.slice, trial.held
    if bool((x == x[0]).all()):
        return f"the inputs are corrupted: all {len(x)} of them are equal; look at the first batch of exp.train"
    guess = nearest_mean(trial.slice, (held, y))
    found = (
        f"the nearest mean of the pixels of a class is right for {int((guess == y).sum())} of {len(y)} held-out images"
    )
    if _p_value(guess, y) < SURE:
        return (
            f"{found}, so images and labels match, and the network loses what they share: look for a layer that mixes "
            "samples, scrambles pixels or depends on the mode; see `independence`, `reach` and `modes`"
            f"{lost(replica(exp), trial.slice, trial.held, _p_value)}"
        )
    return (
        f"{found} as well, which is chance: labels do not match their images (sorted apart, shifted?), or the inputs "
        "are corrupted; look at the first batch of exp.train"
    )


def _learned(found: _Found, expected: str) -> Verdict:
    if found.val_like_held:
        return Verdict(Outcome.PASS, found.shown, expected, "the network generalises from a subset")
    message = (
        "held-out training samples are recognised, validation samples are not: their labels or images differ "
        f"from those of the training split{found.shift}; compare exp.data.val with exp.data.train"
    )
    return Verdict(Outcome.FAIL, found.shown, expected, message)


@dataclass(frozen=True)
class _Found:
    """Result of an evaluation: p over all samples not trained on, and whether validation is like the rest.

    `slice_learned`: the samples trained on beat chance, or cannot, being all equal; `shift`: a shift of the
    labels that explains why validation samples differ.
    """

    p: float
    shown: str
    val_above_chance: bool
    val_like_held: bool
    shift: str
    slice_learned: bool = True
    all_right: bool = False  # every sample that was held out: they are of one class, or few


@dataclass(frozen=True)
class _Trial:
    """A subset to train on, and samples of its classes to evaluate on: held out, and of validation."""

    plan: _Round
    classes: Tensor
    slice: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    def evaluate(self, model: nn.Module, most: int) -> _Found:
        """Evaluate a copy in the middle of its training: on a few samples, and on all if these do not decide.

        `most` is how many samples there is time for.
        """
        settle(model, self.slice[0][: min(FIRST, most)])
        model.eval()
        found = self._scored(model, min(FIRST, most))
        if not (found.p < PLAIN and found.val_above_chance) and most >= self.plan.held:
            found = self._scored(model, self.plan.held)
            if found.p > POSSIBLE:
                found = replace(found, slice_learned=self._slice_learned(model))
        model.train()
        return found

    def _slice_learned(self, model: nn.Module) -> bool:
        x, y = self.slice
        same = bool((x == x[0]).all())
        return same or _p_value(self._predictions(model, x), y) < SURE

    def _predictions(self, model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            scores = torch.cat([model(part).float() for part in torch.split(x, 256)])
        return self.classes[scores[:, self.classes].argmax(1)]

    def _scored(self, model: nn.Module, most: int) -> _Found:
        hits = {}
        for name, (x, y) in (("held", self.held), ("val", self.val)):
            hits[name] = self._predictions(model, x[:most]), y[:most]
        right = {name: int((guess == y).sum()) for name, (guess, y) in hits.items()}
        size = {name: len(y) for name, (_, y) in hits.items()}
        both = torch.cat([guess for guess, _ in hits.values()]), torch.cat([y for _, y in hits.values()])
        p = _p_value(*both)
        above = _p_value(*hits["val"]) < UNLIKE
        # so many misses on validation samples alone are too unlikely to be chance
        like = above or _worse(right["val"], size["val"], right["held"], size["held"]) > UNLIKE
        shown = ", ".join(f"{name} {right[name]} of {size[name]}" for name in hits) + f" right, p {p:.1g}"
        shift = "" if like else _shift(*hits["val"], int(self.classes.max()) + 1)
        return _Found(p, shown, above, like, shift, all_right=right == size)


def _trials(exp: Experiment) -> list[_Trial]:
    """One trial per round, as far as there are samples for it."""
    data = exp.data
    made: list[_Trial] = []
    side = smaller_side(exp)
    counts = torch.bincount(data.train.labels, minlength=exp.num_classes)
    # a few classes: three samples of each of a hundred are too few
    classes = counts.argsort(descending=True, stable=True)[:CLASSES]
    train, val = (_of_classes(split.labels, classes, exp.num_classes) for split in (data.train, data.val))
    sizes = [min(plan.slice, len(train) * 2 // 3) for plan in ROUNDS]
    for plan, size in zip(ROUNDS, sizes, strict=True):
        held = train[size : size + plan.held]
        if (
            size < 2 * len(classes)
            or len(held) + len(val) < 10
            or (plan.slice > ROUNDS[0].slice and size < 2 * sizes[0])
        ):
            continue
        val_samples = samples(exp, plan.held, data.val, val) if len(val) else samples(exp, 1, index=held)
        trained, out = samples(exp, size, index=train), samples(exp, plan.held, index=held)
        parts = [(shrunk(x, side), y) for x, y in (trained, out, val_samples)]
        made.append(_Trial(plan, classes.to(exp.device), *parts))
    return made


def _of_classes(labels: Tensor, classes: Tensor, count: int) -> Tensor:
    """Indices of the samples of some classes, the classes alternating."""
    order = in_turn(labels, count)
    return order[torch.isin(labels[order], classes)]


def _training(exp: Experiment, trial: _Trial, deadline: float) -> Iterator[tuple[int, nn.Module, int]]:
    """Train on the subset at each rate; yield, at each evaluation, the steps since the last one and the model.

    Third comes how many samples of each kind can be evaluated in a quarter of the remaining time.
    """
    x, y = trial.slice
    size = trial.plan.batch
    batches = [both for both in zip(torch.split(x, size), torch.split(y, size), strict=True) if len(both[1]) > 1]
    for rate in trial.plan.rates:
        model, last = replica(exp), 0
        spent, began = 0.0, perf_counter()
        steps = training(exp, model, islice(cycle(batches), trial.plan.looks[-1]), rate)
        for step, _ in enumerate(steps, 1):
            late = (now := perf_counter()) > deadline
            if late or step in trial.plan.looks:
                spent += now - began
                image = spent / step / size / BACKWARD  # seconds of a forward pass of one
                yield step - last, model, max(LOOK, int((deadline - now) / 4 / 3 / max(image, 1e-9)))
                last, began = step, perf_counter()
            if late:
                return


def _p_value(guess: Tensor, y: Tensor) -> float:
    """Probability of so many hits or more if labels and predictions were independent: a binomial upper tail."""
    classes = int(max(guess.max(), y.max())) + 1
    shares = [torch.bincount(v, minlength=classes).cpu().double() / len(y) for v in (guess, y)]
    return _tail(int((guess == y).sum()), len(y), float((shares[0] * shares[1]).sum()))


def _tail(hits: int, n: int, p: float) -> float:
    """P(X ≥ hits) of a binomial."""
    if p >= 1 or hits <= 0:
        return 1.0
    if p <= 0:
        return 0.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(hits, n + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def _worse(hits: int, n: int, others: int, m: int) -> float:
    """Probability that so few of the hits are in these n of n + m samples: lower tail of Fisher's exact test."""
    total = math.comb(n + m, hits + others)
    lowest = max(0, hits + others - m)
    return sum(math.comb(n, k) * math.comb(m, hits + others - k) for k in range(lowest, hits + 1)) / total


def _shift(guess: Tensor, y: Tensor, classes: int) -> str:
    """By how many classes the labels are shifted, if a shift explains them, else ""."""
    for by in range(1, classes):
        if float(((guess + by) % classes == y).float().mean()) > 0.5:
            return f" (labels look shifted: class 0 is labelled {by})"
    return ""
