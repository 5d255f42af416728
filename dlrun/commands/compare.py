"""`dlrun compare [PATH…]`: runs and sweeps side by side, on screen and as CSV."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Print the table and write it; returns 0."""
    parser = argparse.ArgumentParser(prog="dlrun compare", description=__doc__)
    parser.add_argument("paths", nargs="*", default=["outputs"], help="runs, sweeps or folders of them (default: outputs)")
    parser.add_argument("--csv", default="outputs/compare.csv", metavar="FILE", help="where the table is written")
    args = parser.parse_args(argv)
    from rich.console import Console

    from dlrun import compare, rundir

    table = compare.rows(args.paths)
    if not table:
        print(f"no runs in {' '.join(args.paths)}; `dlrun train` makes one")
        return 0
    target = Path(args.csv)
    rundir.make_folder(target.parent)
    rundir.write_atomic(target, compare.as_csv(table).encode())
    Console(highlight=False).print(compare.as_table(table))
    print(f"{len(table)} runs; the same as CSV: {target}")
    return 0
