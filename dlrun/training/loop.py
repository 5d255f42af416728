"""The one training loop: `fit`, with `train_epoch` and `predict` inside it (`dlrun train`, `dlrun resume`).

Practices B1, B2, B7, B8. Every loss and accuracy is a mean over samples, so a short last batch skews nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.analysis import verdicts
from dlrun.console import Screen
from dlrun.data.batches import Batches
from dlrun.folders import reading
from dlrun.folders.run import Run
from dlrun.training import averaging, checkpoint, memory
from dlrun.training.checkpoint import State
from dlrun.training.choosing import advance, kept, stopped_early
from dlrun.training.diagnostics import Look, Watch
from dlrun.training.experiment import Experiment
from dlrun.training.loggers import Follower
from dlrun.vocabulary import AVERAGED, COLUMNS, Status

__all__ = ["Diverged", "Predictions", "Stopped", "fit", "predict", "scores", "step"]


class Diverged(Exception):
    """The loss is not finite: the run stops before such weights are saved (B8)."""


class Stopped(Exception):
    """The run was asked to end before its last epoch: by trainer.stop_after, or from outside."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Predictions:
    """Logits (N, K) and labels (N,) of a split, on the processor."""

    logits: Tensor
    labels: Tensor


def fit(exp: Experiment, run: Run, state: State, screen: Screen, follower: Follower | None = None) -> None:
    """Train from `state` to the last epoch or out of patience; a row in metrics.csv and a checkpoint after each.

    They are written while the next epoch trains, and are there when this returns or raises.

    Raises Diverged when the loss is not finite, the last checkpoint being finite still, and Stopped when it is
    asked to end earlier.
    """
    trainer, watch, history = exp.cfg.trainer, Watch(exp), reading.metrics(run.path)
    config, data, last = exp.cfg.plain, exp.data.record(), trainer.last_epoch
    with checkpoint.Writer() as writer:
        for epoch in range(state.epoch + 1, last + 1):
            if stopped_early(state, trainer, history):
                return  # asked before an epoch, so that a run killed after its last one stops there when resumed
            started = time.perf_counter()
            row, look = _epoch(exp, epoch, state, screen, watch)
            is_best = advance(state, row, trainer.monitor)
            state.seconds += time.perf_counter() - started
            history.append(row)
            writer.wait()  # before the snapshot: no two are held
            writer.begin(_writing(run, exp, state, history, look, is_best=is_best))
            screen.epoch(row, trainer.epochs, is_best)
            screen.warn(verdicts.urgent(history, look.rows, config, data))
            if follower is not None and follower.listens:
                writer.wait()  # no kill may undo an epoch that a logger has heard of
                follower.follow(history)
            if epoch < last and (asked := run.asked_to_stop()) is not None:
                raise Stopped(Status.PRUNED, asked)
    if last < trainer.epochs and state.epoch == last:
        raise Stopped(Status.PAUSED, f"paused after epoch {last} of {trainer.epochs} (trainer.stop_after={last})")


def _epoch(exp: Experiment, epoch: int, state: State, screen: Screen, watch: Watch) -> tuple[dict[str, Any], Look]:
    """Train, validate and look at the layers; the row of metrics.csv. Raises Diverged."""
    started = time.perf_counter()
    memory.forget_peak(exp.device)
    row = train_epoch(exp, epoch, state, screen, watch)
    trained = time.perf_counter()
    row.update(scores(exp, predict(exp, exp.val), "val"))
    if exp.average is not None:
        row.update(scores(exp, predict(exp, exp.val, exp.average), "ema_val"))
    row.update(train_seconds=trained - started, eval_seconds=time.perf_counter() - trained)
    row["samples_per_second"] = len(exp.data.train.labels) / row["train_seconds"]
    _must_be_finite(row["val_loss"], f"validation after epoch {epoch}", row["lr"])
    look = watch.look(epoch)
    row.update(update_ratio=look.update_ratio, dead_fraction=look.dead_fraction)
    row["memory_mb"] = memory.peak_mb(exp.device)
    exp.scheduler.end_epoch(row[exp.cfg.trainer.monitor])
    return row, look


def _writing(
    run: Run, exp: Experiment, state: State, history: list[Any], look: Look, *, is_best: bool
) -> Callable[[], None]:
    """Return what writes all that an epoch leaves in the run's folder, from copies of what the next one changes."""
    trainer, row = exp.cfg.trainer, history[-1]
    columns = {c: row[c] for c in (COLUMNS if exp.average is None else COLUMNS + AVERAGED)}
    content = checkpoint.snapshot(exp, state)
    name = run.epoch_checkpoint(row, trainer.monitor) if trainer.keep in ("top3", "all") else None
    best = is_best and trainer.keep != "last"
    keep, told = kept(run, history, trainer), progress(state, row)

    def write() -> None:
        # the checkpoint comes after the rows that it answers for, and before result.json says so
        run.append_layers(look.rows)
        run.add_histograms(row["epoch"], look.histograms)
        run.append_metrics(columns)
        checkpoint.write(run, content, is_best=best, name=name, keep=keep)
        run.progress(**told)

    return write


def train_epoch(exp: Experiment, epoch: int, state: State, screen: Screen, watch: Watch) -> dict[str, Any]:
    """One pass over the training split. Raises Diverged."""
    exp.model.train()
    steps, device = len(exp.train), exp.device
    # loss, correct, penalty, gradient norm: summed where they are computed, so that no step waits for the others
    sums = torch.zeros(4, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    seen, started = 0, time.perf_counter()

    def look() -> str:
        loss, correct = (sums[:2] / max(seen, 1)).tolist()
        return f"loss {loss:.4f} acc {correct:.4f} {seen / (time.perf_counter() - started):,.0f}/s"

    batches = screen.steps(exp.train.epoch(epoch), steps, epoch, exp.cfg.trainer.epochs, look)
    for i, (x, y, index) in enumerate(batches):
        exp.scheduler.set(epoch - 1 + i / steps)
        with watch.step(i, steps):
            sums += step(exp, x, y, index).to(sums)
        seen += len(y)
        state.step += 1
        if exp.average is not None:
            averaging.follow(exp.average, exp.model, exp.cfg.trainer.ema, state.step)
        if device.type == "cpu" or i == steps - 1 or i % 50 == 0:
            _must_be_finite(float(sums[0]), f"epoch {epoch}, step {i + 1} of {steps}", exp.scheduler.lr)
    loss, correct, penalty, norm = sums.tolist()
    return {
        "epoch": epoch,
        "lr": exp.scheduler.lr,
        "train_loss": loss / seen,
        "train_acc": correct / seen,
        "penalty": penalty / seen,
        "grad_norm": norm / seen,
    }


def step(exp: Experiment, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
    """One optimizer step on a batch; returns the sums over its samples of loss, correct, penalty, gradient norm.

    `index` numbers the samples of the training split, for objectives that know more of them than their labels.
    """
    trainer, n = exp.cfg.trainer, len(y)
    parts = torch.zeros(4, device=x.device)
    split = max(1, min(trainer.accumulate, n // 2))  # batch norm needs two samples to tell them apart
    parameters = [p for group in exp.optimizer.param_groups for p in group["params"]]

    def closure() -> Tensor:
        # a closure, since L-BFGS evaluates the batch several times a step; the others call it once
        exp.optimizer.zero_grad(set_to_none=True)
        parts.zero_()
        total = x.new_zeros(())
        numbers = [None] * split if index is None else index.tensor_split(split)
        for xs, ys, part in zip(x.tensor_split(split), y.tensor_split(split), numbers, strict=True):
            with exp.autocast():
                loss, logits = exp.objective(exp.stepped, exp.loss, xs, ys, part)
            share = loss if split == 1 else loss * (len(ys) / n)
            torch.autograd.backward(share)
            total = total + share.detach()
            parts[1] += (logits.detach().argmax(1) == ys).sum()
        parts[0] = total * n
        if exp.penalty.active:
            penalty = exp.penalty.penalty(exp.model)
            torch.autograd.backward(penalty)
            parts[2] = penalty.detach() * n
            total = total + penalty.detach()
        parts[3] = _clip(parameters, trainer.clip_norm, trainer.clip_value) * n
        if x.device.type == "cpu" and not math.isfinite(float(total)):
            parts[0] = total * n
            raise _NotFinite
        return total

    try:
        exp.optimizer.step(closure)  # type: ignore[arg-type]
    except _NotFinite:
        return parts
    exp.penalty.project(exp.model)
    return parts


class _NotFinite(Exception):
    """Leaves the optimizer before it touches the weights."""


def _clip(parameters: list[Tensor], norm: float, value: float) -> Tensor:
    """Clip in place (O4) and return the norm of the whole gradient before it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    if norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, norm, total)
    if value:
        torch.nn.utils.clip_grad_value_(parameters, value)
    return total


def predict(exp: Experiment, batches: Batches, model: nn.Module | None = None) -> Predictions:
    """Return the logits of a split in its own order, in evaluation mode."""
    model = exp.model if model is None else model
    model.eval()
    logits, labels = [], []
    with torch.inference_mode(), exp.autocast():
        for x, y, _ in batches.epoch(0):
            logits.append(model(x).float())
            labels.append(y)
    return Predictions(torch.cat(logits).cpu(), torch.cat(labels).cpu())


def scores(exp: Experiment, predictions: Predictions, split: str) -> dict[str, float]:
    """Return loss and accuracy of a split, named as the columns are: means over its samples."""
    # a loss may hold weights of classes, which are on the device
    loss = exp.loss(predictions.logits.to(exp.device), predictions.labels.to(exp.device))
    accuracy = (predictions.logits.argmax(1) == predictions.labels).double().mean()
    return {f"{split}_loss": float(loss), f"{split}_acc": float(accuracy)}


def progress(state: State, row: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says while the run goes on."""
    best = state.best or {}
    return {
        "epochs": state.epoch,
        "best_epoch": int(best.get("epoch", 0)),
        "val_loss": row["val_loss"],
        "val_acc": row["val_acc"],
        "seconds": round(state.seconds, 3),
    }


def _must_be_finite(value: float, where: str, lr: float) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"the loss is {value} at {where}, with lr {lr:.3g}: try optimizer.lr={lr / 10:.2g}, "
            "trainer.clip_norm=1 or scheduler.warmup=1"
        )
