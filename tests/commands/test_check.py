"""`dlrun check --explain` says what a check sees, what it cannot, and its numbers for a setup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.checks.explanation import explained
from dlrun.checks.runner import CHECKS
from support.commands import Outcome


def test_every_check_says_what_it_detects_and_what_it_cannot() -> None:
    lacking = [name for name, check in CHECKS.items() if not explained(check).blind or not explained(check).how]
    assert lacking == []
    assert explained(CHECKS["overfit"]).practices == ("C3",)
    assert {key for key, _, _ in explained(CHECKS["descent"]).numbers} >= {"UPHILL", "REACH"}


@pytest.mark.parametrize("width", [80, 120])
def test_a_check_is_explained_with_its_numbers_for_the_setup(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = dlrun("check", "--explain", "schedule", "trainer.epochs=7", "model.width=8", "trainer.threads=1")
    assert found.code == 0, found.err
    assert max(map(len, found.out.splitlines())) <= width
    assert "schedule: " in found.out
    assert "7 epochs" in found.out
    assert "check.skip=[schedule]" in found.out
    assert "IDLE = 0.001" in found.out


def test_an_unknown_check_is_corrected(here: Path, dlrun: Callable[..., Outcome]) -> None:
    found = dlrun("check", "--explain", "shedule", "model=mlp")
    assert (found.code, "--explain schedule" in found.err) == (2, True)
    assert "gradient" in dlrun("check", "--explain").err
    assert dlrun("check", "--explain=penalty", "model.width=4", "trainer.threads=1").code == 0
