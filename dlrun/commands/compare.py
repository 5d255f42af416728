"""`dlrun compare [PATH…]`: runs and sweeps side by side, on screen and as CSV (S10)."""

from __future__ import annotations

from pathlib import Path

from dlrun.arguments import Parser

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Print the table and write it; returns 0."""
    parser = Parser(prog="dlrun compare", description=__doc__)
    parser.add_argument("paths", nargs="*", help="runs, sweeps or folders of them (default: outputs)")
    parser.add_argument("--csv", default="outputs/compare.csv", metavar="FILE", help="where the table is written")
    args = parser.parse_args(argv)
    from dlrun import compare, rundir

    paths = args.paths or ([str(rundir.OUTPUTS)] if rundir.OUTPUTS.is_dir() else [])
    table = compare.rows(paths)
    if not table:
        print(f"no runs in {' '.join(args.paths) or rundir.OUTPUTS}; `dlrun train` makes one")
        return 0
    target = Path(args.csv).expanduser()
    rundir.make_folder(target.parent)
    rundir.write_atomic(target, compare.as_csv(table).encode())
    print(compare.as_text(table))
    print(f"{len(table)} run{'s' * (len(table) > 1)}; the same as CSV: {target}")
    return 0
