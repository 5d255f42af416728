"""`dlrun rm RUN… | --failed [PATH…] | --keep-best N [PATH…]`: delete runs, sweeps and ensembles."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.commands.arguments import Parser
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.folders.contents import Found

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Say what is deleted and what that frees, ask, and delete; returns 0, also if the answer is no."""
    args = _parser().parse_args(argv)
    from dlrun.analysis import inventory
    from dlrun.folders import contents, outputs
    from dlrun.reports import listing

    targets = _chosen(args) if args.failed or args.keep_best is not None else _named(args)
    if not targets:
        print("nothing to delete")
        return Exit.FINE
    for found in targets:
        print(f"{listing.size(contents.size([found.path])):>8}  {found.path}{_what(found)}")
    freed = listing.size(contents.size(found.path for found in targets))
    if not args.yes and not sys.stdin.isatty():
        raise UserError(
            f"no terminal to ask on; to delete these {len(targets)} and free {freed}, type `{_again(argv)}`"
        )
    if not args.yes and not _confirmed(f"delete these {len(targets)}, which frees {freed}? [y/N] "):
        print("nothing deleted")
        return Exit.FINE
    for found in targets:
        contents.delete(found)
    if outputs.latest_is_gone() and (newest := inventory.newest()):
        outputs.point_latest(newest, completed=True)
    print(f"deleted {len(targets)}, {freed} freed")
    return Exit.FINE


def _parser() -> Parser:
    parser = Parser(prog="dlrun rm", description=__doc__)
    word = "runs, sweeps or ensembles; with --failed and --keep-best, where to look (default: outputs)"
    parser.add_argument("paths", nargs="*", metavar="RUN", help=word)
    pick = parser.add_mutually_exclusive_group()
    word = "runs that failed, diverged or were stopped by a check; trials stay with their sweep"
    pick.add_argument("--failed", action="store_true", help=word)
    word = "all runs that have ended except the N best of each dataset; sweeps, ensembles and interrupted runs are kept"
    pick.add_argument("--keep-best", type=int, metavar="N", help=word)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    word = "also delete runs that an ensemble or a student needs, and single trials of a sweep"
    parser.add_argument("--force", action="store_true", help=word)
    return parser


def _named(args: Namespace) -> list[Found]:
    """The folders that were named. Raises UserError for the first that may not be deleted."""
    from dlrun.analysis import inventory
    from dlrun.folders import contents
    from dlrun.folders.contents import Found

    if not args.paths:
        raise UserError("type the runs to delete, or --failed, or --keep-best 5; `dlrun list` shows them")
    targets: dict[Path, Found] = {}
    for name in args.paths:
        path = Path(name).expanduser()
        if path.is_symlink() and path.is_dir():
            raise UserError(f"{name} is a link; type the folder itself: {shlex.quote(str(path.resolve()))}")
        if not (what := contents.kind(path)):
            here = "no run, sweep or ensemble here" if path.is_dir() else "no such folder"
            raise UserError(f"{name}: {here}; `dlrun list` shows them")
        targets.setdefault(path.resolve(), Found(path, what))
    chosen = [found for found in targets.values() if not targets.keys() & set(found.path.resolve().parents)]
    needed = inventory.users(chosen)
    for found in chosen:
        if why := _obstacle(found, needed, args.force):
            raise UserError(why)
    return chosen


def _chosen(args: Namespace) -> list[Found]:
    """The runs that --failed or --keep-best names, without those that may not be deleted, each with its reason."""
    from dlrun.analysis import inventory
    from dlrun.folders import outputs

    if args.keep_best is not None and args.keep_best < 1:
        raise UserError(f"--keep-best {args.keep_best}: expected a whole number, 1 or more")
    paths = args.paths or ([str(outputs.OUTPUTS)] if outputs.OUTPUTS.is_dir() else [])
    picked = inventory.failed(paths) if args.failed else inventory.beyond_best(paths, args.keep_best)
    needed = inventory.users(picked)
    chosen = []
    for found in picked:
        if why := _obstacle(found, needed, args.force):
            print(f"kept: {why}")
        else:
            chosen.append(found)
    return chosen


def _obstacle(found: Found, needed: dict[Path, str], force: bool) -> str:
    """Why a folder may not be deleted; "" if it may. A living process keeps it whatever is forced."""
    from dlrun.folders import contents, sweep

    if busy := contents.in_use(found):
        return f"{busy} is running; stop it first, or wait for it to end"
    if why := contents.foreign(found):
        return f"{why}; move it away to delete {found.path}"
    if force:
        return ""
    if found.path in needed:
        return f"{found.path} is {needed[found.path]}; --force deletes it anyway"
    if found.kind == "run" and sweep.is_sweep(above := found.path.absolute().parent):
        why = f"{found.path} is a trial of {above.name}, and `dlrun resume` would run it again"
        return f"{why}; delete the whole sweep, or add --force"
    return ""


def _what(found: Found) -> str:
    from dlrun.folders import contents

    trials = f" of {len(contents.trials(found.path))} trials" if found.kind == "sweep" else ""
    return "" if found.kind == "run" else f" ({found.kind}{trials})"


def _again(argv: list[str]) -> str:
    return shlex.join(["dlrun", "rm", *argv, "--yes"])


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
