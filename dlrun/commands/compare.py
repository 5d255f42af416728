"""`dlrun compare [PATH…]`: runs, sweeps and ensembles side by side, on screen and as CSV, JSON or LaTeX (S9, S10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlrun.commands.arguments import Parser
from dlrun.vocabulary import Exit

__all__ = ["main"]

SCREEN = 50  # rows on a terminal: more scroll the best ones away


def main(argv: list[str]) -> int:
    """Print the table and write it; returns 0."""
    args = _parser().parse_args(argv)
    from dlrun.analysis import compare, sweeps
    from dlrun.folders import outputs
    from dlrun.reports import tables

    paths = args.paths or ([str(outputs.OUTPUTS)] if outputs.OUTPUTS.is_dir() else [])
    entries = compare.read(paths)
    # a sweep alone says itself which of its trials is best
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
        print(f"no runs in {' '.join(args.paths) or outputs.OUTPUTS}; `dlrun train` makes one")
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
        "--group-seeds", action="store_true", help="one row a setting: mean ± std over its seeds, no ensembles"
    )
    parser.add_argument("--sort", metavar="COLUMN", help="by this column, scores best first; --sort=-COLUMN reverses")
    parser.add_argument("--csv", metavar="FILE", help="where the table is written (default: outputs/compare.csv)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--latex", action="store_true", help="print a LaTeX table and nothing else")
    parser.add_argument("--all", action="store_true", help=f"more than the first {SCREEN} rows on a terminal")
    return parser


def _write(target: Path, text: str) -> None:
    from dlrun.folders.disk import make_folder, write_atomic

    make_folder(target.parent)
    write_atomic(target, text.encode())


def _foot(args: Any, runs: int, votes: int, rows: int, notes: list[str]) -> None:
    import sys

    said = f"{runs} run{'s' * (runs > 1)}" + (f" in {rows} setting{'s' * (rows > 1)}" if args.group_seeds else "")
    said += f" and {votes} ensemble{'s' * (votes > 1)}" if votes else ""
    if not args.all and rows > SCREEN and sys.stdout.isatty():
        said += f", the first {SCREEN} rows shown (--all shows the rest)"
    print(*notes, f"{said}; the same as CSV: {args.csv or 'outputs/compare.csv'}", sep="\n")
