"""The names of checks are read from source: quickly, in order, and only from functions that are checks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dlrun.config.check_names import check_names

SOURCE = '''"""For example

    @check(order=1)
    def in_a_docstring(exp): ...
"""


@check(order=20)
def late(exp):
    pass


@other
@check(
    timed=True,  # (a comment
    depends_on=(*SETUP, "trainer"),
    order=10,
)
def early(exp, seconds):
    pass


def helper(exp):
    pass
'''


def test_names_stand_in_order_of_their_checks_and_other_functions_are_none(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(SOURCE)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "two.py").write_text("@check(order=15)\ndef middle(exp):\n    pass\n")
    assert check_names(tmp_path) == ("early", "middle", "late")


def test_an_order_that_is_no_literal_is_an_error_with_the_name(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("@check(order=LAST)\ndef lost(exp):\n    pass\n")
    with pytest.raises(ValueError, match="lost"):
        check_names(tmp_path)
    (tmp_path / "one.py").write_text("@check(timed=True)\ndef lost(exp):\n    pass\n")
    check_names.cache_clear()
    with pytest.raises(ValueError, match="lost"):
        check_names(tmp_path)


def test_reading_the_names_takes_less_than_10_ms() -> None:
    taken = []
    for _ in range(5):
        check_names.cache_clear()
        started = time.perf_counter()
        check_names()
        taken.append(time.perf_counter() - started)
    assert min(taken) < 0.01
