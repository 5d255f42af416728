"""`dlrun resume RUN`: continue a killed or interrupted run or sweep; a run gives the same weights, bit for bit.

`dlrun resume RUN trainer.epochs=60` extends a finished run (dlrun/run/extending.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import Parser, trusted
from dlrun.config.trust import allowed
from dlrun.errors import UserError
from dlrun.vocabulary import Exit, Status

if TYPE_CHECKING:
    from dlrun.config.flags import Flags
    from dlrun.config.settings import Settings
    from dlrun.folders.run import Run
    from dlrun.training.group import Group

__all__ = ["main"]

ACCEPT = "dataset.changed=accept"


def main(argv: list[str]) -> int:
    """Take over the folder of a run or a sweep and run it to the end; returns the exit code."""
    typed = argv
    argv, trust = trusted(argv)
    words = (
        "trust=[PACKAGE] allows a run to use classes of that package; "
        f"{ACCEPT} continues with the recorded images although others were added or images were renamed; "
        "trainer.epochs=60 trains a finished run on, with trainer.patience=0 one that stopped early; "
        "a sweep that needs hydra.searchpath= or hydra.launcher.setup= takes them as typed here"
    )
    parser = Parser(prog="dlrun resume", description=__doc__, epilog=words)
    parser.add_argument("run", help="the folder of a run or a sweep, such as outputs/latest")
    parser.add_argument("--config-dir", help="of a sweep that was started with it: its folder of further options")
    args, more = parser.parse_known_args(argv)
    accept = ACCEPT in more
    more = [word for word in more if word != ACCEPT]
    more_epochs = [word for word in more if "=" in word]
    if more := [word for word in more if "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from dlrun.folders import reading
    from dlrun.folders import sweep as sweep_folder
    from dlrun.folders.run import reopen
    from dlrun.run.extending import EXTENDING

    if sweep_folder.is_sweep(folder := Path(args.run).expanduser()):
        if accept:
            raise UserError(f"{ACCEPT}: expected a run, found a sweep; type it for each of its unfinished runs")
        if others := [word for word in more_epochs if allowed(word, ())]:
            raise UserError(f"{others[0]}: expected a run, found a sweep; type it for one of its runs")
        return _sweep(folder, [f"trust=[{','.join(trust)}]"] * bool(trust) + more_epochs, args.config_dir)
    devices = [word for word in more_epochs if word.startswith("trainer.devices=")]
    more_epochs = [word for word in more_epochs if word not in devices]
    if others := [word for word in more_epochs if word.partition("=")[0] not in EXTENDING]:
        why = (
            "a resumed run keeps the config it was started with, but trainer.devices; "
            f"only {' and '.join(EXTENDING)} extend a finished one"
        )
        raise UserError(f"{others[0]}: {why}; for a new run type `dlrun train … {' '.join(more_epochs)}`")
    from dlrun.run import together

    def work(group: Group | None) -> int:
        run = reopen(args.run)
        try:
            return _continue(run, trust, accept, more_epochs, group)
        finally:
            run.release()

    if (cfg := _with(devices, reading.config(folder) if reading.is_run(folder) else {})) and together.starts(
        cfg, typed=bool(devices)
    ):
        reopen(args.run).release()  # not while another process trains it
        return together.launch(["resume", *typed], cfg, folder)
    return together.first(work)


def _with(typed: list[str], config: Mapping[str, Any]) -> Settings | None:
    """The settings of a run with trainer.devices as typed, None if they are damaged, which is reported later.

    Raises UserError for other than a number of devices.
    """
    from dlrun.config.settings import Settings

    if not config:
        return None
    for word in typed:
        if not (value := word.partition("=")[2]).isdecimal() or not int(value):
            raise UserError(f"{word}: expected a whole number, 1 or more")
        if isinstance(trainer := config.get("trainer"), dict):
            config = {**config, "trainer": {**trainer, "devices": int(value)}}
    try:
        found = Settings.of(config)
    except (UserError, TypeError, AttributeError, LookupError, ValueError):
        return None
    return found if type(found.trainer.devices) is int else None


def _sweep(folder: Path, typed: list[str], options: str | None) -> int:
    """Run the trials that a sweep has not finished. Raises UserError if its folder of options is not typed again."""
    from dlrun.config.compose import composer
    from dlrun.folders import sweep as sweep_folder
    from dlrun.search.starting import again

    stored = sweep_folder.plan(folder).get("flags")
    flags = stored if isinstance(stored, dict) else {}
    if (further := flags.get("--config-dir")) and not options:
        words = shlex.join(["dlrun", "resume", str(folder), "--config-dir", str(further), *typed])
        raise UserError(f"{folder}: --config-dir {further}: found in its sweep.yaml, allowed only if typed: {words}")
    kept: Flags = {"--config-dir": options} if options else {}
    if isinstance(root := flags.get("--config-name"), str):
        kept["--config-name"] = root
    with composer(kept, typed) as made:
        return again(made, folder, typed)


def _continue(run: Run, trust: list[str], accept: bool, more_epochs: list[str], group: Group | None) -> int:
    from dlrun.config.extras import require_dataset, require_logger, require_model, require_optimizer
    from dlrun.config.schema import check_rules
    from dlrun.config.settings import Settings
    from dlrun.config.targets import check_targets
    from dlrun.folders import reading

    before = reading.stored(run.path)
    if before.get("status") == Status.COMPLETED and not more_epochs:
        print(f"{run.path} is complete; {_page(run)}{_unfinished()}")
        return Exit.FINE
    if before.get("status") == Status.PRUNED:
        print(f"{run.path}: its sweep had stopped it: {before.get('reason') or 'pruned'}; it now continues to its end")
    # only the command line may trust packages, never a stored config
    plain = reading.config(run.path) | {"trust": trust}
    try:
        check_rules(plain)
        check_targets(plain, trust)
        require_logger(plain)
        require_optimizer(plain)
        require_model(plain)
        require_dataset(plain)
    except UserError as error:
        raise UserError(f"{run.path / 'config.yaml'}: {error}") from error
    if more_epochs:
        from dlrun.run.extending import extended

        plain = extended(run, plain, more_epochs) | {"trust": trust}
    from dlrun.run import together
    from dlrun.run.execute import execute

    settings = Settings.of(plain).changed(trainer={"stop_after": 0})  # a paused run continues to its end
    return execute(settings, run, record=together.about(), resuming=True, accept_changes=accept, group=group)


def _page(run: Run) -> str:
    """Draw the page of a complete run if a kill has prevented it; returns what was done, in words."""
    from dlrun.folders import reading

    trainer = reading.config(run.path).get("trainer")
    if reading.report(run.path).exists() or not (isinstance(trainer, dict) and trainer.get("report")):
        return "nothing to do"
    from dlrun.reports import run_report

    return f"its report was missing: {run_report.write(run.path)}"


def _unfinished() -> str:
    """The command that continues the newest run that was interrupted: outputs/latest leads to a completed one."""
    from dlrun.folders import outputs, reading

    folder = outputs.OUTPUTS / "runs"
    for path in reversed(reading.find([str(folder)]) if folder.is_dir() else []):
        if reading.result(path).get("status") == Status.INTERRUPTED:
            return f"; `{shlex.join(['dlrun', 'resume', str(path)])}` continues the newest unfinished run"
    return ""
