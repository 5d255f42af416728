"""What a person sees of long work, with a terminal and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dlrun import console
from dlrun.console import Screen


def test_long_work_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE", 0.0)
    assert list(Screen().work("abc", 3, "predicting", lambda: "12 images")) == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines() == [f"predicting: {n} of 3, 12 images" for n in (1, 2, 3)]


def test_short_work_without_a_terminal_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Screen().work("abc", 3, "predicting", lambda: "12 images")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("shown", "label"), [("work", "predicting"), ("steps", "epoch 2/5")], ids=["one piece of work", "an epoch"]
)
def test_a_terminal_has_a_bar_with_its_own_name(shown: str, label: str) -> None:
    screen = Screen()
    screen.console, screen.live = Console(file=io.StringIO(), force_terminal=True, width=80), True
    with screen:
        items = (
            screen.work("abc", 3, label, lambda: "loss 0.5")
            if shown == "work"
            else screen.steps("abc", 3, 2, 5, lambda: "loss 0.5")
        )
        assert list(items) == ["a", "b", "c"]
    text = screen.console.file.getvalue()  # type: ignore[attr-defined]
    assert label in text
    assert "loss 0.5" in text
