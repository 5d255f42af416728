"""`dlrun compare [PATH…]`: list runs, sweeps and ensembles in one table, as text, CSV, JSON or LaTeX (S9, S10)."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dlrun.commands.arguments import TABLE, Parser, refuse_foreign
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.analysis.compare import Entry

__all__ = ["main"]

SCREEN = 50  # rows on a terminal; more would scroll the best ones out of sight


class Ranked(NamedTuple):
    """The column by which runs are compared, whether a lower value is better, and the path of the best run."""

    metric: str
    lower: bool
    best: str


def main(argv: list[str]) -> int:
    """Print the table and write it as CSV; returns 0."""
    args = _parser().parse_args(argv)
    if args.last is not None and args.last < 1:
        raise UserError(f"--last {args.last}: expected a whole number, 1 or more")
    from dlrun.analysis.flat import uncollected

    with uncollected():
        _compare(args)
    return Exit.FINE


def _compare(args: Namespace) -> None:
    from dlrun.analysis import compare, sweeps
    from dlrun.folders import outputs
    from dlrun.reports import tables

    paths = args.paths or ([str(outputs.OUTPUTS)] if outputs.OUTPUTS.is_dir() else [])
    # a single sweep is ranked by its own metric
    entries, metric, lower = sweeps.searched([Path(path) for path in paths], compare.read(paths))
    everything = len(entries)
    entries = _selected(args, entries)
    notes: list[str] = []
    grouped = args.group_seeds or args.group_folds
    votes = [] if _selects(args) or grouped else compare.ensembles(paths)
    if grouped:
        from dlrun.analysis import seed_groups
        from dlrun.analysis.ranking import FOLD

        over = "seed"
        if args.group_folds:
            args.group_seeds, over, entries = True, FOLD, _folds(entries)
        table = seed_groups.grouped(entries, metric, lower=lower, over=over, also=_asked(args))
        notes = seed_groups.note(table, metric, over)
    else:
        table = compare.table([*entries, *votes], metric, lower=lower, also=_asked(args))
    best = _leader(table, metric)
    if args.sort and table:
        table = compare.sorted_by(table, args.sort)
    if args.csv:
        refuse_foreign(Path(args.csv).expanduser(), TABLE, "--csv")
    if table and (args.csv or not (args.json or args.latex)):
        _write(Path(args.csv or "outputs/compare.csv").expanduser(), tables.as_csv(table))
    if args.json:
        print(tables.as_json(table))
    elif not table:
        where = " ".join(args.paths) or outputs.OUTPUTS
        none = f"no runs in {where}; start one with `dlrun train`"
        print(f"none of {everything} runs is selected" if everything else none)
    elif args.latex:
        print(tables.as_latex(table, notes, metric, lower=lower, best=best))
    else:
        _print(args, entries, votes, table, notes, Ranked(metric, lower, best))


def _leader(table: list[dict[str, Any]], metric: str) -> str:
    """The path of the best run, before the rows are sorted otherwise; empty if there is none, and for settings."""
    from dlrun.analysis import compare

    return str(table[0].get("run", "")) if table and compare.scored(table[0], metric) else ""


def _folds(entries: list[Entry]) -> list[Entry]:
    """The runs on a fold. Raises UserError if there are none."""
    from dlrun.analysis import compare

    found = [entry for entry in entries if compare.folded(entry)]
    if entries and not found:
        raise UserError(
            "--group-folds: expected runs on folds, found none; type dataset.folds=5 dataset.fold=range:0:5"
        )
    return found


def _columns(args: Namespace) -> list[str]:
    return [name.strip() for name in (args.columns or "").split(",") if name.strip()]


def _asked(args: Namespace) -> list[str]:
    """The columns to show or to sort by, which the table must have."""
    return [*_columns(args), *([args.sort.removeprefix("-")] if args.sort else [])]


def _selects(args: Namespace) -> bool:
    return bool(args.filter or args.where or args.status or args.last)


def _selected(args: Namespace, entries: list[Entry]) -> list[Entry]:
    """The runs that the flags leave."""
    if not _selects(args):
        return entries
    from dlrun.analysis import selecting

    if args.filter:
        entries = selecting.satisfying(entries, args.filter)
    if args.where:
        entries = selecting.tagged(entries, args.where)
    if args.status:
        entries = selecting.with_status(entries, args.status)
    return selecting.newest(entries, args.last) if args.last else entries


def _print(
    args: Namespace,
    entries: list[Entry],
    votes: list[Entry],
    table: list[dict[str, Any]],
    notes: list[str],
    by: Ranked,
) -> None:
    """Print the rows, below them the runs without a rank, and the conclusion."""
    import shutil

    from dlrun.analysis import compare, deciding, scores
    from dlrun.reports import footer, tables

    columns = _columns(args)
    compare.expect_columns(table, columns)
    apart = [] if args.status or args.all or args.group_seeds else footer.BELOW
    below = [e for e in entries if e.result.get("status") in apart]
    rows = [row for row in table if row.get("status") not in apart or not apart]
    keys = compare.keys(table)
    paths = [] if args.group_seeds else [row["run"] for row in table]
    names = dict(zip(paths, scores.short_names(paths), strict=True))
    if rows:
        settings = None if args.group_seeds or args.all else compare.shown(entries, keys)
        images = {
            str(e.path): (scores.images(e.result, "val"), scores.images(e.result, "test")) for e in [*entries, *votes]
        }
        most = None if args.all else SCREEN
        if settings is not None and votes:
            settings.append("model")  # of an ensemble its vote
        shape: dict[str, Any] = {"settings": settings, "columns": columns, "images": images, "names": names}
        print(tables.as_text(rows, most, by.metric, lower=by.lower, best=by.best, **shape))
        if not args.group_seeds and (note := tables.interval_note(list(images.values()))):
            notes = [*notes, note]
    if below:
        print(*footer.lines(below, by.metric, names, shutil.get_terminal_size().columns), sep="\n")
    decided = []
    if not args.group_seeds:
        title = "best run" if votes else "best"
        decided = deciding.decision(entries, by.metric, lower=by.lower, names=names, among=keys, title=title)
    _foot(args, len(entries), len(votes), len(rows), notes)
    print(*decided, sep="\n", end="\n" if decided else "")


def _parser() -> Parser:
    parser = Parser(prog="dlrun compare", description=__doc__)
    parser.add_argument("paths", nargs="*", help="runs, sweeps or folders of them (default: outputs)")
    parser.add_argument(
        "--group-seeds", action="store_true", help="one row per setting: mean ± std over its seeds; omits ensembles"
    )
    word = "one row per setting: mean ± std over the folds of dataset.folds; seeds of a fold count as one"
    parser.add_argument("--group-folds", action="store_true", help=word)
    parser.add_argument(
        "--sort", metavar="COLUMN", help="sort by this column, scores best first; --sort=-COLUMN reverses"
    )
    parser.add_argument("--columns", metavar="A,B", help="print these columns, whatever their width")
    word = "only runs that satisfy it, such as 'val_acc>0.7 and model=resnet20'"
    parser.add_argument("--filter", metavar="TEXT", help=word)
    word = "only runs with this tag, name, note or setting, such as tag=baseline; may be repeated"
    parser.add_argument("--where", metavar="KEY=VALUE", action="append", help=word)
    parser.add_argument("--status", metavar="STATUS", help="only runs with this status, such as failed")
    parser.add_argument("--last", metavar="N", type=int, help="only the N runs that started last")
    parser.add_argument("--csv", metavar="FILE", help="where to write the table (default: outputs/compare.csv)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--latex", action="store_true", help="print a LaTeX table and nothing else")
    word = f"print all rows, not only the first {SCREEN} without failed runs, and all settings"
    parser.add_argument("--all", action="store_true", help=word)
    return parser


def _write(target: Path, text: str) -> None:
    from dlrun.folders.disk import make_folder, write_atomic

    make_folder(target.parent)
    write_atomic(target, text.encode())


def _foot(args: Namespace, runs: int, votes: int, rows: int, notes: list[str]) -> None:
    said = f"{runs} run{'s' * (runs > 1)}" + (f" in {rows} setting{'s' * (rows > 1)}" if args.group_seeds else "")
    said += f" and {votes} ensemble{'s' * (votes > 1)}" if votes else ""
    if not args.all and rows > SCREEN and sys.stdout.isatty():
        said += f", the first {SCREEN} rows shown (--all shows the rest)"
    print(*notes, f"{said}; also written to {args.csv or 'outputs/compare.csv'}", sep="\n")
