"""One run from its config to result.json: build, check, train, test once (`dlrun train`, `dlrun resume`, a sweep).

However a run ends, result.json has a status and a reason, and the exit code follows from the status (B8).
"""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dlrun.config import ranks
from dlrun.config.settings import Settings
from dlrun.console import Screen
from dlrun.errors import DataChanged, Surroundings, UserError, first_line
from dlrun.folders import own_code
from dlrun.folders.run import Run
from dlrun.run import sparse
from dlrun.run.beginning import held, restored, settle
from dlrun.run.ending import stop_reason, summarise
from dlrun.run.gate import Omitted, accounted, headline, passed
from dlrun.run.provenance import origin
from dlrun.run.replaced import counted
from dlrun.run.stopping import politely
from dlrun.training.loggers import Follower
from dlrun.vocabulary import Exit, Status

if TYPE_CHECKING:
    from dlrun.data import Split
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import Experiment
    from dlrun.training.group import Group
    from dlrun.training.shared_data import SharedData

__all__ = ["execute", "store"]

OUTSIDE = 5.0  # seconds of trainer.hours for what is not measured: the start of Python, and the report


def execute(
    cfg: Settings,
    run: Run,
    *,
    record: Mapping[str, Any] | None = None,
    shared: SharedData | None = None,
    resuming: bool = False,
    accept_changes: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    group: Group | None = None,
) -> int:
    """Train in a claimed folder, release it, and return the exit code. Raises UserError after recording it.

    `record` describes the source of the config (`Composed.record`) and is stored beside it. `shared` holds data that
    several runs of this process use. A run that is `resuming` refuses other data than its own, unless the user accepts
    the changes. A `quiet` run prints to its log only, a `verbose` one each check in full. With a `group` this process
    is the first of several that train.
    """
    screen = Screen(run.log, quiet=quiet, verbose=verbose)
    follower = Follower(cfg, run, screen.say)
    refused, before = False, run.result()
    try:
        train = partial(_train, cfg, run, screen, follower, shared, resuming, accept_changes, group)
        with politely():
            code = _execute(cfg, run, screen, train, record or {}, resuming=resuming, group=group)
        return Exit.FAILED if code == Exit.SURROUNDINGS and not quiet else code
    except UserError as error:
        refused = not (resuming or quiet)  # a trial of a sweep is a row with its reason
        if resuming and not quiet and isinstance(error, DataChanged):
            run.put_back(before)
        raise
    finally:
        follower.close()
        if refused:
            run.discard()
        run.release()


def _execute(
    cfg: Settings,
    run: Run,
    screen: Screen,
    train: Callable[[], tuple[int, dict[str, Any]]],
    record: Mapping[str, Any],
    *,
    resuming: bool,
    group: Group | None,
) -> int:
    try:
        with screen:
            if not resuming:
                run.write_config(cfg.plain)
            run.update_result(status=Status.RUNNING, reason="", **origin(cfg), **record)
            code, ending = train()
    except KeyboardInterrupt:
        if group is not None and (cause := group.cause(None)) is not None:  # torchrun ends the others
            code, ending = _said(cause["reason"], cause["code"], run, screen, cause["trace"])
        else:
            code, ending = Exit.INTERRUPTED, {"status": Status.INTERRUPTED, "reason": "interrupted from outside"}
            screen.say(f"interrupted; `{_typed('resume', run)}` continues after the last finished epoch")
    except UserError as error:
        # one disk, one message; and a run without a config cannot be resumed
        _record(run, {"status": Status.FAILED, "reason": str(error)}, said=Surroundings.caused(error))
        if bad := getattr(error, "bad", None):  # the message names ten of them (D1)
            from dlrun.data.audit import listed

            file = run.write_audit([one.row() for one in listed(bad)])
            raise UserError(f"{error}; all are listed in {file}", error.code) from error
        raise
    except Exception as error:
        cause = None if group is None else group.cause(error)
        if cause is None:
            code, ending = _failure(error, run, screen)
        else:
            code, ending = _said(cause["reason"], cause["code"], run, screen, cause["trace"])
    if not _record(run, ending):
        return code or Exit.FAILED
    if ending["status"] in (Status.COMPLETED, Status.DIVERGED) and cfg.trainer.report:
        _report(run, screen)
    return code


def _typed(verb: str, run: Run) -> str:
    return shlex.join(["dlrun", verb, str(run.path)])


def _report(run: Run, screen: Screen) -> None:
    from dlrun.reports import run_report

    try:
        screen.say(f"report: {run_report.write(run.path)}")
    except Exception as error:  # the run is complete and stored: a failed picture must not change that
        screen.say(f"no report: {type(error).__name__}: {first_line(error)}; `{_typed('report', run)}` retries")


def _record(run: Run, ending: dict[str, Any], *, said: bool = False) -> bool:
    """Write how the run ended; False if that cannot be written, and then the status stays `running`.

    The user gets a message, unless one was `said` already.
    """
    try:
        run.update_result(**ending, ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    except UserError as error:
        if not said:
            print(f"dlrun: {error}; `{_typed('resume', run)}` finishes the run", file=sys.stderr)
        return False
    return True


def _train(
    cfg: Settings,
    run: Run,
    screen: Screen,
    follower: Follower,
    shared: SharedData | None,
    resuming: bool,
    accept_changes: bool,
    group: Group | None,
) -> tuple[int, dict[str, Any]]:
    # imported here, since torch takes seconds and many errors are found without it
    from dlrun.training import features, loop, same_data
    from dlrun.training.experiment import build

    started = time.monotonic()
    screen.wait("reading the data …")
    exp = build(cfg, shared, begun=run.last.exists())
    settle(exp, cfg, run)
    if resuming:
        exp = held(exp, run, screen, accept_changes)
    if changed := own_code.keep(run, cfg.trust):
        screen.say(changed, style="yellow")
    _introduced(exp, screen, group)
    omitted = accounted(exp, run, screen)
    run.update_result(data=exp.data.record(), parameters=sum(p.numel() for p in exp.model.parameters()))
    same_data.record(run, exp.data)
    run.update_result(train_acc_valid=exp.train_acc_valid)
    fresh = not run.last.exists()
    if fresh and cfg.check.enabled and not passed(exp, run, screen, omitted):
        reason = "a check before training failed, see checks.csv"
        return Exit.CHECK_FAILED, {"status": Status.CHECK_FAILED, "reason": reason}
    trained = features.swapped(exp, run, screen)
    state = restored(trained, run, screen, time.monotonic() - started + OUTSIDE)
    if group is not None:
        trained, state = group.join(trained, state)
    try:
        with counted(exp, group, omitted.report):
            loop.fit(trained, run, state, screen, follower)
    except loop.Diverged as error:
        screen.close()
        screen.say(f"stopped: {error}", style="bold red")
        diverged = {"status": Status.DIVERGED, "reason": str(error)}
        return Exit.DIVERGED, diverged | _verdicts(exp, run, screen, Status.DIVERGED)
    except loop.Stopped as stopped:
        screen.say(str(stopped))
        paused = {"status": stopped.status, "reason": str(stopped)}
        return Exit.FINE, paused | _verdicts(exp, run, screen, stopped.status)
    if group is not None:
        group.part()  # the others end; what follows is evaluated here
    screen.close()
    if (reason := stop_reason(exp, state)) != "all epochs done":
        screen.say(reason)
    ending = _finish(exp, run, state, omitted)
    summarise(exp, run, screen, state, ending)
    return Exit.FINE, ending | _verdicts(exp, run, screen, Status.COMPLETED, ending.get("sparsity"))


def _introduced(exp: Experiment, screen: Screen, group: Group | None) -> None:
    """Show what will be trained, and by how many processes. Raises UserError if these cannot share it."""
    from dlrun.training.divisible import must_divide

    trainer, place = exp.cfg.trainer, ranks.own()
    screen.say(headline(exp))
    if group is not None and place is not None:
        must_divide(exp, place)
        part = "" if trainer.sharding == "none" else " and a part of the weights"
        screen.say(f"{place.world} processes, each with {trainer.batch_size // place.world} images of a batch{part}")
    elif trainer.sharding != "none":
        screen.say(f"trainer.sharding={trainer.sharding}: one process has nothing to divide")


def _verdicts(exp: Experiment, run: Run, screen: Screen, status: str, sparsity: float | None = None) -> dict[str, Any]:
    from dlrun.analysis import verdicts
    from dlrun.folders import reading

    rows, layers = reading.metrics(run.path), reading.layers(run.path)
    data, checked = exp.data.record(), reading.checks(run.path)
    found = verdicts.judge(rows, layers, exp.cfg.plain, data, status, exp.train_acc_valid, checked, sparsity)
    for finding in found:
        screen.say(finding.text, style="bold red" if finding.severity == "stop" else "yellow")
    return {"verdicts": [f.record() for f in found]}


def _finish(exp: Experiment, run: Run, state: State, omitted: Omitted) -> dict[str, Any]:
    """Predict validation and test once, with the weights that trainer.keep chose; store predictions, return scores."""
    from dlrun.analysis import errors
    from dlrun.run.final_test import predicted, showcase, unlabelled_losses
    from dlrun.run.scoring import arrays_of, further
    from dlrun.training import checkpoint, loop
    from dlrun.training.normalised import probe
    from dlrun.training.objective import is_unsupervised

    tested = checkpoint.load(run.tested)
    checkpoint.load_weights(run.tested, tested, exp.model)
    started = time.perf_counter()
    test, dropped = exp.data.test()
    omitted.report(dropped)
    ending: dict[str, Any] = {
        "status": Status.COMPLETED,
        "reason": stop_reason(exp, state),
        "best_epoch": int(tested["best"]["epoch"]),
        "tested_epoch": int(tested["epoch"]),
    }
    if is_unsupervised(exp.objective):
        ending |= unlabelled_losses(exp, tested, test)
        return ending | _spent(exp, run, state, test, started)
    more, found = predicted(exp, tested, test)
    ending.update(more)
    stored = {}
    splits = {"val": exp.data.val, "test": test}
    for name, split in ((name, splits[name]) for name in found):
        ending.update(loop.scores(exp, found[name], name))
        arrays = {**arrays_of(exp.data, found[name]), "ids": split.ids}
        stored.update({f"{name}_{what}": values for what, values in arrays.items()})
    ending.update(further(exp, run, found))
    if "val" in found and exp.data.tasks is None:
        run.write_showcase(showcase(exp, found["val"]))
    run.write_predictions(stored)
    errors.write(run.path)
    if arrays := probe(exp):
        run.write_probe(arrays)
    ending |= _spent(exp, run, state, test, started)
    return ending | (sparse.shares(exp) if exp.cfg.regularizer.get("l1") else {})


def _spent(exp: Experiment, run: Run, state: State, test: Split, started: float) -> dict[str, Any]:
    """What every completed run records of its time and its data."""
    from dlrun.training import same_data

    same_data.record(run, exp.data, final=True)
    seconds = {"seconds": round(state.seconds, 3), "test_seconds": round(time.perf_counter() - started, 3)}
    return {"epochs": state.epoch, "test_samples": len(test), **seconds, "data": exp.data.record(final=True)}


def _failure(error: Exception, run: Run, screen: Screen) -> tuple[int, dict[str, Any]]:
    from dlrun.training.memory import out_of_memory

    screen.note(traceback.format_exc())
    if out_of_memory(error):
        what = f"out of memory: try trainer.accumulate=2 or a smaller trainer.batch_size ({first_line(error)})"
    else:
        what = f"{type(error).__name__}: {first_line(error)}"
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            what += "; trainer.compile=false trains without a compiler"
    return _said(what, Exit.SURROUNDINGS if Surroundings.caused(error) else Exit.FAILED, run, screen, " ")


def _said(what: str, code: int, run: Run, screen: Screen, trace: str) -> tuple[int, dict[str, Any]]:
    """Show why a run failed; a traceback is noted."""
    if trace.strip():
        screen.note(trace)
    where = f"; the traceback is in {run.log}" if trace else ""
    screen.say(f"dlrun: failed: {what}{where}; `{_typed('resume', run)}` continues", style="red")
    return code, {"status": Status.FAILED, "reason": what}


def store(exp: Experiment, run: Run, label: str, reason: str, **record: Any) -> dict[str, Any]:
    """Write a model that was made of trained ones as a completed run, tested once; return its scores.

    `label` stands for the objective in its config, so that no table counts it as another seed of what it is made of.
    `record` is stored too, such as `average_of`.
    """
    from dlrun.training import checkpoint

    screen = Screen(run.log)
    state = checkpoint.State(epoch=exp.cfg.trainer.epochs, best={"epoch": 0, "value": 0.0, "val_loss": 0.0})
    exp = replace(exp, cfg=exp.cfg.changed(choices={"objective": label}))
    run.write_config(exp.cfg.plain)
    run.update_result(status=Status.RUNNING, **origin(exp.cfg), **record)
    run.update_result(parameters=sum(p.numel() for p in exp.model.parameters()))
    checkpoint.write(run, checkpoint.snapshot(exp, state), is_best=True)
    ending = _finish(exp, run, state, Omitted(run, screen, exp.data.dropped)) | {"reason": reason}
    if "pruned_from" in record:
        ending |= sparse.judged(exp, record["pruned_from"], ending)
    _record(run, ending)
    return ending
