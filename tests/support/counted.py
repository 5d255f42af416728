"""Small setups for the suite of checks, and which of its checks really run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dlrun.checks import runner
from dlrun.checks.result import Verdict
from dlrun.training.experiment import Experiment, build
from support.composed import composed

CHEAP = ("dataset.limit=120", "model.width=4", "trainer.threads=1", "check.only=[loss,initial_loss,overfit]")


def built(*overrides: str) -> Experiment:
    return build(composed(*CHEAP, *overrides))


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """Let a check run another function; its other attributes stay."""
    monkeypatch.setitem(runner.CHECKS, name, replace(runner.CHECKS[name], function=function))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count which checks really run."""
    ran: list[str] = []

    def watch(name: str, check: Any) -> Any:
        def call(exp: Experiment, *more: Any) -> Verdict:
            ran.append(name)
            found: Verdict = check(exp, *more)
            return found

        return call

    for name, check in list(runner.CHECKS.items()):
        replaced(monkeypatch, name, watch(name, check.function))
    return ran
