"""`dlrun list [PATH…]`: runs, sweeps and ensembles, newest first: folder, status, score, age and size on the disk."""

from __future__ import annotations

from dlrun.commands.arguments import Parser
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Print one line per run, sweep and ensemble; of a sweep named alone, one per trial. Returns 0."""
    parser = Parser(prog="dlrun list", description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="runs, sweeps or folders of them (default: outputs)")
    args = parser.parse_args(argv)
    from dlrun.analysis import inventory
    from dlrun.folders import outputs
    from dlrun.reports import listing

    paths = args.paths or ([str(outputs.OUTPUTS)] if outputs.OUTPUTS.is_dir() else [])
    items = inventory.items(paths)
    if not items:
        print(f"no runs in {' '.join(args.paths) or outputs.OUTPUTS}; start one with `dlrun train`")
        return Exit.FINE
    print(listing.as_text(items))
    total = listing.size(sum(item.size for item in items))
    print(f"{len(items)} in all, {total}; `dlrun compare` compares their settings and scores")
    return Exit.FINE
