"""What a completed run prints, and why it ended (`dlrun train`, O8)."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from dlrun.analysis.scores import counted, said
from dlrun.console import Screen
from dlrun.folders.outputs import OUTPUTS
from dlrun.folders.run import Run

if TYPE_CHECKING:
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import Experiment

__all__ = ["stop_reason", "summarise"]


def summarise(exp: Experiment, run: Run, screen: Screen, state: State, ending: dict[str, Any]) -> None:
    """Print the scores of a completed run, where its files are, and what to type next."""

    def shown(column: str) -> str:
        return counted(column, ending[column], ending)

    if "test_acc" not in ending:
        _without_labels(exp, run, screen, state, ending)
        return
    correct = f"{round(ending['test_acc'] * ending['test_samples'])} of {ending['test_samples']} images"
    if each := ending.get("tasks"):
        correct = ", ".join(f"{name} {one['test_acc']:.4f}" for name, one in each.items())
        if "test_map" in ending:
            correct = f"mean over classes, mAP {ending['test_map']:.4f}, F1 {ending['test_tuned_f1']:.4f}"
    why = "the last" if exp.cfg.trainer.keep == "last" else f"the best {exp.cfg.trainer.monitor}"
    validated = f"val_acc {shown('val_acc')}, " if "val_acc" in ending else ""
    screen.say(
        f"\ntest accuracy {ending['test_acc']:.4f} ({correct}), "
        f"loss {ending['test_loss']:.4f}, with the weights of epoch {ending['tested_epoch']} "
        f"({validated}{why}){said(ending)}",
        style="bold",
    )
    if "weights" in ending and validated:
        both = ", ".join(f"{w} {shown(f'{w}_test_acc')}, val {shown(f'{w}_val_acc')}" for w in ("raw", "ema"))
        screen.say(f"test accuracy by weights: {both}; better on validation: {ending['weights']}")
    if "multi_crop" in ending:
        screen.say(f"with multi_crop={ending['multi_crop']}; without it {shown('plain_test_acc')}")
    epochs = "1 epoch" if state.epoch == 1 else f"{state.epoch} epochs"
    screen.say(f"{epochs} in {state.seconds:.1f} s; all files are in {run.path}")
    beneath = OUTPUTS.resolve() in run.path.resolve().parents
    words = ["dlrun", "compare", *(() if beneath else [str(run.path)])]
    screen.say(f"next: `{shlex.join(words)}` lists {'your runs' if beneath else 'this run'}")


def _without_labels(exp: Experiment, run: Run, screen: Screen, state: State, ending: dict[str, Any]) -> None:
    """The losses of a run that has no accuracy (M10), and how its weights are used."""
    validated = f"val_loss {ending['val_loss']:.4f}, " if "val_loss" in ending else ""
    why = "the last" if exp.cfg.trainer.keep == "last" else f"the best {exp.cfg.trainer.monitor}"
    weights = f"with the weights of epoch {ending['tested_epoch']} ({validated}{why})"
    screen.say(f"\ntest loss of the objective {ending['test_loss']:.4f}, {weights}", style="bold")
    epochs = "1 epoch" if state.epoch == 1 else f"{state.epoch} epochs"
    screen.say(f"{epochs} in {state.seconds:.1f} s; all files are in {run.path}")
    screen.say(f"next: `{shlex.join(['dlrun', 'train', f'trainer.start_from={run.path}'])}` learns the classes")


def stop_reason(exp: Experiment, state: State) -> str:
    """Return why training ended, for result.json."""
    from dlrun.training import pace

    trainer, best = exp.cfg.trainer, state.best or {}
    if pace.finished(trainer, state):
        return f"trainer.hours={trainer.hours:g} used" if trainer.hours else "all epochs done"
    images = {"data": {"train": len(exp.data.train), "val": len(exp.data.val)}}
    score = f"{counted(trainer.monitor, best.get('value'), images)} of epoch {best.get('epoch')}"
    epochs = f"{trainer.patience} epoch{'s' * (trainer.patience > 1)}"
    gap = ", and the gap between val_loss and train_loss no longer shrinks" if trainer.while_gap_shrinks else ""
    return f"stopped early: no {trainer.monitor} better than {score} for {epochs}{gap}"
