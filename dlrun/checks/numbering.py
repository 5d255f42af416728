"""D4: labels of training and validation number the classes alike, and belong to their images; `dlrun check`.

A linear probe (ridge regression on small images and random patches: Coates et al. 2011, An Analysis of Single-Layer
Networks) is fitted to a part of the training images and asked about others: held out of train, and of validation. It
knows nothing of the model. Detects: classes numbered in another order or from another start in one split, two classes
exchanged in one, labels that belong to the row before or that are reversed, validation images that are mirrored or
turned, validation labels of which many are wrong though its images are like those of train. Labels of test are never
read. Cannot detect: classes exchanged alike in all splits, classes that such a probe cannot tell apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.checks.check import check
from dlrun.checks.confusion import exchanged
from dlrun.checks.probe import Features, fitted, seen
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import in_turn, named
from dlrun.checks.unlike import TURNS, alike
from dlrun.data.images import InMemory
from dlrun.data.splits import Split
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["numbering"]

FITTED, ASKED, STREAMED = 1500, 1000, 0.4  # images, and the share of them if each has to be decoded
LEAST = 40  # images of a split that are asked about
SURE, LOWER = 5.0, 0.5  # standard errors, and the share of the held-out score that makes validation far lower
GAIN = 3.5  # standard errors of answers that become right
KEPT, TURNED = 0.6, 0.75  # of the held-out score: what classes or images that are put right have to reach, and less


@check(order=46)
def numbering(exp: Experiment) -> Verdict:
    """Fit a linear probe to training images, and compare its score on validation with that on held-out images."""
    expected, classes = "validation like held-out training images", exp.num_classes
    train, val = exp.data.train, exp.data.val
    share = 1.0 if isinstance(train.images, InMemory) else STREAMED
    order = in_turn(train.labels, classes)
    fit = order[: min(round(FITTED * share), len(order) * 2 // 3)]
    held = order[len(fit) :][: round(ASKED * share)]
    if len(held) < LEAST or len(fit) < 2 * classes:
        return Verdict(Outcome.SKIP, "not run", expected, "too few samples for a probe")
    features = Features(seen(train, fit))
    x, asked = features(seen(train, fit)), features(seen(train, held))
    likeness = fitted(x, train.labels[fit], asked, classes)
    guess = likeness.argmax(1)
    chance = _score(guess[torch.randperm(len(guess))], train.labels[held])
    now = _score(guess, train.labels[held])
    shown = f"held {now.rate:.2f}"
    if not now.above(chance):
        for word, labels in _orders(train):
            if _score(fitted(x, labels[fit], asked, classes).argmax(1), labels[held]).above(chance):
                return Verdict(Outcome.FAIL, shown, expected, _rows("training", word))
        message = "undecided: a linear probe recognises nothing of the held-out images; see `garbage`"
        return Verdict(Outcome.SKIP, shown, expected, message)
    if len(val) < LEAST or val.images.shape != train.images.shape:
        return Verdict(Outcome.PASS, shown, expected, "labels belong to their images")
    index = in_turn(val.labels, classes)[: round(ASKED * share)]
    pixels = seen(val, index)
    there, truth = fitted(x, train.labels[fit], features(pixels), classes), val.labels[index]
    answers = there.argmax(1)
    found = _score(answers, truth)
    shown += f", val {found.rate:.2f}"
    if (
        other_numbers := _renumbered(answers, truth, _by_class(guess, train.labels[held], classes), classes)
    ) is not None:
        return Verdict(Outcome.FAIL, shown, expected, _names(exp, other_numbers))
    if (pair := exchanged((likeness, train.labels[held]), (there, truth))) is not None:
        order = torch.arange(classes)
        order[list(pair)] = order[list(pair[::-1])]
        return Verdict(Outcome.FAIL, shown, expected, _names(exp, order))
    if found.rate < TURNED * now.rate:
        turned = _turned(
            lambda images: fitted(x, train.labels[fit], features(images), classes).argmax(1), pixels, answers, truth
        )
        if turned is not None and turned[1] > KEPT * now.rate:
            return Verdict(Outcome.FAIL, shown, expected, _looks(found.rate, *turned))
    if not now.above(found):
        return Verdict(Outcome.PASS, shown, expected, "labels of both splits number the classes alike")
    for word, labels in _orders(val):
        other = _score(answers, labels[index])
        if other.above(found) and other.rate > KEPT * now.rate:
            return Verdict(Outcome.FAIL, shown, expected, _rows("val", word))
    if found.rate - chance.rate < LOWER * (now.rate - chance.rate) and alike(seen(train, held), pixels):
        message = (
            f"a linear probe is right about {now.rate:.0%} of held-out training images and {found.rate:.0%} of val, "
            "though these look like them: many labels of val are wrong, or belong to other images; look at some"
        )
        return Verdict(Outcome.WARN, shown, expected, message)
    return Verdict(Outcome.PASS, shown, expected, "validation is harder, but no other numbering explains it")


@dataclass(frozen=True)
class _Score:
    """Share of right answers, and the number of them asked for."""

    rate: float
    count: int

    def above(self, other: _Score) -> bool:
        """Whether the difference is too large for chance."""
        pooled = (self.rate * self.count + other.rate * other.count) / (self.count + other.count)
        error = math.sqrt(max(pooled * (1 - pooled), 0.01) * (1 / self.count + 1 / other.count))
        return bool(self.rate - other.rate > SURE * error)


def _score(guess: Tensor, y: Tensor) -> _Score:
    return _Score(float((guess == y).double().mean()), len(y))


def _by_class(guess: Tensor, y: Tensor, classes: int) -> Tensor:
    """Counts of answers (K, K): rows are the labels, columns what the probe answers."""
    return torch.bincount(y * classes + guess, minlength=classes**2).view(classes, classes).double()


def _looks(rate: float, word: str, undone: float) -> str:
    return (
        f"val images look {word} compared with training images: a linear probe is right about {rate:.0%} of them as "
        f"they are and {undone:.0%} if that is undone; read every split by the same code"
    )


def _turned(ask: Callable[[Tensor], Tensor], x: Tensor, before: Tensor, y: Tensor) -> tuple[str, float] | None:
    """How images (N, C, H, W) are turned, if that undone makes far more answers right, and the share of these."""
    found = []
    for word, turn in TURNS.items():
        other = turn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        right, was = ask(other) == y if other.shape == x.shape else before == y, before == y
        better, worse = int((right & ~was).sum()), int((was & ~right).sum())
        if better - worse > GAIN * math.sqrt(better + worse):
            found.append((float(right.double().mean()), word))
    return max(found)[::-1] if found else None


def _renumbered(guess: Tensor, y: Tensor, held: Tensor, classes: int) -> Tensor | None:
    """Which class of train each class of validation is (K,), if another numbering explains the answers.

    It is chosen on one half of the images and judged on the other, so that it cannot fit noise.
    """
    from scipy.optimize import linear_sum_assignment

    likely = ((held + 0.5) / (held + 0.5).sum(1, keepdim=True)).log()
    halves = [torch.arange(len(y)) // classes % 2 == half for half in (0, 1)]  # the classes alternate
    renamed = torch.empty_like(y)
    for mine, other in (halves, halves[::-1]):
        _, columns = linear_sum_assignment(-(_by_class(guess[mine], y[mine], classes) @ likely.T).numpy())
        renamed[other] = torch.from_numpy(columns)[y[other]]
    moved = renamed != y
    if not moved.any():
        return None
    better, worse = (int(((guess == a) & (guess != b) & moved).sum()) for a, b in ((renamed, y), (y, renamed)))
    right = held.diagonal() / held.sum(1).clamp_min(1)
    reach, before = float((guess == renamed)[moved].double().mean()), float((guess == y)[moved].double().mean())
    wanted = float(right[renamed[moved]].mean())
    if better - worse < GAIN * math.sqrt(better + worse) or reach < KEPT * wanted or before > LOWER * wanted:
        return None
    _, columns = linear_sum_assignment(-(_by_class(guess, y, classes) @ likely.T).numpy())
    return torch.from_numpy(columns)


def _names(exp: Experiment, order: Tensor) -> str:
    """The sentence on another numbering; `order` (K,) is which class of train each class of validation is."""
    classes, numbers = exp.data.classes, order.tolist()
    count = len(numbers)
    pairs = [f"{classes[a]} of val is {classes[b]} of train" for a, b in enumerate(numbers) if a != b]
    text = sorted(range(count), key=str)
    why = "folders or a list sorted in another way, or another mapping from names to numbers"
    shifts = {(b - a) % count for a, b in enumerate(numbers)}
    if len(shifts) == 1:
        by = min(shifts) if min(shifts) <= count // 2 else min(shifts) - count
        why = f"numbers shifted by {abs(by)}: counted from 0 in one split and from 1 in the other"
    elif numbers == text or [numbers[n] for n in text] == list(range(count)):
        why = "classes sorted as text (0, 1, 10, 11, 2) in one split and as numbers in the other"
    return (
        f"validation numbers {len(pairs)} of {count} classes differently: {named(pairs)}; {why}. "
        "Make the numbers of all splits from one list, such as sorted(set(names)) of train"
    )


def _rows(split: str, word: str) -> str:
    return (
        f"labels of {split} do not belong to their images, but do if they are {word}: images and labels were read in "
        "different orders; sort both by the same key, or store each label beside its image"
    )


def _orders(split: Split) -> Iterator[tuple[str, Tensor]]:
    """Yield labels of a split in other orders of its rows, and a word for each."""
    numbers = [int(end.group()) if (end := re.search(r"\d+$", name)) else -1 for name in split.ids]
    rows = torch.tensor(numbers)
    place = rows.argsort(stable=True) if int(rows.min()) >= 0 else torch.arange(len(rows))
    ordered = split.labels[place]
    words = {"taken from the row before": ordered.roll(1), "taken from the row after": ordered.roll(-1)}
    words["reversed"] = ordered.flip(0)
    text = torch.tensor(sorted(range(len(rows)), key=str))
    words["sorted as text (0, 1, 10, 100, 11)"] = ordered[text]
    words["sorted as numbers, not as text"] = ordered[text.argsort()]
    for word, labels in words.items():
        made = torch.empty_like(labels)
        made[place] = labels
        yield word, made
