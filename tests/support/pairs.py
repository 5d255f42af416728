"""Pairs of setups, a faulty one and its repair: a check has to mark the first and not the second (C1-C10)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from dlrun.checks.result import Verdict
from dlrun.checks.runner import CHECKS
from dlrun.checks.sandbox import no_trace
from dlrun.config.settings import Settings
from dlrun.training.experiment import Experiment, build
from support.composed import alter, composed

__all__ = ["Change", "Pair", "checked", "experiment", "wear"]

Change = Callable[[Experiment], None]
HEALTHY = ("dataset.limit=400", "trainer.threads=1", "trainer.device=cpu")


@dataclass(frozen=True)
class Pair:
    """A fault and its repair, the check that separates them, and a word that its message needs.

    `buggy` and `fixed` are overrides, or functions that change a built experiment in place.
    """

    name: str
    check: str
    word: str
    buggy: str | Change = ""
    fixed: str | Change = ""
    common: str = ""
    status: str = ""  # of the faulty one; empty: warn or fail

    def holds(self) -> None:
        """Assert that the check marks the faulty one, with the word, and passes the repaired one."""
        found = checked(self.check, self.common, self.buggy)
        assert found.status in ((self.status,) if self.status else ("warn", "fail")), found
        assert self.word in f"{found.value}: {found.message}", found
        repaired = checked(self.check, self.common, self.fixed)
        assert repaired.status == "pass", repaired


@functools.cache
def _composed(words: str) -> Settings:
    width = () if "model=" in words else ("model.width=8",)
    return composed(*HEALTHY, *width, *words.split())


def _config(words: str) -> Settings:
    """The settings of these overrides; numbers are put in without composing again."""
    simple = {word for word in words.split() if re.match(r"[a-z]+\.[a-z_]+=[-+.e0-9]+$", word) and "epochs" not in word}
    found = _composed(" ".join(word for word in words.split() if word not in simple))
    for word in simple:
        group, _, key = word.partition("=")[0].partition(".")
        assert key in found.plain[group], word
        found = found.changed(**{group: {key: json.loads(word.partition("=")[2])}})
    return found


def experiment(words: str = "", change: str | Change = "") -> Experiment:
    """Build an experiment from overrides, and change it: its parts are shared with others, so exchange whole ones."""
    if isinstance(change, str):
        words, change = f"{words} {change}".strip(), lambda exp: None
    exp = replace(_built(words))
    torch.manual_seed(0)
    change(exp)
    return exp


@functools.cache
def _built(words: str) -> Experiment:
    return build(_config(words))


def checked(check: str, words: str = "", change: str | Change = "") -> Verdict:
    """Run one check on an experiment."""
    exp = experiment(words, change)
    with no_trace():
        return CHECKS[check](exp)


def wear(make: Callable[[], nn.Module]) -> Change:
    """Give the experiment another model, and an optimizer of all its parameters."""

    def change(exp: Experiment) -> None:
        model = make()
        group = {k: v for k, v in exp.optimizer.param_groups[0].items() if k not in ("params", "initial_lr")}
        alter(exp, model=model, optimizer=type(exp.optimizer)([{"params": list(model.parameters()), **group}]))

    return change
