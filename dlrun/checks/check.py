"""A check: one function with attributes, such as when it runs and what its receipt depends on (C1-C10).

To add a check, write one file in this folder with one decorated function; nothing else is touched:

    @check(order=165, needs_outputs=True)
    def calibration(exp: Experiment) -> Verdict:

The runner finds it by walking the folder, runs it in `dlrun check` and `dlrun train`, writes it into checks.csv and
keeps a receipt. `check.only` and `check.skip` know its name without importing it (dlrun.config.check_names).
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlrun.checks.result import Verdict
from dlrun.training.experiment import Experiment

__all__ = ["SETUP", "Check", "check", "find_checks"]

# the parts of the config that any check may depend on: what is trained, on what, and for which loss
SETUP = ("model", "loss", "dataset", "regularizer", "objective", "augment")


@dataclass(frozen=True)
class Check:
    """A check and its attributes.

    name: that of the function; used in checks.csv, check.only and check.skip
    order: checks run in ascending order, cheap and informative ones first, so that as many as possible fit into
        check.budget; a literal number, since the config reads it from the source
    needs_outputs: it is skipped if the check `outputs` failed, since it would only repeat that failure
    timed: the function takes its seconds as its second argument, and ends in time
    share: its share of the remaining time, against those of the timed checks that are still to come
    depends_on: the parts of the config that its receipt depends on
    keeps_receipt: whether a pass or a warning may be reused for the same setup
    by_module: it can omit single modules, check.skip=[NAME:MODULE] (dlrun.checks.exempt)
    labels: whether it needs labels and a model that learns them; if so it is left out of a run without labels (M10)
    """

    name: str
    function: Callable[..., Verdict]
    order: int
    needs_outputs: bool = False
    timed: bool = False
    depends_on: tuple[str, ...] = SETUP
    keeps_receipt: bool = True
    by_module: bool = False
    share: float = 1.0
    labels: bool = True

    @property
    def module(self) -> str:
        """The dotted name of the module that defines it."""
        return self.function.__module__

    def __call__(self, exp: Experiment, seconds: float = math.inf) -> Verdict:
        """Return the verdict on an experiment; `seconds` is passed to the function if it is timed."""
        return self.function(exp, seconds) if self.timed else self.function(exp)


def check(
    *,
    order: int,
    needs_outputs: bool = False,
    timed: bool = False,
    depends_on: tuple[str, ...] = SETUP,
    keeps_receipt: bool = True,
    by_module: bool = False,
    share: float = 1.0,
    labels: bool = True,
) -> Callable[[Callable[..., Verdict]], Check]:
    """Make a function a check; the attributes are those of `Check`."""

    def decorate(function: Callable[..., Verdict]) -> Check:
        name = function.__name__
        return Check(name, function, order, needs_outputs, timed, depends_on, keeps_receipt, by_module, share, labels)

    return decorate


def find_checks() -> dict[str, Check]:
    """Return the checks that the modules of this folder define, by name, in the order in which they run."""
    found = []
    for module in pkgutil.walk_packages([str(Path(__file__).parent)], "dlrun.checks."):
        values = vars(importlib.import_module(module.name)).values()
        found += [value for value in values if isinstance(value, Check) and value.module == module.name]
    return {one.name: one for one in sorted(found, key=lambda one: (one.order, one.name))}
