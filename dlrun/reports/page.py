"""The parts of a self-contained page: sections, tables that a click sorts, pictures inside the file (`dlrun report`).

The files of a run are untrusted: every text is escaped, and the page may not load anything. The frame with its styles
and its script is report.html beside this file. Nothing imports torch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from dlrun.errors import UserError, first_line, legible
from dlrun.folders import reading
from dlrun.folders.disk import write_atomic
from dlrun.folders.opener import Unreadable
from dlrun.vocabulary import Outcome, Status

__all__ = ["attempted", "card", "embedded", "is_number", "picture", "pictures", "section", "table", "text", "tone"]
__all__ += ["write_file", "write_page"]

# not inverted in dark mode
NATURAL = ("filters",)
# the colour of a status; without one it is plain text
TONES = {Status.COMPLETED: Outcome.PASS, Status.RUNNING: Outcome.WARN, Status.INTERRUPTED: Outcome.WARN}
TONES |= dict.fromkeys((Status.FAILED, Status.DIVERGED, Status.CHECK_FAILED, Status.UNREADABLE), Outcome.FAIL)
# what the wide pictures show; those of runs have captions
WHAT = {
    "curves": "Learning curves of all runs",
    "sweep_axes": "Score against each hyperparameter that was varied",
    "sweep_map": "Scores over the two numeric hyperparameters that matter most",
    "sweep_parallel": "One line per trial across all hyperparameters",
    "sweep_importance": "Importance of each hyperparameter",
    "sweep_time": "Best score so far by time",
}


def write_page(folder: Path, title: str, parts: Iterable[str]) -> Path:
    """Write the report of a run or sweep folder from parts in HTML; return the file."""
    return write_file(reading.report(folder), title, parts)


def write_file(file: Path, title: str, parts: Iterable[str]) -> Path:
    """Write a page from parts in HTML; return the file."""
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    text = template.substitute(title=escape(f"dlrun {title}"), body="\n".join(p for p in parts if p))
    write_atomic(file, legible(text).encode("utf-8", "replace"))
    return file


def section(title: str, content: str) -> str:
    """Return a section with a title; nothing without content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def attempted(title: str, make: Callable[[], str]) -> str:
    """Return a section with what `make` returns, or with the reason why it is left out.

    A file of somebody else, or a damaged one, must not hide the others.
    """
    try:
        return section(title, make())
    except Unreadable as error:
        why = error.reason
    except UserError:  # a cell with its place: the user has edited a table
        raise
    except Exception as error:  # values that are not what their names say
        why = f"{type(error).__name__}: {first_line(error)[:120]}"
    return section(title, card(f"left out ({why})", "warn"))


def text(value: Any) -> str:
    """Return a value escaped: texts as they are, anything else as JSON."""
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def picture(file: Path, caption: str = "") -> str:
    """Return a picture embedded in the page, with a caption below it."""
    kind = "" if file.stem in NATURAL else "chart"
    return embedded(file.read_bytes(), caption, caption or WHAT.get(file.stem, file.stem), kind)


def embedded(png: bytes, caption: str = "", what: str = "", kind: str = "chart") -> str:
    """Return the bytes of a PNG as a picture in the page; `what` is its alternative text."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    data, shown = base64.b64encode(png).decode(), escape(what or caption)
    return (
        f"<figure class=picture><img class='{kind}' alt='{shown}' src='data:image/png;base64,{data}'>{below}</figure>"
    )


def pictures(found: Mapping[str, Path | str], captions: Mapping[str, str]) -> str:
    """Return pictures side by side, one below the other on a phone; small cards for those that show nothing."""
    drawn = "".join(picture(file, captions.get(name, "")) for name, file in found.items() if isinstance(file, Path))
    cards = "".join(card(words, "fine") for words in found.values() if isinstance(words, str))
    return (f"<div class=pictures>{drawn}</div>" if drawn else "") + cards


def card(words: str, kind: str = "") -> str:
    """Return a sentence in a frame; `kind` is warn, stop or fine."""
    return f"<div class='card {kind}'>{text(words)}</div>"


def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    long: Sequence[str] = (),
    tall: bool = False,
    links: Mapping[str, str] | None = None,
) -> str:
    """A table that a click sorts; numbers are rounded for display and sorted in full."""
    if not rows:
        return ""
    columns = [c for c in rows[0] if c is not None]
    numeric = {
        c
        for c in columns
        if c != "run" and all(is_number(_mean(v)) for row in rows if (v := row.get(c)) not in ("", None))
    }
    head = "".join(f"<th{' class=number' if c in numeric else ''}><button>{text(c)}</button></th>" for c in columns)
    lines = []
    for row in rows:
        cells = []
        for c in columns:
            value = "" if row.get(c) is None else row[c]
            shown = text(value)
            if c in numeric and value != "":
                number = float(_mean(value))
                typed = value is not _mean(value) or (number.is_integer() and "e" not in str(value))
                short = str(value) if typed else f"{number:.4g}"
                cells.append(f"<td class=number data-value='{number!r}'>{escape(short)}</td>")
                continue
            if links and c == "run" and value in links:
                shown = f"<a href='{escape(quote(links[value]))}'>{shown}</a>"  # a folder may be named javascript:…
            kind = "long" if c in long else tone(value) if c == "status" else ""
            cells.append(f"<td class='{kind}'>{shown}</td>" if kind else f"<td>{shown}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    frame = "scroll tall" if tall else "scroll"
    return f"<div class='{frame}'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _mean(value: Any) -> Any:
    """A mean without its deviation; anything else as it is."""
    return value.split("\u00a0±")[0] if isinstance(value, str) and "\u00a0±" in value else value


def tone(status: Any) -> str:
    """Return the class of a status on the page: `pass`, `warn`, `fail` or none; a check's status is its own class."""
    shown = (Outcome.PASS, Outcome.WARN, Outcome.FAIL)
    return next((one for word, one in (*TONES.items(), *zip(shown, shown, strict=True)) if word == status), "")


def is_number(value: Any) -> bool:
    """Whether a value is a number or a text that reads as one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
