"""A check in plain words, with its numbers for a setup: `dlrun check --explain overfit model=resnet20` (C1-C10)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from dlrun.config.practices import PRACTICES
from dlrun.config.settings import Settings
from dlrun.console import Screen
from dlrun.run.gate import headline
from dlrun.vocabulary import Exit

__all__ = ["explain_check"]

WIDTH = 100  # columns at most: longer lines are hard to read


def explain_check(cfg: Settings, name: str) -> int:
    """Print what a check does, sees and cannot see, run it on this setup, and print what it measured; returns 0."""
    from dlrun import checks
    from dlrun.checks.explanation import explained
    from dlrun.checks.runner import CHECKS
    from dlrun.training.experiment import build

    screen = Screen()
    width = min(screen.console.width, WIDTH)
    screen.wait("reading the data …")
    exp = build(cfg.changed(check={"only": [name], "skip": [], "fresh": True, "enabled": True}))
    screen.wait(f"running {name} …")
    (found,) = checks.run(exp)
    told = explained(CHECKS[name])

    def lines() -> Iterator[str]:
        yield from textwrap.wrap(f"{name}: {told.does}", width)
        yield ""
        yield from textwrap.wrap(told.how, width)
        for sentence in told.blind:
            yield ""
            yield from textwrap.wrap(sentence, width)
        if told.numbers:
            yield ""
            yield "numbers that it compares with, and their reasons:"
        for key, value, reason in told.numbers:
            yield from textwrap.wrap(
                f"{key} = {value}: {reason}",
                width,
                initial_indent="  ",
                subsequent_indent="      ",
                break_on_hyphens=False,
            )
        yield ""
        yield "here:"
        yield from textwrap.wrap(headline(exp).partition("\n")[0], width, initial_indent="  ", subsequent_indent="  ")
        rows = {
            "result": f"{found.status}, after {found.seconds:.2g} seconds",
            "measured": found.value,
            "expected": found.expected,
            "meaning": found.message,
        }
        for key, text in rows.items():
            if text:
                yield from textwrap.wrap(f"  {key:<10}{text}", width, subsequent_indent=" " * 12)
        yield ""
        for practice in told.practices:
            yield from textwrap.wrap(f"{practice}: {PRACTICES[practice]}", width)
        yield from textwrap.wrap(f"To omit it: check.skip=[{name}]; to run it alone: check.only=[{name}]", width)

    screen.print("\n".join(lines()))
    return Exit.FINE
