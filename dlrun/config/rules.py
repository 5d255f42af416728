"""Ranges and choices that the type of a default cannot tell, key by key (`dlrun train trainer.epochs=0`).

Names that the families choose from stand here a second time, since reading them there would import torch;
a test keeps both in step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dlrun.config.check_names import check_names

__all__ = ["ANY_TARGET", "CHOICES", "MIXED", "RULES", "Rule"]

Rule = tuple[Callable[[Any], bool], str]  # what must hold, and how to say it

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.device": ("auto", "cpu", "cuda", "mps"),
    "trainer.precision": ("auto", "fp32", "bf16"),
    # columns of metrics.csv that may decide which epoch is best: all but the epoch and its rate
    "trainer.monitor": (
        *("val_acc", "val_loss", "train_acc", "train_loss", "penalty", "grad_norm", "update_ratio", "dead_fraction"),
        *("train_seconds", "eval_seconds", "samples_per_second", "memory_mb"),
    ),
    "trainer.multi_crop": ("none", "mirror", "mirror_translate"),
    "search.sampler": ("auto", "grid", "random", "grid_jitter", "sobol", "tpe"),
    "search.direction": ("auto", "min", "max"),
    "search.prune": ("none", "median", "hyperband"),
    "logger.kind": ("none", "tensorboard", "mlflow"),
    "trainer.keep": ("last", "best", "top3", "all"),
    "model.activation": (
        *("relu", "leaky_relu", "prelu", "elu", "gelu", "silu"),
        *("tanh", "sigmoid", "softsign", "maxout"),
    ),
    "model.norm": ("batch", "layer", "group", "none"),
    "model.pool": ("max", "avg", "stride", "none"),
    "model.stem": ("small", "imagenet"),
    "model.shortcut": ("pad", "projection"),
    "model.block": ("basic", "bottleneck"),
    "model.init": (
        *("default", "he_normal", "normal", "uniform"),
        *("glorot_uniform", "glorot_sigmoid", "orthogonal"),
    ),
    "model.output_bias": ("default", "frequency"),
    "dataset.layout": ("NHWC", "NCHW"),
    "dataset.on_bad": ("error", "drop"),
    "augment.padding": ("zero", "reflect"),
    "optimizer.line_search_fn": ("strong_wolfe",),
}


def _at_least(low: float) -> Rule:
    return (lambda v: low <= v < math.inf), f"{low} or more"


def _all(rule: Rule) -> Rule:
    return (lambda v: isinstance(v, list) and bool(v) and all(rule[0](i) for i in v)), f"a list, each {rule[1]}"


def _up_to(high: float) -> Rule:
    return (lambda v: 0 <= v <= high), f"between 0 and {high:g}"


def _count(low: int) -> Rule:
    return (lambda v: type(v) is int and v >= low), f"a whole number, {low} or more"


def _some_of(words: tuple[str, ...]) -> Rule:
    return (lambda v: isinstance(v, list) and set(v) <= set(words)), f"a list of {', '.join(words)}"


POSITIVE: Rule = (lambda v: 0 < v < math.inf), "more than 0"
SHARE: Rule = (lambda v: 0 <= v < 1), "0 or more and less than 1"
BETWEEN: Rule = (lambda v: 0 < v < 1), "more than 0 and less than 1"
FOLDER: Rule = (lambda v: str(v).strip() != ""), "the name of a folder"

RULES: dict[str, Rule] = {
    "seed": ((lambda v: type(v) is int and 0 <= v < 2**63), "a whole number, 0 or more and less than 2**63"),
    "run.dir": FOLDER,
    "sweep.dir": FOLDER,
    "trainer.epochs": _count(1),
    "trainer.stop_after": _count(0),
    "trainer.batch_size": _count(1),
    "trainer.eval_batch_size": _count(1),
    "trainer.accumulate": _count(1),
    "trainer.threads": _count(0),
    "trainer.patience": _count(0),
    "trainer.ema": SHARE,
    "objective.temperature": POSITIVE,
    "objective.alpha": _up_to(1),
    "trainer.clip_norm": _at_least(0),
    "trainer.clip_value": _at_least(0),
    "dataset.val_fraction": BETWEEN,
    "dataset.test_fraction": BETWEEN,
    "dataset.split_seed": _count(0),
    "dataset.limit": _count(0),
    "dataset.memory_gb": _at_least(0),
    "dataset.cache_gb": _at_least(0),
    "dataset.image_size": _count(0),
    "dataset.num_classes": _count(0),
    "dataset.channels": ((lambda v: v in (1, 3)), "1 or 3"),
    "check.budget": _at_least(0),
    "check.only": _some_of(check_names()),
    "check.skip": _some_of(check_names()),
    "augment.pad": _count(0),
    "augment.flip": ((lambda v: v is True or v is False or v == "alternating"), "true, false or alternating"),
    "augment.rotate": _up_to(180),
    "augment.shift": _up_to(1),
    "augment.shear": _up_to(60),
    "augment.scale": SHARE,
    "augment.skew": _up_to(0.4),
    **{f"augment.{tone}": _up_to(1) for tone in ("brightness", "contrast", "saturation", "noise")},
    "augment.hue": _up_to(0.5),
    "augment.blur": _at_least(0),
    "augment.cutout": _count(0),
    "augment.randaugment": _count(0),
    "augment.magnitude": ((lambda v: type(v) is int and 0 <= v <= 30), "a whole number between 0 and 30"),
    "regularizer.l1": _at_least(0),
    "regularizer.l2": _at_least(0),
    "regularizer.max_norm": _at_least(0),
    "regularizer.dropout": SHARE,
    "regularizer.label_smoothing": SHARE,
    "model.depth": _count(0),
    "model.width": _count(1),
    "model.widths": _all(_count(1)),
    "model.blocks": _all(_count(1)),
    "model.kernel_size": ((lambda v: v > 0 and v % 2 == 1), "an odd number: 1, 3, 5, 7 …"),
    "model.maxout_pieces": _count(2),
    "model.dropout": SHARE,
    "loss.label_smoothing": SHARE,
    "loss.margin": POSITIVE,
    "optimizer.lr": _at_least(0),
    "optimizer.momentum": SHARE,
    "optimizer.steps": _count(1),
    "optimizer.sgd_lr": _at_least(0),
    "optimizer.sgd_momentum": SHARE,
    "optimizer.betas": (
        (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v)),
        "two numbers, 0 or more and less than 1",
    ),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.eps": _at_least(0),
    "optimizer.rho": _up_to(1),
    "optimizer.alpha": _at_least(0),
    "optimizer.lr_decay": _at_least(0),
    "optimizer.initial_accumulator_value": _at_least(0),
    "optimizer.max_iter": _count(1),
    "optimizer.history_size": _count(1),
    "optimizer.tolerance_grad": _at_least(0),
    "optimizer.tolerance_change": _at_least(0),
    "scheduler.warmup": _at_least(0),
    "scheduler.momentum_start": SHARE,
    "scheduler.momentum_end": SHARE,
    "scheduler.momentum_epochs": _at_least(0),
    "scheduler.epochs": POSITIVE,
    "scheduler.tau": POSITIVE,
    "scheduler.every": POSITIVE,
    "scheduler.period": POSITIVE,
    "scheduler.mult": _at_least(1),
    "scheduler.k": _at_least(0),
    "scheduler.gamma": _at_least(0),
    "scheduler.final": _at_least(0),
    "scheduler.start": _at_least(0),
    "scheduler.warm_fraction": BETWEEN,
    "scheduler.milestones": _all(_at_least(0)),
    "scheduler.factor": BETWEEN,
    "scheduler.patience": _count(0),
    "scheduler.threshold": _at_least(0),
    "scheduler.cooldown": _count(0),
    "scheduler.min_lr": _at_least(0),
}
CHOICES["search.metric"] = CHOICES["trainer.monitor"]
RULES |= {
    "search.trials": _count(0),
    "search.seed": _count(0),
    "search.retries": _count(0),
    "search.timeout": _at_least(0),
    "search.max_extend": _count(0),
    "search.fresh": _at_least(0),
    "search.average": SHARE,
    "hydra.launcher.workers": _count(0),
}
for _key, _words in CHOICES.items():
    RULES[_key] = (lambda v, words=_words: v in words), f"one of {', '.join(_words)}"  # type: ignore[misc]

MIXED = {"augment.flip"}  # true, false or a word: the type of the default does not tell what may stand there

# read by dlrun whatever the `_target_`; the other keys of these groups belong to it and mean what it says
ANY_TARGET = {"model.init", "model.output_bias"}
ANY_TARGET |= {f"dataset.{k}" for k in ("val_fraction", "test_fraction", "split_seed", "limit", "memory_gb")}
ANY_TARGET |= {"dataset.cache_gb"}
ANY_TARGET |= {"dataset.on_bad", "dataset.balance"}
ANY_TARGET |= {f"scheduler.{k}" for k in ("warmup", "momentum_start", "momentum_end", "momentum_epochs")}
ANY_TARGET |= {f"regularizer.{k}" for k in ("dropout", "label_smoothing")}
