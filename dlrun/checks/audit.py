"""D1, D2, D6: problems in the data itself, reported before training (`dlrun check`).

`data_audit` reports groups in two splits, samples that dataset.on_bad=drop left out, blank images, classes with too few
samples, and the sizes of files, with a warning if `dataset.resize=crop` leaves out much of them; files and labels that
cannot be used at all were refused earlier (dlrun.data). Cannot detect images that decode but show the wrong thing.
`data_duplicates` reports exact copies within train, leaks of train into val and test, one image under two labels, and
near duplicates (another compression, size or brightness, a mirror image, a slight crop; across splits, for a sample of
val and test, shifts, turns and crops as well). Cannot detect crops to less than 80 % of a side, or a wrong label on a
single image. `class_balance` reports unbalanced classes; cannot detect whether they are so in reality
as well.

The first two read the test split, only to compare and count (D4); the run keeps the decoded images for its final
test. All findings are listed in the run's audit.csv.
"""

from __future__ import annotations

import torch

from dlrun.checks.advice import advice, limited
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named
from dlrun.data.audit import VEILED, Audit, Finding
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["class_balance", "data_audit", "data_duplicates"]

FEW = 5  # training samples per class (D1): fewer are memorised, and none is left for validation
CUT = 0.2  # share of the median image that crop may leave out without a warning
BLANK = 0.5  # share of a split: the reader is broken, it is not a dataset with a few blank images
# published datasets have leaks below this share of val or test, which changes a score by less than its noise;
# one or two copies in a subset of a few dozen images are not a rate
LEAKED, FEW_LEAKS = 0.01, 3
REMEDY = "remove one image of each pair: `dlrun train` lists all in audit.csv"
PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
UNEVEN = 1.5  # D6, largest / smallest class


# no receipt: its hash would depend on the test split, which nothing may before training is over (D4)
@check(order=10, keeps_receipt=False, labels=False)
def data_audit(exp: Experiment) -> Verdict:
    """Report dropped samples, blank images, and classes with very few samples."""
    data, found = exp.data, exp.data.audit
    counts = data.counts
    bad, blank = found.of("bad"), found.of("constant")
    few = [f"{name} ({count})" for name, count in zip(data.classes, counts, strict=True) if count < FEW]
    value = f"{len(bad)} dropped, {len(blank)} blank, {min(counts)} to {max(counts)} per class"
    expected = f"0, 0, {FEW} or more"
    parts = []
    if bad:
        parts.append(f"dropped as bad: {_ids(bad, 10)}")
    if plain := [one for one in blank if one.detail != VEILED]:
        parts.append(f"all pixels are equal in {_ids(plain, 10)}: look at these and remove broken images")
    if veiled := [one for one in blank if one.detail == VEILED]:
        message = f"on the background, transparency makes {_ids(veiled, 10)} blank"
        parts.append(message + advice(exp, "dataset.background=black", "dataset.background=average"))
    if found.files and found.files.lost > CUT:
        message = f"dataset.resize=crop leaves out {found.files.lost:.0%} of the median image"
        parts.append(message + advice(exp, "dataset.resize=squash", "dataset.resize=letterbox"))
    if few:
        parts.append(f"too few training samples of {named(few)}: add samples, merge classes{limited(exp)}")
    looked = [str(found.files)] if found.files else []
    whole = found.sample or "all samples are usable"
    message = "; ".join([*(parts or [whole]), *([found.sample] if parts and found.sample else []), *looked])
    if divided := found.of("group"):
        shown = named([f"{one.detail} ({one.other_split}, {one.split})" for one in divided])
        remedy = "divide by groups: dataset.split_column=none, or another column"
        return Verdict(Outcome.FAIL, value, expected, f"in two splits: {shown}; {remedy}; {message}")
    if any(len(found.of("constant", name)) > BLANK * size for name, size in found.sizes.items()):
        return Verdict(Outcome.FAIL, value, expected, f"most images of a split are blank; {message}")
    return Verdict(Outcome.WARN if parts else Outcome.PASS, value, expected, message)


@check(order=20, keeps_receipt=False, labels=False)
def data_duplicates(exp: Experiment) -> Verdict:
    """Report leaks between splits, one image under two labels, and copies within a split."""
    found = exp.data.audit
    leaks = {pair: len(found.of("leak", *pair)) for pair in PAIRS}
    contradictions, duplicates = found.of("contradiction"), found.of("duplicate")
    value = (
        ", ".join(f"{count} {other} images in {one}" for (one, other), count in leaks.items() if count) or "no leaks"
    )
    crossing = sum(one.split != one.other_split for one in contradictions)
    across = f" ({crossing} of the leaks, {len(contradictions) - crossing} of the copies)" if crossing else ""
    value += f", {len(contradictions)} under two labels{across}, {len(duplicates)} copies within a split"
    counts, near = _near(found)
    value, parts = value + counts, list[str]()
    if any(leaks.values()):
        parts.append(f"scores are inflated by images that training or selection has seen: {_pairs(found.of('leak'))}")
    if contradictions:
        parts.append(f"one image has two labels: {_pairs(contradictions)}")
    if len(duplicates) > LEAKED * sum(found.sizes.values()):
        parts.append(f"copies count more than other images: {_pairs(duplicates)}")
    parts += near
    if not parts:
        return Verdict(
            Outcome.PASS,
            value,
            "no leaks",
            f"no image is in two splits{_few(duplicates)}{_alike(found)}{_sample(found)}",
        )
    heavy = [split for split in ("val", "test") if _leaked(found, split) > max(FEW_LEAKS, LEAKED * found.sizes[split])]
    expected = f"no leaks; a failure if more than {FEW_LEAKS} images and {LEAKED:.0%} of val or test are leaked"
    return Verdict(
        Outcome.FAIL if heavy else Outcome.WARN, value, expected, f"{'; '.join(parts)}{_sample(found)}; {REMEDY}"
    )


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
        return Verdict(Outcome.PASS, value, expected, "classes are balanced")
    weight = exp.cfg.loss.get("weight", "none") if getattr(exp.loss, "class_weight", None) is not None else "none"
    if exp.data.balance and weight in ("balanced", "effective"):
        message = (
            f"dataset.balance=true and loss.weight={weight} correct twice: rare classes count more than frequent ones"
        )
        return Verdict(Outcome.WARN, value, expected, message + advice(exp, "loss.weight=none"))
    if exp.data.balance:
        message = "classes are unbalanced, and dataset.balance=true samples them equally"
        return Verdict(Outcome.PASS, value, expected, message)
    if weight != "none":
        return Verdict(Outcome.PASS, value, expected, "classes are unbalanced, and loss.weight makes up for it")
    message = f"unbalanced classes: training favours {names[high]} over {names[low]}, and accuracy hides it"
    return Verdict(Outcome.WARN, value, expected, message + advice(exp, "loss.weight=balanced", "dataset.balance=true"))


def _leaked(found: Audit, split: str) -> int:
    """How many samples of a split are also in an earlier one; a sample that is in both earlier ones counts once."""
    return len({one.id for one in found.of("leak", split)})


def _ids(found: list[Finding], most: int) -> str:
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(one.id for one in found[:most]) + more


def _pairs(found: list[Finding]) -> str:
    def shown(one: Finding) -> str:
        labels = f" ({one.label}, {one.other_label})" if one.label != one.other_label else ""
        return f"{one.id} {'≈' if one.kind == 'near duplicate' else '='} {one.other_id}{labels}"

    return named([shown(one) for one in found])


def _near(found: Audit) -> tuple[str, list[str]]:
    """The counts of near duplicates, and what is wrong with them, in words."""
    near = found.of("near duplicate")
    across = {pair: len({one.id for one in found.of("near duplicate", *pair)}) for pair in PAIRS}
    split = [one for one in near if one.label != one.other_label]
    if not near:
        return "", []
    shown = [f"{count} of {one} in {other}" for (one, other), count in across.items() if count]
    value = f", {len(near)} near duplicates{f' ({named(shown)})' if shown else ''}"
    parts = []
    if crossing := [one for one in near if one.split != one.other_split]:
        parts.append(f"nearly the same image is in two splits: {_pairs(crossing)}")
    if split:
        parts.append(f"nearly the same image has two labels: {_pairs(split)}")
    return value, parts


def _sample(found: Audit) -> str:
    return f"; {found.sample}" if found.sample else ""


def _alike(found: Audit) -> str:
    return "; most images look like several others, so that near duplicates are not listed" if found.alike else ""


def _few(duplicates: list[Finding]) -> str:
    return f"; a few copies within a split, such as {_pairs(duplicates[:1])}" if duplicates else ""
