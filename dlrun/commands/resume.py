"""`dlrun resume RUN`: continue a killed or interrupted run or sweep; a run gives the same weights, bit for bit.

`dlrun resume RUN trainer.epochs=60` extends a finished run (dlrun/run/extending.py).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.commands.arguments import Parser, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit, Status

if TYPE_CHECKING:
    from dlrun.folders.run import Run

__all__ = ["main"]

ACCEPT = "dataset.changed=accept"


def main(argv: list[str]) -> int:
    """Take over the folder of a run or a sweep and run it to the end; returns the exit code."""
    argv, trust = trusted(argv)
    words = (
        "trust=[PACKAGE] allows a run to use classes of that package; "
        f"{ACCEPT} continues with the recorded images although others were added or images were renamed; "
        "trainer.epochs=60 trains a finished run on, with trainer.patience=0 one that stopped early"
    )
    parser = Parser(prog="dlrun resume", description=__doc__, epilog=words)
    parser.add_argument("run", help="the folder of a run or a sweep, such as outputs/latest")
    args, more = parser.parse_known_args(argv)
    accept = ACCEPT in more
    more = [word for word in more if word != ACCEPT]
    more_epochs = [word for word in more if "=" in word]
    if more := [word for word in more if "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from dlrun.folders import sweep as sweep_folder
    from dlrun.folders.run import reopen
    from dlrun.run.extending import EXTENDING

    if others := [word for word in more_epochs if word.partition("=")[0] not in EXTENDING]:
        why = (
            f"a resumed run keeps the config it was started with; only {' and '.join(EXTENDING)} extend a finished one"
        )
        raise UserError(f"{others[0]}: {why}; for a new run type `dlrun train … {' '.join(more_epochs)}`")
    if sweep_folder.is_sweep(folder := Path(args.run).expanduser()):
        if accept:
            raise UserError(f"{ACCEPT}: expected a run, found a sweep; type it for each of its unfinished runs")
        if more_epochs:
            raise UserError(f"{more_epochs[0]}: expected a run, found a sweep; type it for one of its runs")
        return _sweep(folder, trust)
    run = reopen(args.run)
    try:
        return _continue(run, trust, accept, more_epochs)
    finally:
        run.release()


def _sweep(folder: Path, trust: list[str]) -> int:
    """Run the trials that a sweep has not finished."""
    from dlrun.config.compose import composer
    from dlrun.folders import sweep as sweep_folder
    from dlrun.search.sweeper import again

    flags = sweep_folder.plan(folder).get("flags") or {}
    kept = {k: flags[k] for k in ("--config-dir", "--config-name") if isinstance(flags.get(k), str)}
    with composer(kept) as made:
        return again(made, folder, trust)


def _continue(run: Run, trust: list[str], accept: bool, more_epochs: list[str]) -> int:
    from dlrun.config.extras import require_logger, require_model, require_optimizer
    from dlrun.config.schema import check_rules
    from dlrun.config.settings import Settings
    from dlrun.config.targets import check_targets
    from dlrun.folders import reading

    if reading.stored(run.path).get("status") == Status.COMPLETED and not more_epochs:
        print(f"{run.path} is complete; nothing to do{_unfinished()}")
        return Exit.FINE
    # only the command line may trust packages, never a stored config
    plain = reading.config(run.path) | {"trust": trust}
    try:
        check_rules(plain)
        check_targets(plain, trust)
        require_logger(plain)
        require_optimizer(plain)
        require_model(plain)
    except UserError as error:
        raise UserError(f"{run.path / 'config.yaml'}: {error}") from error
    if more_epochs:
        from dlrun.run.extending import extended

        plain = extended(run, plain, more_epochs) | {"trust": trust}
    from dlrun.run.execute import execute

    settings = Settings.of(plain).changed(trainer={"stop_after": 0})  # a paused run continues to its end
    return execute(settings, run, resuming=True, accept_changes=accept)


def _unfinished() -> str:
    """The command that continues the newest run that was interrupted: outputs/latest leads to a completed one."""
    from dlrun.folders import outputs, reading

    folder = outputs.OUTPUTS / "runs"
    for path in reversed(reading.find([str(folder)]) if folder.is_dir() else []):
        if reading.result(path).get("status") == Status.INTERRUPTED:
            return f"; `{shlex.join(['dlrun', 'resume', str(path)])}` continues the newest unfinished run"
    return ""
