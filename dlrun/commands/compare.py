"""`dlrun compare [PATH…]`: list runs, sweeps and ensembles in one table, as text, CSV, JSON or LaTeX (S9, S10)."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from dlrun.commands.arguments import Parser
from dlrun.vocabulary import Exit

__all__ = ["main"]

SCREEN = 50  # rows on a terminal; more would scroll the best ones out of sight


def main(argv: list[str]) -> int:
    """Print the table and write it as CSV; returns 0."""
    args = _parser().parse_args(argv)
    from dlrun.analysis import compare, sweeps
    from dlrun.folders import outputs
    from dlrun.reports import tables

    paths = args.paths or ([str(outputs.OUTPUTS)] if outputs.OUTPUTS.is_dir() else [])
    entries = compare.read(paths)
    # a single sweep is ranked by its own metric
    entries, metric, lower = sweeps.searched([Path(path) for path in paths], entries)
    runs = len(entries)
    notes: list[str] = []
    if args.group_seeds:
        from dlrun.analysis import seed_groups

        table = seed_groups.grouped(entries, metric, lower=lower)
        notes = seed_groups.note(table, metric)
    else:
        entries += compare.ensembles(paths)
        table = compare.table(entries, metric, lower=lower)
    if args.sort and table:
        table = compare.sorted_by(table, args.sort)
    if table and (args.csv or not (args.json or args.latex)):
        _write(Path(args.csv or "outputs/compare.csv").expanduser(), tables.as_csv(table))
    if args.json:
        print(tables.as_json(table))
    elif not table:
        print(f"no runs in {' '.join(args.paths) or outputs.OUTPUTS}; start one with `dlrun train`")
    elif args.latex:
        print(tables.as_latex(table, notes, metric, lower=lower))
    else:
        print(tables.as_text(table, None if args.all else SCREEN, metric, lower=lower))
        _foot(args, runs, len(entries) - runs, len(table), notes)
    return Exit.FINE


def _parser() -> Parser:
    parser = Parser(prog="dlrun compare", description=__doc__)
    parser.add_argument("paths", nargs="*", help="runs, sweeps or folders of them (default: outputs)")
    parser.add_argument(
        "--group-seeds", action="store_true", help="one row per setting: mean ± std over its seeds; omits ensembles"
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="sort by this column, scores best first; --sort=-COLUMN reverses"
    )
    parser.add_argument("--csv", metavar="FILE", help="where to write the table (default: outputs/compare.csv)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--latex", action="store_true", help="print a LaTeX table and nothing else")
    parser.add_argument("--all", action="store_true", help=f"print all rows on a terminal, not only the first {SCREEN}")
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
