"""The screen during a run: on a terminal a live bar and one row per epoch, otherwise plain lines (`dlrun train`).

Everything printed also goes to the run's log.txt.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Screen"]

T = TypeVar("T")
REFRESH = 0.1  # seconds between two updates of the bar: reading the loss may wait for the accelerator
LINE = 10.0  # seconds between two plain lines of long work


class Screen:
    """The terminal, or plain lines without one; use as a context manager around training."""

    def __init__(self, log: Path | None = None, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self.log = log
        self._bar: Any = None
        self._warned: set[str] = set()
        self._unread = quiet  # nobody reads: training continues and the log is complete

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar and write it to the log."""
        self.note(text)
        if self._unread:
            return
        try:
            (self._bar.console if self._bar else self.console).print(text, style=style, markup=False)
            sys.stdout.flush()
        except (OSError, SystemExit):  # rich exits when nobody reads any more (`dlrun train | head`)
            self._unread = True
            self.live = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def note(self, text: str) -> None:
        """Write a line to the log alone."""
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def show(self, table: Callable[[], Any], lines: list[str]) -> None:
        """Print a rich table on a terminal, otherwise the same as lines; the log gets the lines."""
        if self.live:
            self.console.print(table())
        for line in lines:
            self.note(line) if self.live else self.say(line)

    def steps(self, items: Iterable[T], total: int, epoch: int, epochs: int, look: Callable[[], str]) -> Iterator[T]:
        """Yield the steps of an epoch; `look` returns the loss as text and is called only when the bar is drawn."""
        if not self.live:
            yield from items
            return
        label = f"epoch {epoch}/{epochs}"
        self._progress(epochs * total)
        yield from self._drawn(items, REFRESH, lambda n: self._draw((epoch - 1) * total + n, label, look()))

    def work(self, items: Iterable[T], total: int, label: str, look: Callable[[], str]) -> Iterator[T]:
        """Yield the parts of a piece of work, under a bar; without a terminal a line every LINE seconds."""
        if self.live:
            self._progress(total)
            yield from self._drawn(items, REFRESH, lambda n: self._draw(n, label, look()))
        else:
            yield from self._drawn(items, LINE, lambda n: self.say(f"{label}: {n} of {total}, {look()}"))

    def _drawn(self, items: Iterable[T], every: float, draw: Callable[[int], None]) -> Iterator[T]:
        """Yield items, and draw their number `every` so many seconds and at the end."""
        done, last, drawn = 0, time.monotonic(), -1
        for item in items:
            yield item
            done += 1
            if (now := time.monotonic()) - last > every:
                last, drawn = now, done
                draw(done)
        if drawn != done and (self.live or drawn >= 0):  # quick work needs no line
            draw(done)

    def _draw(self, done: float, label: str, text: str) -> None:
        self._bar.update(self._task, completed=done, epoch=label, text=text)

    def count(self, done: float, total: int, label: str, text: str) -> None:
        """Draw the bar of work that is not counted in steps; nothing without a terminal."""
        if self.live:
            self._progress(total).update(self._task, completed=done, total=total, epoch=label, text=text)

    def _progress(self, total: int) -> Any:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.fields[epoch]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=8,
            )
            self._task = self._bar.add_task("", total=total, epoch="", text="")
            self._bar.start()
        return self._bar

    def warn(self, findings: Iterable[Any]) -> None:
        """Print the findings for which a run should be stopped, each once."""
        for finding in findings:
            if finding.name not in self._warned:
                self._warned.add(finding.name)
                self.say(finding.text, style="bold yellow")

    def epoch(self, row: Mapping[str, Any], epochs: int, best: bool) -> None:
        """Print the row of an epoch."""
        width = len(str(epochs))
        self.say(
            f"epoch {row['epoch']:>{width}}/{epochs}  lr {row['lr']:.2e}"
            f"  train loss {row['train_loss']:.4f} acc {row['train_acc']:.4f}"
            f"  val loss {row['val_loss']:.4f} acc {row['val_acc']:.4f}"
            f"  {row['train_seconds'] + row['eval_seconds']:.1f} s {row['samples_per_second']:,.0f}/s"
            + ("  best" if best else "")
        )
