"""`dlrun board [FOLDER] [--watch]`: one page of all runs, to sort and filter, with overlaid curves (S10)."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.commands.arguments import PAGE, Parser, refuse_foreign
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.reports.board import Board

__all__ = ["main"]

EVERY = 5.0  # seconds


def main(argv: list[str]) -> int:
    """Write the page; with --watch keep it up to date until Ctrl-C. Returns 0, or 130 after Ctrl-C."""
    args = _parser().parse_args(_completed(argv))
    if args.watch is not None and not 0.2 <= args.watch < math.inf:
        raise UserError(f"--watch={args.watch:g}: expected 0.2 seconds or more, such as --watch=5")
    from dlrun.folders import outputs
    from dlrun.reports.board import Board

    folder = Path(args.folder).expanduser() if args.folder else outputs.OUTPUTS
    file = Path(args.out).expanduser() if args.out else folder / "board.html"
    if file.is_dir():
        raise UserError(f"--out={args.out or file}: expected a file, found a folder")
    refuse_foreign(file, PAGE, "--out")
    if not folder.is_dir() and not args.folder:
        raise UserError(f"{folder}: no such folder; `dlrun train` creates it, `dlrun board FOLDER` reads another")
    board = Board(folder, file)
    if args.watch is not None:
        return _watch(board, args.watch)
    board.update()
    _say(board)
    return Exit.FINE


def _parser() -> Parser:
    parser = Parser(prog="dlrun board", description=__doc__)
    parser.add_argument("folder", nargs="?", help="a folder of runs and sweeps (default: outputs)")
    parser.add_argument("--out", metavar="FILE", help="where the page is written (default: FOLDER/board.html)")
    word = f"write the page again whenever a run has changed; checks every SECONDS (default {EVERY:g}); Ctrl-C ends it"
    parser.add_argument("--watch", metavar="SECONDS", type=float, help=word)
    return parser


def _completed(argv: list[str]) -> list[str]:
    """The words with the default after a bare --watch: what follows it may be the folder."""
    return [
        f"--watch={EVERY:g}" if word == "--watch" and not _is_number(after) else word
        for word, after in zip(argv, [*argv[1:], ""], strict=False)
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _watch(board: Board, every: float) -> int:
    board.update(every)
    _say(board)
    print(f"checks for changes every {every:g} s; Ctrl-C ends it", flush=True)
    try:
        while True:
            began = time.monotonic()
            board.update(every)
            # with very many runs a check takes long: use at most a quarter of a core
            time.sleep(max(every, 3 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        board.write()  # written once more without `watch`, so that open pages stop reloading
        print(f"{board.file}: no longer updated")
        return Exit.INTERRUPTED


def _say(board: Board) -> None:
    runs, left = len(board.runs.found), board.runs.left_out
    for name, reason in list(left.items())[:5]:
        print(f"left out: {name}: {reason}")
    if len(left) > 5:
        print(f"left out: {len(left) - 5} more, listed on the page")
    print(f"{runs:,} run{'s' * (runs != 1)}: {board.file}", flush=True)
