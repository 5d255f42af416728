"""How a run begins: its name and folder, its data, and its last checkpoint (`dlrun train`, `dlrun resume`)."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.config import ranks
from dlrun.config.settings import Settings
from dlrun.console import Screen
from dlrun.folders.outputs import OUTPUTS, new_folder
from dlrun.folders.run import Run, claim
from dlrun.run import extending

if TYPE_CHECKING:
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import Experiment

__all__ = ["folder", "held", "label", "new_run", "restored", "settle"]


def label(cfg: Settings) -> str:
    """Return run.name, or the dataset and the model by the names of their options."""
    return cfg.name or "-".join(str(cfg.choices.get(group) or group) for group in ("dataset", "model"))


def folder(cfg: Settings) -> Path:
    """Return run.dir, or make a new folder."""
    return Path(cfg.run_dir).expanduser() if cfg.run_dir else new_folder(OUTPUTS / "runs", label(cfg))


def new_run(cfg: Settings) -> Run:
    """Claim the folder of a new run, which the process that started this one may have made. Raises UserError."""
    return claim(cfg.run_dir or os.environ.get(ranks.FOLDER), label(cfg))


def restored(exp: Experiment, run: Run, screen: Screen, before: float) -> State:
    """Return the state of the last checkpoint, or that of a new run, `before` seconds after it began."""
    from dlrun.training import checkpoint, pace

    fresh = not run.last.exists()
    state = checkpoint.restore(run, exp)
    pace.begin(exp.cfg.trainer, state, before)
    run.trim_metrics(state.epoch)
    if not fresh:
        if line := extending.said(exp, run, state):
            screen.say(line)
        screen.say(f"resuming after epoch {state.epoch} of {pace.planned(exp.cfg.trainer, state)}")
        run.update_result(epochs=state.epoch, seconds=round(state.seconds, 3))
    return state


def settle(exp: Experiment, cfg: Settings, run: Run) -> None:
    """Store the config that training follows if its data or weights changed it, and what was loaded."""
    if exp.cfg is not cfg:
        run.write_config(exp.cfg.plain)
        run.update_result(monitor=exp.cfg.trainer.monitor, config=exp.cfg.plain)
    if exp.start is not None:
        run.write_weights(exp.start.rows)
        run.update_result(started_from=exp.start.record())


def held(exp: Experiment, run: Run, screen: Screen, accept_changes: bool) -> Experiment:
    """Return the experiment with the data that the run began with. Raises DataChanged."""
    from dlrun.training.experiment import build
    from dlrun.training.same_data import continued
    from dlrun.training.shared_data import read_data

    dataset, trust, fit_all = exp.cfg.plain["dataset"], list(exp.cfg.trust), exp.cfg.trainer.fit_all
    again = partial(read_data, dataset, trust, fit_all=fit_all) if accept_changes else None
    data, said = continued(run.path, exp.data, again)
    if said:
        screen.say(said, style="yellow")
    return exp if data is exp.data else build(exp.cfg, data=data, begun=run.last.exists())
