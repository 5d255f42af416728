"""D3, and the shapes around the model: its inputs, the labels, and its outputs.

`inputs` (D3) looks at what training and validation are really fed, without augmentation: it detects values that
are not finite, images that are all equal, raw pixels, a split normalised with other statistics. Beyond the bands
shown three standard errors are allowed, since a few thousand images are a sample; validation has wider bands,
since it is normalised with the statistics of the training split. `labels` (D1) detects labels out of range and
classes that a split lacks. `outputs` (C1: without logits there is no loss) detects a wrong number of logits
and a forward pass that raises. None of them detects images or labels that are well formed and wrong: C7 does.
"""

from __future__ import annotations

import copy
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.checks.advice import advice, limited, raised_at
from dlrun.checks.check import check
from dlrun.checks.pretrained import disagreement
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, replica, samples
from dlrun.data.batches import Batches
from dlrun.data.splits import Split
from dlrun.errors import first_line
from dlrun.models.outputs import logits_of
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome, worst

__all__ = ["inputs", "labels", "outputs"]

OFF = 0.1  # D3, of mean and std
OFF_VAL = 0.5  # validation is normalised with the statistics of the training split, and may differ from it
RAW_MEAN, RAW_STD = 3.0, 4.0  # beyond: a raw scale
IMAGES, VALUES = 2000, 20_000_000  # measured at most


@check(order=50, labels=False)
def inputs(exp: Experiment) -> Verdict:
    """Compare mean and standard deviation of what the model is fed with 0 and 1, channel by channel.

    If other statistics than those of the training split normalise, with what these make of them.
    """
    shown, expected = [], f"mean 0, std 1, each ± {OFF}, of val ± {OFF_VAL}"
    shift, scale = _normalised_otherwise(exp)
    found: list[tuple[Outcome, str]] = []
    for name, batches, split, allowed in (
        ("train", exp.train, exp.data.train, OFF),
        ("val", exp.val, exp.data.val, OFF_VAL),
    ):
        if not len(split):
            continue  # no validation split
        x, index = _fed(batches)
        bad = ~x.isfinite().flatten(1).all(1)
        if bad.any():
            ids = [split.ids[i] for i in index[bad].tolist()]
            message = (
                f"{len(ids)} {name} images have values that are not finite: {named(ids)}; they were finite when "
                "read, so look at what changes them afterwards, or for values that float32 cannot represent"
            )
            return Verdict(Outcome.FAIL, "nan or inf", expected, message)
        if len(x) > 1 and bool((x == x[:1]).all()):
            message = (
                f"all {len(x)} {name} images are identical, so there is nothing to learn; look at how they are read"
            )
            return Verdict(Outcome.FAIL, f"{name} constant", expected, message)
        mean, std, slack = _moments((x - shift) / scale)
        shown.append(f"{name} mean {_widest(mean):+.2f}, std {_widest(std - 1) + 1:.2f}")
        off = torch.maximum(mean.abs(), (std - 1).abs())
        found.append(_judge(name, mean, std, bool((off - slack > allowed).any())))
    # a problem of the training split explains one of validation, which its statistics normalise
    status, message = next(one for one in found if one[0] == worst(status for status, _ in found))
    if status == Outcome.PASS and (problem := disagreement(exp)):
        status, message = Outcome.WARN, problem
    return Verdict(status, "; ".join(shown), expected, message)


def _normalised_otherwise(exp: Experiment) -> tuple[Tensor, Tensor]:
    """What dataset.normalize makes of mean 0 and std 1, each (C, 1, 1)."""
    own = exp.data.own or (exp.data.mean, exp.data.std)
    mean, std, given, by = (torch.tensor(part).view(-1, 1, 1) for part in (*own, exp.data.mean, exp.data.std))
    return (mean - given) / by, std / by


def _judge(name: str, mean: Tensor, std: Tensor, off: bool) -> tuple[Outcome, str]:
    flat = [str(c) for c in (std == 0).nonzero().flatten().tolist()]
    if float(mean.abs().max()) > RAW_MEAN or float(std.max()) > RAW_STD:
        return Outcome.FAIL, (
            f"the {name} images have a raw scale (0 to 255?): "
            "normalise them with mean and std of the training split, as exp.batches(split) does"
        )
    if flat:
        return (
            Outcome.WARN,
            f"channel {named(flat)} of the {name} images is constant and carries no information; remove it",
        )
    if off:
        return Outcome.WARN, (
            f"the {name} images are not normalised to mean 0 and std 1: "
            "use mean and std of the training split for all splits, as exp.batches(split) does"
        )
    return Outcome.PASS, "inputs are normalised"


def _fed(batches: Batches) -> tuple[Tensor, Tensor]:
    """A random choice of the images (N, C, H, W) as the model is fed them, and their indices in the split (N,)."""
    plain = copy.copy(batches)
    plain.augment, plain.shuffle, plain.batch_size, plain.drop_last = None, True, 64, False
    plain.balance, plain.crop = False, None  # the statistics are those of whole images
    images: list[Tensor] = []
    numbers: list[Tensor] = []
    with closing(plain.epoch(0)) as epoch:  # type: ignore[type-var]
        for x, _, index in epoch:
            images.append(x)
            numbers.append(index.cpu())
            if len(images) * 64 >= min(IMAGES, max(64, VALUES // x[0].numel())):
                break
    return torch.cat(images).cpu(), torch.cat(numbers)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and std per channel (C,), and three standard errors of the less certain one: N images are a sample."""
    flat = x.double().flatten(2)
    means, squares = flat.mean(2), flat.square().mean(2)
    mean = means.mean(0)
    std = (squares.mean(0) - mean.square()).clamp_min(0).sqrt()
    if len(x) < 2:
        return mean, std, torch.full_like(mean, float("inf"))
    errors = means.std(0), squares.std(0) / (2 * std.clamp_min(1e-6))
    return mean, std, 3 * torch.maximum(*errors) / len(x) ** 0.5


def _widest(values: Tensor) -> float:
    return float(values[values.abs().argmax()])


@check(order=40)
def labels(exp: Experiment) -> Verdict:
    """Look for labels out of range and for classes that training or validation lacks."""
    classes, data = exp.num_classes, exp.data
    expected = f"0 to {classes - 1}, every class"
    for name, split in (("train", data.train), ("val", data.val)):
        found = split.labels
        out = [split.ids[i] for i in ((found < 0) | (found >= classes)).nonzero().flatten().tolist()]
        if out:
            message = (
                f"{len(out)} labels of {name} are out of range: {named(out)}; number classes from 0 to {classes - 1}"
            )
            return Verdict(Outcome.FAIL, f"{int(found.min())} to {int(found.max())}", expected, message)
    missing = _missing(exp, data.train)
    if missing:
        message = (
            f"no training sample of class {named(missing)}, so the model cannot learn it; "
            f"look at how labels are read{limited(exp)}"
        )
        return Verdict(Outcome.FAIL, f"{classes - len(missing)} classes", expected, message)
    missing = _missing(exp, data.val) if len(data.val) else []
    if missing:
        # dlrun's own fold is stratified; a validation split of the dataset may lack a class for a reason
        status, where = Outcome.FAIL, "the fold was stratified, so look for code that changes exp.data.val"
        if data.val_fraction is None:
            status, where = Outcome.WARN, "add some to the validation split of the dataset"
        message = f"no validation sample of class {named(missing)}: its errors are not measured; {where}"
        return Verdict(status, f"{classes - len(missing)} classes in val", expected, message)
    return Verdict(Outcome.PASS, f"{classes} classes in train and val", expected, "every class is present")


def _missing(exp: Experiment, split: Split) -> list[str]:
    """Classes that the split lacks, although three samples or more are expected from their share."""
    share = torch.bincount(exp.data.train.labels, minlength=exp.num_classes).double() / len(exp.data.train)
    there = torch.bincount(split.labels, minlength=exp.num_classes)
    lacking = there == 0
    if split is not exp.data.train:
        lacking &= share * len(split) >= 3
    return [exp.data.classes[c] for c in lacking.nonzero().flatten().tolist()]


@check(order=60, labels=False)
def outputs(exp: Experiment) -> Verdict:
    """Run four samples forward, in training and in evaluation mode, and look at the logits."""
    classes = exp.num_classes
    x, _ = samples(exp, 4)
    expected = f"({len(x)}, {classes})"
    model = replica(exp)
    for mode in ("training", "evaluation"):
        model.train(mode == "training")
        try:
            with torch.no_grad():
                outputs = model(x)
        except Exception as error:
            message = f"the model raises an error in {mode} mode on images {tuple(x.shape)}{raised_at(error)}: "
            message += f"{first_line(error)}; check the sizes of its layers"
            return Verdict(Outcome.FAIL, type(error).__name__, expected, message)
        # auxiliary classifiers return more, but only while they train
        logits = logits_of(outputs) if mode == "training" else outputs
        if not isinstance(logits, Tensor):
            kind = type(outputs).__name__
            message = (
                f"the model returns a {kind} in {mode} mode: return the logits; others may follow them in training"
            )
            return Verdict(Outcome.FAIL, kind, expected, message)
        if tuple(logits.shape) != (len(x), classes):
            message = (
                f"the model must return one logit for each of {classes} classes: "
                f"set its last layer to num_classes={classes}"
            )
            return Verdict(Outcome.FAIL, str(tuple(logits.shape)), expected, message)
        if not bool(logits.isfinite().all()):
            message = f"outputs of the untrained model are not finite in {mode} mode: {_first_bad(exp, model, x)}"
            return Verdict(Outcome.FAIL, "nan or inf", expected, message)
    return Verdict(Outcome.PASS, str(tuple(logits.shape)), expected, "one logit per class")


def _first_bad(exp: Experiment, model: nn.Module, x: Tensor) -> str:
    """Where in a forward pass values first are not finite, and what to try."""
    for name, p in model.named_parameters():
        if not bool(p.isfinite().all()):
            return f"{name} has such values; look at how it is initialised{advice(exp, 'model.init=default')}"
    places: list[str] = []

    def look(module: nn.Module, args: Any, output: Any, name: str) -> None:
        if places or not isinstance(output, Tensor) or bool(output.isfinite().all()):
            return
        came = any(isinstance(a, Tensor) and not bool(a.isfinite().all()) for a in args)
        where = f"{name} ({type(module).__name__})" if name else "its forward()"
        places.append(f"they appear {'before' if came else 'in'} {where}")

    hooks = [m.register_forward_hook(partial(look, name=n)) for n, m in model.named_modules()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    where = places[0] if places else "they do not appear every time"
    what = "; look for a root or logarithm of 0, or a division by 0"
    return f"{where}{what}{advice(exp, 'model.init=default', 'model.norm=batch')}"
