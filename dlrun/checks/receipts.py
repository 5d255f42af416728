"""Receipts: a check that passed for a setup need not run again for the same setup (sweeps, repeated runs).

A receipt is kept under a hash of all that a check depends on: the config of model, loss, data, regularizer, objective
and augmentation, what the data measured to, the versions of dlrun and torch, and the code: the files that define the
classes of model, loss, penalty and objective with all their bases, what was imported from beside them, and the packages
of `trust`. For files that lie elsewhere, check.fresh=true. The seed is not in the hash. Optimizer, schedule and trainer
are in that of `optimizer` alone, which steps with the configured rate: so it is what a sweep over rates runs for each
rate (four steps of 16 images); `parameters` and all others step with a rate of their own, once a setup. The audit,
whose receipt would depend on the test split, is instead remembered by the process that holds the data
(dlrun.data.audit): a sweep does it once a worker. Failures are never kept.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

import dlrun
from dlrun.checks.check import Check
from dlrun.checks.result import Verdict
from dlrun.folders.memo import read_receipt, write_receipt
from dlrun.training.experiment import Experiment

__all__ = ["find", "keep", "key", "setup"]

# what a version stands for: dlrun, torch, Python's own
OURS = frozenset(("dlrun", "torch", "torchvision", *sys.stdlib_module_names))


def setup(exp: Experiment) -> dict[str, Any]:
    """Return all that checks depend on; read once for a suite, for it reads files."""
    return {
        "config": exp.cfg.plain,
        "data": exp.data.record(),
        "code": _sources(exp),
        "device": [exp.device.type, str(exp.dtype)],
        "versions": [dlrun.__version__, torch.__version__],
    }


def key(check: Check, setup: Mapping[str, Any]) -> str:
    """Return the hash that stands for a check and everything it depends on."""
    about = {**setup, "check": check.name, "config": {part: setup["config"][part] for part in check.depends_on}}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _sources(exp: Experiment) -> list[str]:
    """Hashes of the files that define the classes of model, loss and penalty, and dlrun's own checks."""
    classes = [type(m) for m in [*exp.model.modules(), *exp.loss.modules()]] + [
        type(exp.penalty),
        type(exp.objective),
    ]
    own = {m for c in classes for base in c.__mro__ if not _ours(m := base.__module__)}
    modules = (
        {c.__module__ for c in classes} | own | _beside(own) | {m for m in sys.modules if m.startswith("dlrun.checks.")}
    )
    # a user's class may lean on any file of its package
    modules |= {m for m in sys.modules for t in exp.cfg.trust if m == t or m.startswith(f"{t}.")}
    files = set()
    for name in modules:
        if name.split(".")[0] in ("torch", "torchvision"):
            continue  # their versions stand for them
        try:
            files.add(inspect.getsourcefile(sys.modules[name]) or "")
        except (TypeError, KeyError):
            continue  # defined at a prompt: no file to read
    return sorted(hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files if f and Path(f).is_file())


def _ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def _beside(modules: Collection[str]) -> set[str]:
    """The modules imported from the folders of these files: a user's class may lean on any file beside its own."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    folders = {os.path.dirname(file) for name in modules if (file := files.get(name))}
    return {name for name, file in files.items() if file and os.path.dirname(file) in folders}


def find(receipt: str) -> Verdict | None:
    """Return the verdict that was kept under `receipt`, worded with its age."""
    found = read_receipt(receipt)
    if found is None:
        return None
    word = "passed" if found["status"] == "pass" else "found"
    message = f"{found['message']}; {word} {_age(time.time() - found['time'])} ago"
    return Verdict(found["status"], found["value"], found["expected"], message)


def keep(receipt: str, verdict: Verdict) -> None:
    """Remember the verdict of a check, unless it is a failure or nothing was checked."""
    if verdict.status in ("pass", "warn"):
        write_receipt(receipt, {**verdict.__dict__, "time": time.time()})


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
