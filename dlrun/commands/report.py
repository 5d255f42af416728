"""`dlrun report PATH…`: draw the page of a run, sweep, ensemble or evaluation again; of several runs, one page."""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import PAGE, Parser, refuse_foreign
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Write the report and print its path; returns 0."""
    parser = Parser(prog="dlrun report", description=__doc__)
    word = "a run, a sweep, an ensemble or a folder of runs, such as outputs/latest; several runs are overlaid"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=word)
    word = "the page of several runs (default: outputs/overlay.html)"
    parser.add_argument("--out", metavar="FILE", help=word)
    args = parser.parse_args(argv)
    from dlrun.analysis import errors
    from dlrun.folders import contents, ensemble, evaluation, reading
    from dlrun.folders.disk import remove_leftovers

    if len(args.paths) > 1:
        print(_overlaid(args.paths, args.out))
        return Exit.FINE
    if args.out is not None:
        raise UserError(f"--out={args.out}: the page of one run, sweep or ensemble lies in its folder; omit it")
    path = Path(args.paths[0]).expanduser()
    if contents.kind(path) or evaluation.is_evaluation(path):
        remove_leftovers(path, "plots")
    if ensemble.is_ensemble(path):
        from dlrun.reports import ensemble_report

        errors.write(path)
        print(ensemble_report.write(path))
        return Exit.FINE
    if evaluation.is_evaluation(path):
        from dlrun.reports import evaluation_report

        print(evaluation_report.write(path))
        return Exit.FINE
    from dlrun.reports import run_report, sweep_report

    runs = reading.find([args.paths[0]])
    alone = len(runs) == 1 and runs[0].resolve() == path.resolve()
    if alone:
        if not contents.of_dlrun(path):
            raise UserError(f"{path / 'config.yaml'} is not a config of dlrun; expected a run, a sweep or an ensemble")
        errors.write(path)
    print(run_report.write(path) if alone else sweep_report.write(path))
    return Exit.FINE


def _overlaid(paths: list[str], out: str | None) -> Path:
    """Write the page of several runs; of a sweep or a folder, of all its runs."""
    from dlrun.folders import ensemble, outputs, reading
    from dlrun.reports import overlay_report

    for name in paths:
        if ensemble.is_ensemble(Path(name).expanduser()):
            raise UserError(f"{name}: an ensemble has no curves; expected runs, or the ensemble alone")
        if not reading.find([name]):
            raise UserError(f"{name}: no runs here; expected a run, or a folder of them")
    runs = reading.find(paths)
    file = Path(out).expanduser() if out is not None else outputs.OUTPUTS / "overlay.html"
    if file.is_dir():
        raise UserError(f"--out={out}: expected a file name, found a folder")
    refuse_foreign(file, PAGE, "--out")
    return overlay_report.write(runs, file)
