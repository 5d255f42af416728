"""`dlrun report PATH`: redraw the pictures and the page of a run or a sweep from its stored files."""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import Parser
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Write the report and print its path; returns 0."""
    parser = Parser(prog="dlrun report", description=__doc__)
    parser.add_argument("path", help="a run, a sweep or a folder of them, such as outputs/latest")
    args = parser.parse_args(argv)
    from dlrun.folders import reading
    from dlrun.reports import run_report, sweep_report

    runs, path = reading.find([args.path]), Path(args.path).expanduser()
    if len(runs) == 1 and runs[0].resolve() == path.resolve():
        print(run_report.write(path))
    else:
        print(sweep_report.write(path))
    return Exit.FINE
