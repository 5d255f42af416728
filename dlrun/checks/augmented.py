"""D7: no augmentation makes images of one class look like those of another; `dlrun check`.

A linear probe (dlrun/checks/probe.py) is fitted to training images. If it takes held-out images of a class for another
one once they are mirrored or turned, and these are as near to images of that class as its own are, before and after
augmentation, the class is changed and the label is not. So it is if it takes two classes for each other, and
augmentation turns images that far. Detects: flips and turns of text, digits, arrows, left and right. Cannot detect:
changes of a class that nearest images do not show, or colours that decide it.
"""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.probe import Features, fitted, small
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import in_turn
from dlrun.checks.unlike import TURNS
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["augmented"]

FITTED, ASKED = 1200, 600  # images
VALUES = 2_500_000  # pixels that are augmented; of large images fewer are
LEAST = 6  # images of a class that the probe recognises
TAKEN, AFTER = 0.6, 0.15  # share of them that are like the other class once turned, and after augmentation
BEFORE = 0.1  # and as they are
SAME, TURNED = 0.7, 0.04  # correlation with the turned image, and share of augmented images that have it
NEAR = 0.9  # of the images of a class are as near to another one of it
QUARTER = 45  # degrees of rotation, from which a turn by 90 may be meant
TURNING = ("flip", "flip_vertical", "randaugment", "trivialaugment", "augmix")
FIXES = {"mirrored": "augment.flip=false", "upside down": "augment.flip_vertical=false"}


@check(order=76, needs_outputs=True)
def augmented(exp: Experiment) -> Verdict:
    """Ask a linear probe what mirrored, turned and augmented training images look like."""
    expected, classes = "images that stay in their class", exp.num_classes
    if not _turns(exp):
        return Verdict(Outcome.PASS, "no flips or turns", expected, "nothing to judge")
    order = in_turn(exp.data.train.labels, classes)
    fit = order[: min(FITTED, len(order) * 2 // 3)]
    height, width, _ = exp.data.shape
    held = order[len(fit) :][: min(ASKED, max(ASKED // 6, VALUES // (height * width)))]
    if len(fit) < 2 * classes or len(held) < LEAST:
        return Verdict(Outcome.SKIP, "not run", expected, "too few samples for a probe")
    known, asked = _fed(exp, fit), _fed(exp, held)
    features = Features(known)
    x, y, truth = features(known), exp.data.train.labels[fit], exp.data.train.labels[held]

    def ask(images: Tensor) -> Tensor:
        return fitted(x, y, features(images), classes)

    plain, made = ask(asked), _fed(exp, held, augment=True)
    made = adaptive_avg_pool2d(made, (asked.shape[2], asked.shape[3]))  # with augment.eval_crop these are larger
    for word, turn in TURNS.items():
        other = turn(asked.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        if other.shape != asked.shape:
            continue
        names, pairs = exp.data.classes, _changed(plain, ask(other), truth)
        for a, b in pairs:
            share, after, before = (
                _near(images[truth == a], known, y, b, asked[truth == b]) for images in (other, made, asked)
            )
            found = f"images of {names[a]} that are {word} look like {names[b]}"
            if share >= TAKEN and after >= AFTER + before:
                found += f" ({share:.0%} of them are nearest to one), and {after:.0%} of the augmented images do, whose"
            elif (b, a) in pairs and (share := _turned(asked, word, made)) >= TURNED:
                found += (
                    f" to a probe, and the reverse, and {share:.0%} of the augmented images are turned that far, whose"
                )
            else:
                continue
            message = f"{found} label stays: leave this change out{advice(exp, FIXES.get(word, 'augment.rotate=10'))}"
            return Verdict(Outcome.WARN, f"{names[a]} {word} is like {names[b]}", expected, message)
    right = float((plain.argmax(1) == truth).float().mean())
    return Verdict(Outcome.PASS, f"a probe is right about {right:.2f}", expected, "no class is turned into another")


def _turns(exp: Experiment) -> bool:
    """Whether the augmentation may mirror or turn images; one of another package may."""
    keys = exp.cfg.plain.get("augment") or {}
    if not str(type(exp.train.augment).__module__).startswith("dlrun."):
        return exp.train.augment is not None
    return any(bool(keys.get(key)) for key in TURNING) or float(keys.get("rotate") or 0.0) >= QUARTER


def _fed(exp: Experiment, index: Tensor, augment: bool = False) -> Tensor:
    """Training images (N, C, H, W), small, with or without augmentation."""
    options = {"augment": exp.train.augment, "seed": int(torch.randint(1 << 20, ()))} if augment else {}
    batches = exp.batches(exp.data.train.subset(index), batch_size=256, **options)
    parts = []
    with closing(batches.epoch(99)) as epoch:  # type: ignore[type-var]
        for x, _, _ in epoch:
            parts.append(small(x.cpu().float()))
    return torch.cat(parts)


def _changed(plain: Tensor, turned: Tensor, y: Tensor) -> list[tuple[int, int]]:
    """Classes a and b of which images of a are like b once they are turned, by likenesses (N, K) and labels (N,)."""
    answers, then, found = plain.argmax(1), turned.argmax(1), []
    for a in range(plain.shape[1]):
        mine = (y == a) & (answers == a)
        if int(mine.sum()) < LEAST:
            continue
        shares = torch.bincount(then[mine], minlength=plain.shape[1]).double() / int(mine.sum())
        shares[a] = 0
        b = int(shares.argmax())
        if float(shares[b]) >= TAKEN and float((answers[y == a] == b).double().mean()) <= BEFORE:
            found.append((a, b))
    return found


def _turned(images: Tensor, word: str, made: Tensor) -> float:
    """The share of images (N, C, H, W) that augmentation turned so, of those that no other turn makes alike."""
    turned = {name: turn(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for name, turn in TURNS.items()}
    ways = {"": images} | {name: x for name, x in turned.items() if x.shape == images.shape}
    rows, now = {name: _plain(x) for name, x in ways.items()}, _plain(made)
    others = torch.stack([(x * rows[word]).sum(1) for name, x in rows.items() if name != word]).amax(0)
    likest = torch.stack([(x * now).sum(1) for x in rows.values()])
    like = (likest.argmax(0) == list(rows).index(word)) & (likest.amax(0) >= SAME)
    return float(like[others < SAME].double().mean()) if bool((others < SAME).any()) else 0.0


def _near(images: Tensor, known: Tensor, y: Tensor, b: int, usual: Tensor) -> float:
    """The share of images whose nearest training image is of class b, as near as those of b usually are."""
    far = torch.cdist(_plain(images), _plain(known))
    mine = far[:, y == b].amin(1)
    limit = torch.cdist(_plain(usual), _plain(known[y == b])).amin(1).quantile(NEAR)
    return float(((mine <= far.amin(1)) & (mine <= limit)).double().mean())


def _plain(x: Tensor) -> Tensor:
    """Images as rows of length 1 around their mean."""
    flat = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
    return torch.nn.functional.normalize(flat)
