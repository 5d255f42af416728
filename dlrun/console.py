"""The screen during a run: on a terminal a live bar and one row per epoch, otherwise plain lines (`dlrun train`).

Everything printed also goes to the run's log.txt, there in full: a terminal gets lines that fit its width.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

__all__ = ["Screen", "fitted", "waiting"]

T = TypeVar("T")
REFRESH = 0.1  # seconds between two updates of the bar: reading the loss may wait for the accelerator
LINE = 10.0  # seconds between two plain lines of long work
UNITS = re.compile(r"(\s*)(`[^`\n]*`\S*|\S+)")  # a command in backticks is copied whole, so it is not broken


class _Terminal:
    """A stream to a terminal: whatever is written to it replaces the line of `waiting`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        _erase()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_waiting: list[_Terminal | TextIO] = []  # the stream whose last line is to be erased, if there is one


def waiting(text: str) -> None:
    """Show on a terminal what takes the time, as a line that the next output replaces; a pipe gets nothing."""
    if not sys.stdout.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        return
    if not isinstance(sys.stdout, _Terminal):
        sys.stdout = _Terminal(sys.stdout)
        sys.stderr = _Terminal(sys.stderr)
        atexit.register(_erase)
    sys.stdout.write(text[: _width() - 1])
    sys.stdout.flush()
    _waiting.append(sys.stdout)


def _erase() -> None:
    while _waiting:
        stream = _waiting.pop()
        stream.write("\r\x1b[2K")
        stream.flush()


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def fitted(text: str, width: int, indent: int = 2) -> str:
    """Break lines between words at `width` columns; the rest of a line is indented.

    A path or a command in backticks that is longer than a line stays whole, so that it can be copied.
    """
    lines = []
    for line in text.split("\n"):
        shown = ""
        for space, word in UNITS.findall(line):
            if shown.strip() and len(shown) + len(space) + len(word) > width:
                lines.append(shown)
                shown, space = " " * indent, ""
            shown += space + word
        lines.append(shown)
    return "\n".join(lines)


class Screen:
    """The terminal, or plain lines without one; use as a context manager around training.

    A `quiet` screen writes to the log alone; on a `verbose` one each check is shown in full.
    """

    def __init__(self, log: Path | None = None, *, quiet: bool = False, verbose: bool = False) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.verbose = verbose
        self.log = log
        self._bar: Progress | None = None
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
        self.print(fitted(text, self.console.width) if self.live else text, style)

    def wait(self, text: str) -> None:
        """Show what takes the time until the next line is printed; on a terminal alone."""
        if self.live and self._bar is None:
            waiting(text)

    def print(self, shown: RenderableType, style: str | None = None) -> None:
        """Print a text or a table of rich above the bar, and do not write it to the log."""
        if self._unread:
            return
        try:
            (self._bar.console if self._bar else self.console).print(shown, style=style, markup=False)
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
        if self._bar is not None:
            self._bar.update(self._task, completed=done, epoch=label, text=text)

    def count(self, done: float, total: int, label: str, text: str) -> None:
        """Draw the bar of work that is not counted in steps; nothing without a terminal."""
        if self.live:
            self._progress(total).update(self._task, completed=done, total=total, epoch=label, text=text)

    def _progress(self, total: int) -> Progress:
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

    def epoch(self, row: Mapping[str, Any], epochs: int, best: bool, rights: Mapping[str, tuple[str, str]]) -> None:
        """Print the row of an epoch; a narrow terminal gets it without its speed, its seconds or its rate.

        `rights` are the accuracies of train and, if there is one, val in words, and shorter for a narrow terminal.
        """
        width = len(str(epochs))
        parts = {
            "epoch": f"epoch {row['epoch']:>{width}}/{epochs}",
            "lr": f"lr {row['lr']:.2e}",
            **{split: f"{split} loss {row[f'{split}_loss']:.4f} acc {right[0]}" for split, right in rights.items()},
            "seconds": (seconds := f"{row['train_seconds'] + row['eval_seconds']:.1f} s")
            + f" {row['samples_per_second']:,.0f}/s",
        }
        self.note("  ".join([*parts.values(), *(["best"] if best else [])]))
        room = self.console.width - len("  best") if self.live else sys.maxsize
        brief = {s: f"{s} loss {row[f'{s}_loss']:.4f} acc {right[1]}" for s, right in rights.items()}
        for less in ({"seconds": seconds}, {"seconds": ""}, {"lr": ""}, brief):
            if len("  ".join(parts.values())) > room:
                parts = {name: text for name, text in (parts | less).items() if text}
        self.print("  ".join([*parts.values(), *(["best"] if best else [])]))
