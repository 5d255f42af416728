"""C7: what is learned on a slice holds for samples the network has not seen.

Any network learns twenty samples by heart, labels shuffled or pixels destroyed. So a copy is trained on a
slice (at most 300 samples of at most 10 classes, Adam with rates of its own) and asked about samples
outside of it: training samples held out, and validation samples. Sees: labels that do not belong to their
images, inputs destroyed on the way (all zero, scrambled), validation labels or images that are unlike the
training ones. Beating chance is a binomial test, with chance taken from how often each class is predicted
and occurs. A network that learns nothing of the slice itself proves nothing about the rest: undecided, but
where all its inputs are the same. Cannot see: damage that spares enough to beat chance, such as a tenth of
wrong labels, nor a renaming of classes that train and validation share.
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
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import in_turn, replica, samples, settle, training
from dlrun.training.experiment import Experiment

__all__ = ["garbage"]

CLASSES = 10
SURE, POSSIBLE = 1e-4, 2e-3  # p for a pass and for no worse than a warning: small, since one looks 15 times
FIRST, PLAIN = 100, 1e-6  # samples of each kind that are asked first, and p under which they do
UNLIKE = 1e-3  # p under which validation is above chance, or unlike the training samples held out
SECONDS, LEAST = 20.0, 150  # spent at most; fewer steps than these say nothing


@dataclass(frozen=True)
class _Round:
    """How many samples are trained on and asked about, at which rates, and after which steps one looks."""

    slice: int
    held: int
    batch: int
    rates: tuple[float, ...]
    looks: tuple[int, ...]


# most setups pass at the first looks; more data for hard tasks, other rates for odd networks
ROUNDS = (
    _Round(300, 300, 25, (1e-3,), (6, 12, 24, 48, 96)),
    _Round(2000, 1000, 50, (1e-3,), (25, 50, 100, 200)),
    _Round(300, 300, 50, (1e-2, 1e-4), (24, 48, 96)),
)


@check(order=180, needs_outputs=True, timed=True)
def garbage(exp: Experiment, seconds: float = SECONDS) -> Verdict:
    """Train a copy on a slice and test whether it beats chance on samples it was not trained on."""
    seconds = min(seconds, SECONDS)
    expected, deadline, steps = f"above chance, p < {SURE:g}", perf_counter() + seconds, 0
    best: _Found | None = None
    learned = False
    for trial in _trials(exp):
        sure: _Found | None = None
        for taken, model in _training(exp, trial, deadline):
            steps += taken
            found = trial.ask(model)
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
        message = f"too few samples to hold some out, or nothing that trains; add samples{limited(exp)}"
        return Verdict("skip", "", expected, message)
    if best.p < POSSIBLE:
        message = (
            "what is learned on a slice barely holds elsewhere: a hard dataset, or one partly destroyed; "
            "look at some images and their labels"
        )
        return Verdict("warn", best.shown, expected, message)
    if steps < LEAST or (seconds < SECONDS and perf_counter() > deadline):
        why = "too slow here for this model" if seconds == SECONDS else "raise check.budget"
        message = f"undecided after {steps} steps in {seconds:.0f} s: {why}"
        return Verdict("skip", best.shown, expected, message)
    if not learned:
        message = f"undecided: in {steps} steps the network learned nothing of the slice itself; see overfit"
        return Verdict("skip", best.shown, expected, message)
    message = (
        "nothing that is learned on a slice holds for other samples: labels do not belong to their images, "
        "or the inputs were destroyed; if overfit passes, look at the first batch of exp.train"
    )
    return Verdict("fail", best.shown, expected, message)


def _learned(found: _Found, expected: str) -> Verdict:
    if found.val_like_held:
        return Verdict("pass", found.shown, expected, "what is learned on a slice holds for other samples")
    message = (
        "training samples held out are recognised, validation samples are not: their labels or images differ "
        f"from the training split's{found.shift}; compare exp.data.val with exp.data.train"
    )
    return Verdict("fail", found.shown, expected, message)


@dataclass(frozen=True)
class _Found:
    """What a look found: p over all samples not trained on, and whether validation is like the rest.

    `slice_learned` says whether the samples trained on beat chance, or could not, being all the same; `shift`
    which renaming of the classes explains validation samples that are unlike.
    """

    p: float
    shown: str
    val_above_chance: bool
    val_like_held: bool
    shift: str
    slice_learned: bool = True


@dataclass(frozen=True)
class _Trial:
    """A slice to train on, and samples of its classes to ask about: held out, and of validation."""

    plan: _Round
    classes: Tensor
    slice: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    def ask(self, model: nn.Module) -> _Found:
        """Test a copy that is in training: on a few samples, and on all where these do not make it plain."""
        settle(model, self.slice[0][:FIRST])
        model.eval()
        found = self._asked(model, FIRST)
        if not (found.p < PLAIN and found.val_above_chance):
            found = self._asked(model, self.plan.held)
            if found.p > POSSIBLE:
                found = replace(found, slice_learned=self._slice_learned(model))
        model.train()
        return found

    def _slice_learned(self, model: nn.Module) -> bool:
        x, y = self.slice
        same = bool((x == x[0]).all())
        return same or _p_value(self._guesses(model, x), y) < SURE

    def _guesses(self, model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            scores = torch.cat([model(part).float() for part in torch.split(x, 256)])
        return self.classes[scores[:, self.classes].argmax(1)]

    def _asked(self, model: nn.Module, most: int) -> _Found:
        hits = {}
        for name, (x, y) in (("held", self.held), ("val", self.val)):
            hits[name] = self._guesses(model, x[:most]), y[:most]
        right = {name: int((guess == y).sum()) for name, (guess, y) in hits.items()}
        size = {name: len(y) for name, (_, y) in hits.items()}
        both = torch.cat([guess for guess, _ in hits.values()]), torch.cat([y for _, y in hits.values()])
        p = _p_value(*both)
        above = _p_value(*hits["val"]) < UNLIKE
        # more luck is needed to miss so often on validation samples alone than one has
        like = above or _worse(right["val"], size["val"], right["held"], size["held"]) > UNLIKE
        shown = ", ".join(f"{name} {right[name]} of {size[name]}" for name in hits) + f" right, p {p:.1g}"
        return _Found(p, shown, above, like, "" if like else _shift(*hits["val"], int(self.classes.max()) + 1))


def _trials(exp: Experiment) -> list[_Trial]:
    """A trial a round, as far as there are samples for it."""
    data = exp.data
    made: list[_Trial] = []
    counts = torch.bincount(data.train.labels, minlength=exp.num_classes)
    # a few classes: three samples of each of a hundred prove nothing
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
        asked = samples(exp, plan.held, data.val, val) if len(val) else samples(exp, 1, index=held)
        trained, out = samples(exp, size, index=train), samples(exp, plan.held, index=held)
        made.append(_Trial(plan, classes.to(exp.device), trained, out, asked))
    return made


def _of_classes(labels: Tensor, classes: Tensor, count: int) -> Tensor:
    """Indices of the samples of some classes, the classes in turn."""
    order = in_turn(labels, count)
    return order[torch.isin(labels[order], classes)]


def _training(exp: Experiment, trial: _Trial, deadline: float) -> Iterator[tuple[int, nn.Module]]:
    """Train on the slice at each rate; yield, at each look, the steps since the last and the model."""
    x, y = trial.slice
    size = trial.plan.batch
    batches = [both for both in zip(torch.split(x, size), torch.split(y, size), strict=True) if len(both[1]) > 1]
    for rate in trial.plan.rates:
        model, last = replica(exp), 0
        steps = training(exp, model, islice(cycle(batches), trial.plan.looks[-1]), rate)
        for step, _ in enumerate(steps, 1):
            late = perf_counter() > deadline
            if late or step in trial.plan.looks:
                yield step - last, model
                last = step
            if late:
                return


def _p_value(guess: Tensor, y: Tensor) -> float:
    """Chance of so many hits or more if labels had nothing to do with guesses, a binomial's upper tail."""
    classes = int(max(guess.max(), y.max())) + 1
    shares = [torch.bincount(v, minlength=classes).double() / len(y) for v in (guess, y)]
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
    """P that so few of the hits fall on these n of n + m samples: the lower tail of Fisher's exact test."""
    total = math.comb(n + m, hits + others)
    lowest = max(0, hits + others - m)
    return sum(math.comb(n, k) * math.comb(m, hits + others - k) for k in range(lowest, hits + 1)) / total


def _shift(guess: Tensor, y: Tensor, classes: int) -> str:
    """How many classes the labels are shifted by, where that explains them."""
    for by in range(1, classes):
        if float(((guess + by) % classes == y).double().mean()) > 0.5:
            return f" (they look shifted: class {by} stands for class 0)"
    return ""
