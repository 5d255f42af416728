"""The board: one page of all runs that needs no server and loads nothing (`dlrun board`, S10).

A table that sorts, filters and hides columns, the overlaid curves of chosen runs, the axes of sweeps. Data is
embedded as JSON and reaches the page as text only. Its policy allows no address and no script or style but those
written here, by their hashes. Curves are drawn by uPlot (vendor/uplot, MIT), unmodified. Nothing imports torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from dlrun.errors import legible
from dlrun.folders.disk import make_folder, write_atomic
from dlrun.reports.board_runs import Runs, content

__all__ = ["Board"]

HERE = Path(__file__).parent
UPLOT = HERE / "vendor" / "uplot"
SCRIPTS = ("state", "filter", "table", "chart", "curves", "axes", "main")  # in this order, in one function


class Board:
    """The page of all runs at or below a folder, in a file."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.runs, self.file, self._written = Runs(folder), file, False

    def update(self, watch: float = 0.0) -> bool:
        """Read what has changed since the last call and write the page if anything has; return whether it was written.

        A page with `watch` loads itself again after that many seconds. Raises UserError if the folder is not there or
        the file cannot be written.
        """
        if not self.runs.refresh() and self._written and self.file.exists():
            return False
        self.write(watch)
        return True

    def write(self, watch: float = 0.0) -> None:
        """Write the page from what was read last. Raises UserError if the file cannot be written."""
        make_folder(self.file.parent)
        data = content(self.runs, self.file.parent) | {"written": time.time(), "watch": watch}
        write_atomic(self.file, legible(_page(data)).encode("utf-8", "replace"))
        self._written = True


def _page(data: Mapping[str, Any]) -> str:
    style, library, script = _parts()
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(library)} {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_text("board.html")).substitute(
        policy=policy,
        title=escape(f"dlrun board: {data['folder']}"),
        style=style,
        library=library,
        script=script,
        grammar=escape((HERE.parent / "analysis" / "filter_grammar.txt").read_text(encoding="utf-8")),
        data=_json(data),
    )


def _json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element around it: ASCII (so no U+2028), and no angle bracket or ampersand."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _parts() -> tuple[str, str, str]:
    """Style, chart library with its licence, and script of the page."""
    licence = (UPLOT / "LICENSE").read_text(encoding="utf-8")
    library = f"/*\n{licence}*/\n{(UPLOT / 'uPlot.iife.min.js').read_text(encoding='utf-8')}"
    script = "".join(_text(f"board_{name}.js") for name in SCRIPTS)
    style = (UPLOT / "uPlot.min.css").read_text(encoding="utf-8") + _text("board.css")
    return style, library, f'(() => {{\n"use strict";\n{script}}})();\n'


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression by which a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
