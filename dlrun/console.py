"""The screen during a run: on a terminal a live bar and one row per epoch, otherwise plain lines (`dlrun train`).

In a notebook (`dlrun.train([...])`) the bar is an output of the cell that changes in place. Everything printed also
goes to the run's log.txt, there in full: a terminal gets lines that fit its width.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dlrun.errors import UserError, legible
from dlrun.streams import console, waiting

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

__all__ = ["Screen", "fitted"]

T = TypeVar("T")
REFRESH = 0.1  # seconds between two updates of the bar: reading the loss may wait for the accelerator
IN_NOTEBOOK = 0.5  # the same in a notebook, where an update is a message to a browser
LINE = 10.0  # seconds between two plain lines of long work
UNITS = re.compile(r"(\s*)(`[^`\n]*`\S*|\S+)")  # a command in backticks is copied whole, so it is not broken


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


def _display() -> Callable[..., Any] | None:
    """The function that shows an output of a notebook's cell; None outside of notebooks."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

    return display  # type: ignore[no-any-return,unused-ignore]


class _NotebookBar:
    """The bar in a notebook, with the methods of rich's Progress that are used here: rich's needs ipywidgets."""

    WIDTH = 24

    def __init__(self, display: Callable[..., Any], console: Any, total: float) -> None:
        self.console = console
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        self._began, self._total = time.monotonic(), total

    def update(self, task: Any, *, completed: float, epoch: str, text: str, total: float | None = None) -> None:
        """Draw the bar again."""
        self._total = self._total if total is None else total
        share = min(1.0, completed / max(self._total, 1e-9))
        full = round(self.WIDTH * share)
        left = (time.monotonic() - self._began) * (1 / share - 1) if share else 0.0
        clock = f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02}" if share else "-:--:--"
        self._show(f"{epoch} {'━' * full}{'─' * (self.WIDTH - full)} {text} {clock}")

    def stop(self) -> None:
        """Remove the bar."""
        self._show("")

    def _show(self, text: str) -> None:
        self._handle.update({"text/plain": text}, raw=True)


class Screen:
    """The terminal, or plain lines without one; use as a context manager around training.

    A `quiet` screen writes to the log alone; on a `verbose` one each check is shown in full.
    """

    def __init__(self, log: Path | None = None, *, quiet: bool = False, verbose: bool = False) -> None:
        self._display = None if quiet else _display()
        # in a notebook the lines are plain text, like those of a pipe, whatever FORCE_COLOR says
        plain = False if self._display else None
        self.console = console(plain)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.verbose = verbose
        self.log = log
        self._bar: Progress | _NotebookBar | None = None
        self._task: Any = None
        self._warned: set[str] = set()
        self._unread = quiet  # nobody reads: training continues and the log is complete

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.stop()
            except (OSError, ValueError, SystemExit):  # its terminal was closed, which may be why all ends
                self._nobody_reads()

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar and write it to the log."""
        text = legible(text)
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
        except (OSError, ValueError, SystemExit):  # rich exits when nobody reads any more (`dlrun train | head`)
            self._nobody_reads()

    def _nobody_reads(self) -> None:
        self._unread = True
        self.live = False
        with contextlib.suppress(OSError, ValueError):  # a stream that is closed, or no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def note(self, text: str) -> None:
        """Write a line to the log alone."""
        if self.log is None:
            return
        from dlrun.folders.opener import appendable

        try:
            with os.fdopen(appendable(self.log.parent, self.log.name), "a", encoding="utf-8") as file:
                file.write(legible(text) + "\n")
        except (OSError, UserError) as error:  # nothing that the run needs
            why = f"{self.log}: cannot write: {error.strerror}" if isinstance(error, OSError) else error
            lost, self.log = f"{why}; the run continues without its log", None
            self.print(lost, style="yellow")

    def steps(self, items: Iterable[T], total: int, epoch: int, epochs: int, look: Callable[[], str]) -> Iterator[T]:
        """Yield the steps of an epoch; `look` returns the loss as text and is called only when the bar is drawn."""
        if not self._moves:
            yield from items
            return
        label = f"epoch {epoch}/{epochs}"
        self._progress(epochs * total)
        yield from self._drawn(items, self._every, lambda n: self._draw((epoch - 1) * total + n, label, look()))

    def work(self, items: Iterable[T], total: int, label: str, look: Callable[[], str]) -> Iterator[T]:
        """Yield the parts of a piece of work, under a bar; without a terminal a line every LINE seconds."""
        if self._moves:
            self._progress(total)
            yield from self._drawn(items, self._every, lambda n: self._draw(n, label, look()))
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
        if drawn != done and (self._moves or drawn >= 0):  # quick work needs no line
            draw(done)

    def _draw(self, done: float, label: str, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, epoch=label, text=text)

    def count(self, done: float, total: int, label: str, text: str) -> None:
        """Draw the bar of work that is not counted in steps; nothing without a bar."""
        if self._moves:
            self._progress(total).update(self._task, completed=done, total=total, epoch=label, text=text)

    @property
    def _moves(self) -> bool:
        """Whether there is a bar: on a terminal or in a notebook."""
        return self.live or self._display is not None

    @property
    def _every(self) -> float:
        return REFRESH if self.live else IN_NOTEBOOK

    def _progress(self, total: float) -> Progress | _NotebookBar:
        if self._bar is None and self._display is not None:
            self._bar, self._task = _NotebookBar(self._display, self.console, total), None
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            bar = Progress(
                TextColumn("{task.fields[epoch]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=8,
            )
            self._task = bar.add_task("", total=total, epoch="", text="")
            bar.start()
            self._bar = bar
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
