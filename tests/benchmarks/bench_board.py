"""How long the board of 1,000 runs takes: `python tests/benchmarks/bench_board.py [RUNS] [EPOCHS]` (S10).

Writes runs of 60 epochs into a temporary folder, a fifth of them in two sweeps. Prints, as medians: the wall time of
`dlrun board`, the time of a look by --watch if nothing and if one run has changed, the size of the page, and the time
from its navigation until headless Chromium has laid the table out, and drawn curves and axes too. Target for the
latter: under 3 s.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dlrun.reports.board import Board
from support.browser import watch_page
from support.many_runs import curves, many
from support.pages import CHROMIUM

REPEATS = 5
SCRIPT = "const { drawn, ready } = inside().body.dataset; return [Number(drawn), Number(ready)];"


def timed(action: Callable[[], Any], times: int = REPEATS) -> tuple[float, float]:
    """Return the median and the longest time of an action, in s."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return statistics.median(found), max(found)


def main() -> None:
    """Print the table."""
    count, epochs = (int(word) for word in [*sys.argv[1:], "1000", "60"][:2])
    with tempfile.TemporaryDirectory() as name:
        root = many(Path(name) / "outputs", count, epochs=epochs)
        page = root / "board.html"
        print(f"{count:,} runs of {epochs} epochs                   median    longest")
        command = [sys.executable, "-m", "dlrun", "board"]
        show("dlrun board", timed(lambda: subprocess.run(command, cwd=name, check=True, capture_output=True)))
        board = Board(root, page)
        board.update()
        show("a look, nothing has changed", timed(board.update))
        path = next(iter(board.runs.found))

        def look() -> None:
            curves(path, epochs, random.random(), random.Random(0))
            assert board.update()

        show("a look, one run has changed", timed(look))
        print(f"{'size of the page':<40}{page.stat().st_size / 1e6:>9.1f} MB")
        if CHROMIUM is None:
            print("no Chromium on this machine")
            return
        opened = [watch_page(page, Path(name), SCRIPT) for _ in range(REPEATS)]
        for what, values in zip(
            ("open: table laid out", "open: curves and axes too"), zip(*opened, strict=True), strict=True
        ):
            show(what, (statistics.median(values) / 1e3, max(values) / 1e3))


def show(what: str, times: tuple[float, float]) -> None:
    print(f"{what:<40}{times[0]:>9.2f} s{times[1]:>9.2f} s", flush=True)


if __name__ == "__main__":
    main()
