"""Receipts: a check that passed for a setup is not run again for the same setup (sweeps, repeated runs).

A receipt is stored under a hash of everything that a check depends on: the parts of the config that the check names
(dlrun.checks.check), the measured statistics of the data, the versions of dlrun and torch, and the code: the files
that define the classes of model, loss, penalty and objective with all their bases, modules imported from the same
folders, and the packages of `trust`. For other files there is check.fresh=true. The seed is not in the hash.
Optimizer, schedule and trainer are only in those of the checks that look at them, such as `optimizer`, which steps with
the configured rate. So a sweep over rates runs these quick checks for each rate; `parameters` and all others use fixed
rates and run once per setup. The audit has no receipt, since its hash would depend on the test split; the process that
holds the data remembers it (dlrun.data.audit), so a sweep runs it once per worker. Failures are never stored.
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
from dlrun.models.loading import loaded
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["find", "keep", "key", "setup"]

# covered by a version in the hash: dlrun, torch, the standard library
OURS = frozenset(("dlrun", "torch", "torchvision", *sys.stdlib_module_names))


def setup(exp: Experiment) -> dict[str, Any]:
    """Return everything that checks depend on; called once per suite, since it reads files."""
    return {
        "config": exp.cfg.plain,
        "data": exp.data.record(),
        "code": _sources(exp),
        "weights": made.sha256 if (made := loaded(exp.model)) else "",
        "device": [exp.device.type, str(exp.dtype)],
        "versions": [dlrun.__version__, torch.__version__],
    }


def key(check: Check, setup: Mapping[str, Any]) -> str:
    """Return the hash of a check and everything that it depends on."""
    skip = setup["config"]["check"]["skip"] if check.by_module else []
    omitted = [word for word in skip if word.startswith(f"{check.name}:")]
    config = {part: setup["config"][part] for part in check.depends_on}
    about = {**setup, "check": check.name, "omitted": sorted(omitted), "config": config}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _sources(exp: Experiment) -> list[str]:
    """Hashes of the files that define the classes of model, loss, penalty and objective, and the checks of dlrun."""
    classes = [type(m) for m in [*exp.model.modules(), *exp.loss.modules()]] + [
        type(exp.penalty),
        type(getattr(exp.objective, "inner", exp.objective)),
    ]
    own = {m for c in classes for base in c.__mro__ if not _ours(m := base.__module__)}
    modules = (
        {c.__module__ for c in classes} | own | _beside(own) | {m for m in sys.modules if m.startswith("dlrun.checks.")}
    )
    # a user's class may depend on any file of its package
    modules |= {m for m in sys.modules for t in exp.cfg.trust if m == t or m.startswith(f"{t}.")}
    files = set()
    for name in modules:
        if name.split(".")[0] in ("torch", "torchvision"):
            continue  # their versions are in the hash
        try:
            files.add(inspect.getsourcefile(sys.modules[name]) or "")
        except (TypeError, KeyError):
            continue  # defined interactively: there is no file
    return sorted(hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files if f and Path(f).is_file())


def _ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def _beside(modules: Collection[str]) -> set[str]:
    """Modules imported from the folders of these modules: a user's class may depend on any file in its folder."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    folders = {os.path.dirname(file) for name in modules if (file := files.get(name))}
    return {name for name, file in files.items() if file and os.path.dirname(file) in folders}


def find(receipt: str) -> Verdict | None:
    """Return the verdict stored under `receipt`, with its age in the message; None if there is none."""
    found = read_receipt(receipt)
    if found is None:
        return None
    word = "passed" if found["status"] == Outcome.PASS else "found"
    message = f"{found['message']}; {word} {_age(time.time() - found['time'])} ago"
    return Verdict(Outcome(found["status"]), found["value"], found["expected"], message)


def keep(receipt: str, verdict: Verdict) -> None:
    """Store the verdict of a check, unless it is a failure or the check was skipped."""
    if verdict.status in (Outcome.PASS, Outcome.WARN):
        write_receipt(receipt, {**verdict.__dict__, "time": time.time()})


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
