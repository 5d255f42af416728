"""A finished run trained for more epochs: `dlrun resume RUN trainer.epochs=60` (O8).

The run as it ended is kept whole in `earlier/epochs_0030/`, a run folder of its own. A schedule whose length follows
trainer.epochs is computed anew over all epochs, as if they had been asked for at the start: the learning rate rises
again where a longer schedule would be. Others continue.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.options import Options
from dlrun.errors import UserError
from dlrun.folders.run import Run
from dlrun.vocabulary import Status

if TYPE_CHECKING:
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import Experiment

__all__ = ["EXTENDING", "FOLLOWS", "extended", "said"]

EXTENDING = ("trainer.epochs", "trainer.patience")
FOLLOWS = "${trainer.epochs}"
# of result.json: what the end of a run adds, which the new end replaces
ENDING = re.compile(
    r"(raw_|ema_|plain_)?(val|test)_.*|best_epoch|tested_epoch|verdicts|weights|sparsity(_by_layer)?|ended|reason"
)
LEFT = ("earlier", "tensorboard", "mlruns", "stop")


def extended(run: Run, plain: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Keep the run as it ended, and return its config for more epochs, which is stored. Raises UserError."""
    result, typed = run.result(), dict(map(_parsed, words))
    before, done = int(plain["trainer"]["epochs"]), int(result.get("epochs") or 0)
    _refuse(run, plain, result, typed, done)
    epochs = typed["trainer.epochs"]
    config = {**plain, "trainer": {**plain["trainer"], "stop_after": 0}}
    for key, value in typed.items():
        config["trainer"][key.partition(".")[2]] = value
    for key in followers(plain, before):
        section, _, name = key.partition(".")
        config[section] = {**config[section], name: epochs}
    kept = _keep(run, done)
    past = [*result.get("extended", ()), {"epochs": done, "folder": str(kept.relative_to(run.path))}]
    run.write_config({**config, "trust": []})
    rest = {key: value for key, value in result.items() if not ENDING.fullmatch(key)}
    rest["typed"] = [*(word for word in result.get("typed") or () if word.partition("=")[0] not in typed), *words]
    run.put_back({**rest, "config": {**config, "trust": []}, "extended": past, "status": Status.INTERRUPTED})
    return config


def _parsed(word: str) -> tuple[str, int]:
    key, _, value = word.partition("=")
    if not value.isdigit():
        raise UserError(f"{word}: expected a whole number, such as {key}=60")
    return key, int(value)


def _refuse(run: Run, plain: Mapping[str, Any], result: Mapping[str, Any], typed: Mapping[str, int], done: int) -> None:
    trainer = plain["trainer"]
    if result.get("status") != Status.COMPLETED:
        again = f"`dlrun resume {run.path}` first"
        raise UserError(f"{run.path} is {result.get('status')}: only a completed run is extended; type {again}")
    if result.get("average_of") or result.get("pruned_from") or not run.last.is_file():
        new = f"start a new run with trainer.start_from={run.path}"
        raise UserError(f"{run.path}: it has no checkpoint that training can continue from; {new}")
    if trainer.get("hours"):
        raise UserError(f"{run.path}: trainer.hours={trainer['hours']} sets its epochs; start a new run")
    if "trainer.epochs" not in typed or typed["trainer.epochs"] <= done:
        raise UserError(f"{run.path} has trained {done} epochs: expected more, such as trainer.epochs={2 * done}")
    if done < int(trainer["epochs"]) and not typed.keys() & {"trainer.patience"}:
        stopped = f"stopped early after epoch {done} (trainer.patience={trainer.get('patience')})"
        raise UserError(f"{run.path}: {stopped}; add trainer.patience=0, or a larger number")


def followers(plain: Mapping[str, Any], epochs: int) -> list[str]:
    """Return the keys whose default is the number of epochs and whose stored value is."""
    options, found = Options(), []
    for group, name in (plain.get("choices") or {}).items():
        if isinstance(name, str) and isinstance(plain.get(group), Mapping):
            for key, one in options.keys(group, name).items():
                if one.value == FOLLOWS and plain[group].get(key.partition(".")[2]) == epochs:
                    found.append(key)
    return found


def _keep(run: Run, done: int) -> Path:
    """Copy the run as it ended into a folder below it; checkpoints, which are replaced and never changed, as links."""
    place = run.path / "earlier" / f"epochs_{done:04d}"
    if (place / "config.yaml").is_file():
        return place  # kept by an attempt that was interrupted
    making = place.with_name("unfinished")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for path in sorted(run.path.iterdir()):
        if path.name in LEFT or path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            shutil.copytree(
                path, making / path.name, copy_function=_link if path.name == "checkpoints" else shutil.copy2
            )
        else:
            shutil.copy2(path, making / path.name)
    making.rename(place)
    return place


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def said(exp: Experiment, run: Run, state: State) -> str:
    """Return what the schedule of an extended run means, before it continues; empty for another run."""
    from dlrun.folders import reading

    past = run.result().get("extended") or []
    if not past or past[-1]["epochs"] != state.epoch:
        return ""
    trainer, name = exp.cfg.trainer, exp.cfg.choices.get("scheduler") or "the schedule"
    rates = [row[0] for row in exp.scheduler.plan(trainer.epochs, 1)]
    rows = reading.metrics(run.path)
    then = f"; it ended at {float(rows[-1]['lr']):.2g}" if rows and rows[-1].get("lr") else ""
    follows = any(key.startswith("scheduler.") for key in followers(exp.cfg.plain, trainer.epochs))
    how = (
        f"is computed anew over {trainer.epochs} epochs" if follows else "continues: trainer.epochs does not change it"
    )
    now, end = (f"{rates[at]:.2g}" for at in (state.epoch, -1))
    kept = f"the run as it ended after epoch {state.epoch} is kept in {run.path / past[-1]['folder']}"
    rate = f"lr {now} at the start of epoch {state.epoch + 1}{then}"
    last = f", and {end} at the start of epoch {trainer.epochs}" if trainer.epochs > state.epoch + 1 else ""
    return f"{kept}\nscheduler={name} {how}: {rate}{last}"
