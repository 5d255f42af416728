"""D1, D2, D6: what is wrong with the data itself, before anything is trained on it (`dlrun check`).

`data_audit` tells what dataset.on_bad=drop left out, blank images, and classes with too few samples to learn;
files and labels that cannot be used at all were refused before (dlrun.data). Cannot see images that decode
and are wrong. `data_duplicates` tells exact copies: within train, leaks of train into val and test, and one
image under two labels. Cannot see near-duplicates (another compression, crop or brightness) nor a wrong label
on a single image. `class_balance` tells how uneven the classes are; cannot see whether they are so in the
world as well.

The first two read the test split, to compare and count and for nothing else (D4); the run holds what was
decoded for its end. All rows stand in the run's audit.csv.
"""

from __future__ import annotations

import torch

from dlrun.checks.advice import advice, limited
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named
from dlrun.data.audit import Audit, Finding, audit
from dlrun.training.experiment import Experiment

__all__ = ["class_balance", "data_audit", "data_duplicates"]

FEW = 5  # training samples a class (D1): fewer are learned by heart, and none is left to validate
BLANK = 0.5  # share of a split: a reader that returns nothing, not a dataset with some blanks
# published datasets hold leaks below this share of val or test, which moves a score by less than its noise;
# and one or two copies in a slice of a few dozen images are no rate
LEAKED, FEW_LEAKS = 0.01, 3
REMEDY = "remove one of each pair: the audit.csv of `dlrun train` lists all"
UNEVEN = 1.5  # D6, largest / smallest class


# no receipt: its hash would depend on the test split, which nothing may before training is over (D4)
@check(order=10, keeps_receipt=False)
def data_audit(exp: Experiment) -> Verdict:
    """Tell dropped samples, blank images, and classes with very few samples."""
    data, found = exp.data, audit(exp.data)
    counts = torch.bincount(data.train.labels, minlength=exp.num_classes).tolist()
    bad, blank = found.of("bad"), found.of("constant")
    few = [f"{name} ({count})" for name, count in zip(data.classes, counts, strict=True) if count < FEW]
    value = f"{len(bad)} dropped, {len(blank)} blank, {min(counts)} to {max(counts)} a class"
    expected = f"0, 0, {FEW} or more"
    parts = []
    if bad:
        parts.append(f"dropped as bad: {_ids(bad, 10)}")
    if blank:
        parts.append(f"all pixels are the same in {_ids(blank, 10)}: look at them, remove those that are no images")
    if few:
        parts.append(f"too few training samples of {named(few)}: add some, merge classes{limited(exp)}")
    message = "; ".join(parts) or "every sample can be used"
    if any(len(found.of("constant", name)) > BLANK * size for name, size in found.sizes.items()):
        return Verdict("fail", value, expected, f"most images of a split are blank; {message}")
    return Verdict("warn" if parts else "pass", value, expected, message)


@check(order=20, keeps_receipt=False)
def data_duplicates(exp: Experiment) -> Verdict:
    """Tell leaks between splits, one image under two labels, and copies within a split."""
    found = audit(exp.data)
    leaks = {pair: len(found.of("leak", *pair)) for pair in (("val", "train"), ("test", "train"), ("test", "val"))}
    contradictions, duplicates = found.of("contradiction"), found.of("duplicate")
    value = ", ".join(f"{count} of {other} in {one}" for (one, other), count in leaks.items() if count) or "no leaks"
    crossing = sum(one.split != one.other_split for one in contradictions)
    across = f" ({crossing} of the leaks, {len(contradictions) - crossing} of the copies)" if crossing else ""
    value += f", {len(contradictions)} under two labels{across}, {len(duplicates)} copies within a split"
    parts = []
    if any(leaks.values()):
        parts.append(f"scores are flattered by images seen in training or selection: {_pairs(found.of('leak'))}")
    if contradictions:
        parts.append(f"one image, two labels: {_pairs(contradictions)}")
    if len(duplicates) > LEAKED * sum(found.sizes.values()):
        parts.append(f"copies weigh more than other images: {_pairs(duplicates)}")
    if not parts:
        return Verdict("pass", value, "no leaks", f"splits are apart{_few(duplicates)}")
    heavy = [split for split in ("val", "test") if _leaked(found, split) > max(FEW_LEAKS, LEAKED * found.sizes[split])]
    expected = f"no leaks; fails with more than {FEW_LEAKS} of a split that are more than {LEAKED:.0%} of it"
    return Verdict("fail" if heavy else "warn", value, expected, f"{'; '.join(parts)}; {REMEDY}")


@check(order=30)
def class_balance(exp: Experiment) -> Verdict:
    """Compare the largest class of the training split with the smallest."""
    counts = torch.bincount(exp.data.train.labels, minlength=exp.num_classes)
    low, high = int(counts.argmin()), int(counts.argmax())
    least, most = int(counts[low]), int(counts[high])
    ratio = most / max(1, least)
    names = exp.data.classes
    value, expected = (
        f"{ratio:.2f} ({names[high]} {most}, {names[low]} {least})",
        f"≤ {UNEVEN:g}, largest / smallest",
    )
    if ratio <= UNEVEN:
        return Verdict("pass", value, expected, "classes are even")
    if exp.data.balance:
        return Verdict("pass", value, expected, "classes are uneven, and drawn alike by dataset.balance=true")
    message = f"uneven classes: {names[high]} is favoured over {names[low]}, and accuracy hides it"
    return Verdict("warn", value, expected, message + advice(exp, "dataset.balance=true"))


def _leaked(found: Audit, split: str) -> int:
    """Samples of a split that an earlier one has; a sample that two have counts once."""
    return len({one.id for one in found.of("leak", split)})


def _ids(found: list[Finding], most: int) -> str:
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(one.id for one in found[:most]) + more


def _pairs(found: list[Finding]) -> str:
    def shown(one: Finding) -> str:
        labels = f" ({one.label}, {one.other_label})" if one.label != one.other_label else ""
        return f"{one.id} = {one.other_id}{labels}"

    return named([shown(one) for one in found])


def _few(duplicates: list[Finding]) -> str:
    return f"; some copies within a split, such as {_pairs(duplicates[:1])}" if duplicates else ""
