"""`dlrun resume RUN`: go on where a killed or interrupted run stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import Parser, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit, Status

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Take the run folder over and train to the end; returns the exit code."""
    argv, trust = trusted(argv)
    parser = Parser(prog="dlrun resume", description=__doc__, epilog="trust=[PACKAGE]: code of your own in the run")
    parser.add_argument("run", help="the run's folder, such as outputs/latest")
    args, more = parser.parse_known_args(argv)
    if settings := [word for word in more if "=" in word]:
        why = "a run goes on with its own config, its schedule to the epochs that it began with"
        anew = f"`dlrun train … {' '.join(settings)}` with the words it was started by trains a new one"
        raise UserError(f"{settings[0]}: {why}; {anew}")
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from dlrun.folders import sweep as sweep_folder
    from dlrun.folders.run import reopen

    if sweep_folder.is_sweep(folder := Path(args.run).expanduser()):
        return _sweep(folder, trust)
    run = reopen(args.run)
    try:
        return _go_on(run, trust)
    finally:
        run.release()


def _sweep(folder: Path, trust: list[str]) -> int:
    """Run what a sweep lacks."""
    from dlrun.config.compose import composer
    from dlrun.folders import sweep as sweep_folder
    from dlrun.search.sweeper import again

    flags = sweep_folder.plan(folder).get("flags") or {}
    kept = {k: flags[k] for k in ("--config-dir", "--config-name") if isinstance(flags.get(k), str)}
    with composer(kept) as made:
        return again(made, folder, trust)


def _go_on(run: object, trust: list[str]) -> int:
    from dlrun.config.extras import require_logger
    from dlrun.config.schema import check_rules
    from dlrun.config.settings import Settings
    from dlrun.config.targets import check_targets
    from dlrun.folders import reading
    from dlrun.folders.run import Run

    assert isinstance(run, Run)
    if reading.stored(run.path).get("status") == Status.COMPLETED:
        print(f"{run.path} is complete; nothing to do")
        return Exit.FINE
    # only the command line may trust packages, never a stored config
    plain = reading.config(run.path) | {"trust": trust}
    try:
        check_rules(plain)
        check_targets(plain, trust)
        require_logger(plain)
    except UserError as error:
        raise UserError(f"{run.path / 'config.yaml'}: {error}") from error
    from dlrun.run.execute import execute

    settings = Settings.of(plain).changed(trainer={"stop_after": 0})  # a paused run continues to its end
    return execute(settings, run, resuming=True)
