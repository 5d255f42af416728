"""The one training loop: `fit` with `train_epoch`, `step` and `predict` inside it (`dlrun train`, `dlrun resume`).

Practices B1, B2, B7, B8. Every loss and accuracy is a mean over samples, so a short last batch counts by its samples.
What an epoch leaves in the run's folder is in recording.py, which epoch is best and when to stop in choosing.py.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dlrun.analysis.classification import agreement, count
from dlrun.console import Screen
from dlrun.data.batches import Batch, Batches
from dlrun.folders.run import Run
from dlrun.training import averaging, memory, norms, pace, sam, sharded, tasks, unsupervised
from dlrun.training.checkpoint import State
from dlrun.training.choosing import advance, stopped_early
from dlrun.training.clipping import clip
from dlrun.training.diagnostics import Watch
from dlrun.training.evaluating import logits, spread
from dlrun.training.experiment import Experiment
from dlrun.training.loggers import Follower
from dlrun.training.loss import ByTask
from dlrun.training.multi_crop import VIEWS
from dlrun.training.objective import begin_epoch, columns, is_unsupervised, prepared
from dlrun.training.recording import Recorder, Unrecorded
from dlrun.vocabulary import PER_EPOCH, Status

if TYPE_CHECKING:
    from dlrun.training.group import Group

__all__ = ["Diverged", "Predictions", "Step", "Stopped", "fit", "predict", "scores", "step", "train_epoch"]


class Diverged(Exception):
    """The loss is not finite: the run stops before such weights are saved (B8)."""


class Stopped(Exception):
    """The run ends before its last epoch, by trainer.stop_after or on request; `status` says which."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Step(NamedTuple):
    """Sums over the samples of a batch, as scalars on its device, so that reading them is left to the caller.

    `loss` in the units of the loss, without the penalty; `correct` in samples; `penalty`, and `grad_norm` of the
    whole gradient before clipping, each times the number of samples.
    """

    loss: Tensor
    correct: Tensor
    penalty: Tensor
    grad_norm: Tensor


class Predictions(NamedTuple):
    """Logits (N, K) and labels (N,) of a split, on the processor."""

    logits: Tensor
    labels: Tensor


def fit(exp: Experiment, run: Run | None, state: State, screen: Screen, follower: Follower | None = None) -> None:
    """Train from `state` to the last epoch, or until trainer.patience is used up; record every epoch.

    Of several processes that train together the first one has the run, and decides.
    Raises Diverged if the loss is not finite (the last checkpoint is still finite), and Stopped if the run is to end
    earlier. In every case all files are written before it returns.
    """
    memory.collect_often()
    trainer, watch = exp.cfg.trainer, Watch(exp)
    part = exp.batches(exp.data.train.subset(spread(len(exp.data.train))))
    with Unrecorded() if run is None else Recorder(exp, run, state, screen, follower) as recorder:
        for epoch in pace.epochs(trainer, state):
            if exp.told(stopped_early(state, trainer, recorder.history)):
                return  # tested before an epoch, so that a run killed after its last one stops here when resumed
            started = time.perf_counter()
            memory.forget_peak(exp.device)

            row = train_epoch(exp, epoch, state, screen, watch)
            _average_epochs(exp, state)
            trained = time.perf_counter()
            row |= _validated(exp)
            if not is_unsupervised(exp.objective):
                row |= {"train_eval_acc": scores(exp, predict(exp, part), "part")["part_acc"]}
            row["eval_seconds"] = time.perf_counter() - trained
            _must_be_finite(row.get("val_loss", 0.0), f"validation after epoch {epoch}", row["lr"])
            look = watch.look(epoch)
            row |= {"update_ratio": look.update_ratio, "dead_fraction": look.dead_fraction, "nonlinear": look.nonlinear}
            row["memory_mb"] = memory.peak_mb(exp.device)
            seconds = state.seconds + time.perf_counter() - started
            test = _test_seconds(exp, len(part.images), row["eval_seconds"]) if trainer.hours else 0.0
            row, state.seconds, test = exp.told((row, seconds, test))
            exp.scheduler.end_epoch(row[trainer.monitor])
            is_best = advance(state, row, trainer.monitor)
            pace.end_epoch(trainer, state, test)
            recorder.record(row, look, is_best=is_best)

            reason = exp.told(None if run is None else run.asked_to_stop())
            if not pace.finished(trainer, state) and reason is not None:
                raise Stopped(Status.PRUNED, reason)
    if not pace.finished(trainer, state):
        last, planned = state.epoch, pace.planned(trainer, state)
        raise Stopped(Status.PAUSED, f"paused after epoch {last} of {planned} (trainer.stop_after={last})")


def _test_seconds(exp: Experiment, part: int, seconds: float) -> float:
    """About how long the final test will take, if the evaluation of an epoch with `part` training images took so long.

    Of a test split that was not read yet the size is taken to be that of validation.
    """
    data, kinds, views = exp.kept.data, 1 + (exp.average is not None), VIEWS.get(exp.cfg.trainer.multi_crop, 1)
    test = data.test().split if data.audited is not None else data.held or data.val
    passes = kinds * views + (views > 1)  # it is also tested by one view
    return seconds / (kinds * len(data.val) + part) * passes * (len(data.val) + len(test))


def _average_epochs(exp: Experiment, state: State) -> None:
    """Include the epoch after state.epoch in the average of the last epochs, with trainer.swa; copy earlier ones."""
    trainer = exp.cfg.trainer
    if not trainer.swa or exp.average is None:
        return
    state.averaged += pace.at(trainer, state, 1.0) > (1 - trainer.swa) * trainer.epochs + 1e-9
    averaging.join(exp.average, exp.model, max(1, state.averaged))
    if state.averaged > 1:
        # batches are made outside of autocast, which would augment in bfloat16
        images = (x for x, _, _ in exp.train.epoch(state.epoch + 1))
        averaging.measure(exp.average, images, norms.held(exp.model), exp.autocast)
        if exp.group is not None:
            exp.group.end_steps(exp)


def _validated(exp: Experiment) -> dict[str, Any]:
    """The validation columns of metrics.csv; none without a validation split."""
    if not len(exp.data.val):
        return {}
    if is_unsupervised(exp.objective):
        return unsupervised.losses(exp, exp.data.val, "val")
    row = scores(exp, predict(exp, exp.val), "val")
    if exp.average is not None:
        row |= scores(exp, predict(exp, exp.val, exp.average), "ema_val")
    return row


def train_epoch(exp: Experiment, epoch: int, state: State, screen: Screen, watch: Watch) -> dict[str, Any]:
    """Train on every batch once; return the training columns of metrics.csv. Raises Diverged."""
    steps, device, trainer = len(exp.train), exp.device, exp.cfg.trainer
    exp.scheduler.set(pace.at(trainer, state, 0.0))  # which layers train now; `train` holds the others
    if exp.group is not None:
        exp.group.begin_epoch(exp, epoch)
    begin_epoch(exp.objective, epoch, lambda split: predict(exp, exp.batches(split)).logits)
    parts = sharded.of(exp)
    parts.model.train()
    planned = pace.planned(trainer, state)
    # the sums of Step stay on the device, so that no step waits for the one before
    sums = torch.zeros(4, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    # no step asks an accelerator for them
    numbers = None if device.type == "cpu" and exp.group is None else exp.train.numbers(epoch)
    seen, started = 0, time.perf_counter()

    def progress() -> str:
        loss, correct = (sums[:2] / max(seen, 1)).tolist()
        return f"loss {loss:.4f} acc {correct:.4f} {seen / (time.perf_counter() - started):,.0f}/s"

    for i, (x, y, index) in enumerate(screen.steps(exp.train.epoch(epoch), steps, epoch, planned, progress)):
        if late := pace.measure(trainer, state, i, steps, lambda: exp.told(time.perf_counter() - started)):
            screen.say(late)
        exp.scheduler.set(pace.at(trainer, state, i / steps))
        weight = None if exp.train.weights is None else exp.train.weights[index]
        sample = None if numbers is None else numbers[i]
        batch = Batch(x, y, index, epoch=epoch, step=i, seed=exp.cfg.seed, weight=weight, sample=sample)
        if exp.group is not None:
            batch = exp.group.placed(batch)
        with watch.step(i, steps):
            sums += torch.stack(step(exp, batch)).to(sums)
        seen += batch.total or len(batch)
        state.step += 1
        if parts.average is not None and trainer.ema:
            averaging.follow(parts.average, parts.model, trainer.ema, state.step)
        if device.type == "cpu" or i == steps - 1 or i % 50 == 0:
            _must_be_finite(float(sums[0]), f"epoch {epoch}, step {i + 1} of {steps}", exp.scheduler.lr)
    if exp.group is not None:
        exp.group.end_steps(exp)
    loss, correct, penalty, norm = (total / seen for total in sums.tolist())
    seconds = time.perf_counter() - started
    row = {"epoch": epoch, "lr": exp.scheduler.lr, "train_loss": loss, "train_acc": correct, "penalty": penalty}
    row |= columns(exp.objective)
    return row | {"grad_norm": norm, "train_seconds": seconds, "samples_per_second": len(exp.data.train) / seconds}


def step(exp: Experiment, batch: Batch) -> Step:
    """Take one optimizer step on a batch, in trainer.accumulate parts, without waiting for an accelerator."""
    trainer, n, rho = exp.cfg.trainer, batch.total or len(batch), exp.cfg.optimizer.get("sam", 0.0)
    batch = prepared(exp.objective, batch)
    if exp.group is not None:
        batch = exp.group.trimmed(batch)
    own = sharded.of(exp)
    parameters = own.parameters
    measured = Step(*[batch.x.new_zeros(())] * 4)

    @torch.enable_grad()  # a step under no_grad() may call it as it is
    def closure() -> Tensor:
        # a closure, since L-BFGS evaluates the batch several times per step; the others call it once
        nonlocal measured
        measured, total = _gradients(exp, batch, parameters)
        if rho:
            with sam.ascended(own.model, parameters, rho):
                _gradients(exp, batch, parameters)
        norm = clip(parameters, trainer.clip_norm, trainer.clip_value)
        own.hand_over()
        measured = measured._replace(grad_norm=norm * n)
        if total.device.type == "cpu" and not math.isfinite(float(total)):
            measured = measured._replace(loss=total * n)
            raise _NotFinite
        return total

    try:
        exp.optimizer.step(closure)  # type: ignore[arg-type]
    except _NotFinite:
        return measured
    exp.penalty.project(own.model)
    return measured


def _gradients(exp: Experiment, batch: Batch, parameters: list[Tensor]) -> tuple[Step, Tensor]:
    """Set the gradients of the mean loss of a batch and of the penalty, and return what they are of.

    The norm is left to the caller. The second value is the sum of both (scalar).
    """
    zero, group = batch.x.new_zeros(()), exp.group
    count = n = batch.total or len(batch)
    split = norms.parts(n, exp.cfg.trainer.accumulate)
    if group is not None:
        n, split = group.divisor(batch), group.parts(batch, exp.cfg.trainer.accumulate)
    finite = False
    while not finite:  # in fp16 a batch may need a smaller scale
        sharded.of(exp).clear()
        data_loss, correct, penalty = zero, zero, zero
        parts = batch.parts(split) if group is None else group.numbered(batch.parts(split))
        for k, part in enumerate(parts):
            with nullcontext() if group is None else group.syncing(k == split - 1):
                with exp.autocast():
                    loss, logits = exp.objective(exp.stepped, _of_part(exp.loss, part, batch, group), part)
                share = loss if len(part) == n else loss * (len(part) / n)
                # the gradients of several processes are averaged, and their shares are to be added
                scaled = share if group is None else share * group.world
                torch.autograd.backward(scaled if exp.scale is None else scaled * exp.scale.value)
            data_loss = data_loss + share.detach()
            correct = correct + _right(exp, logits.detach(), part.y).sum(dtype=zero.dtype)
        if group is not None:
            data_loss, correct = group.summed(data_loss, correct * (count / n))
        # of a loss that is not finite the gradient never is
        finite = exp.scale is None or exp.scale.unscaled(parameters) or not math.isfinite(float(data_loss))
    total = data_loss
    if exp.penalty.active:
        added = sharded.whole(exp.penalty.penalty(sharded.of(exp).model))
        torch.autograd.backward(added)
        total, penalty = data_loss + added.detach(), added.detach() * count
    return Step(data_loss * count, correct, penalty, zero), total


def _right(exp: Experiment, logits: Tensor, y: Tensor) -> Tensor:
    """Whether each sample is right (B,); with several tasks the share of them that are."""
    return logits.argmax(1) == y if exp.data.tasks is None else exp.data.tasks.right(logits, y)


class _OfPart(nn.Module):
    """The mean over a part weighted by its samples, times a factor, so that all parts average to that of the batch.

    An objective calls it with logits and labels. Samples that it has from elsewhere count the same.
    """

    def __init__(self, loss: nn.Module, part: Batch, factor: Tensor | float) -> None:
        super().__init__()
        self.loss, self.weight, self.factor = loss, part.weight, factor
        self.theirs = None if part.other is None else part.other.target

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels is self.theirs:
            found: Tensor = self.loss(logits, labels)
            return found
        ours = self.weight is not None and len(labels) == len(self.weight)
        found = self.loss(logits, labels, self.weight) if ours else self.loss(logits, labels)
        return found * self.factor


def _of_part(loss: nn.Module, part: Batch, batch: Batch, group: Group | None) -> nn.Module:
    """The loss for a part of a batch; another one than for the whole only if its samples have weights (D6)."""
    weights = getattr(loss, "weights", None)
    if weights is None or (group is None and len(part) == len(batch) and batch.weight is None):
        return loss
    ours, all_of_them = weights(part.target, part.weight), weights(batch.target, batch.weight)
    if ours is None:
        return loss
    mean = all_of_them.mean() if group is None else group.mean(all_of_them, batch)
    return _OfPart(loss, part, ours.mean() / mean.clamp_min(torch.finfo(mean.dtype).tiny))


class _NotFinite(Exception):
    """Leaves the optimizer before it changes the weights."""


def predict(exp: Experiment, batches: Batches, model: nn.Module | None = None) -> Predictions:
    """Return the logits of a split in its order, in evaluation mode."""
    model = exp.model if model is None else model
    model.eval()
    # several processes share the samples, unless there are too few
    group = exp.group if exp.group is not None and len(batches.images) >= exp.group.world else None
    found, labels = [], []
    with torch.inference_mode(), exp.autocast():
        for x, y, _ in (batches if group is None else group.block(batches)).epoch(0):
            found.append(logits(model, x))
            labels.append(y)
    if group is not None:
        return Predictions(group.gathered(torch.cat(found), len(batches.images)).cpu(), batches.labels.cpu())
    return Predictions(torch.cat(found).cpu(), torch.cat(labels).cpu())


def scores(exp: Experiment, predictions: Predictions, split: str) -> dict[str, Any]:
    """Return loss, accuracy and the scores by class of a split under the names of the columns; None: undefined."""
    # a loss may hold class weights, which are on the device
    on_device = predictions.logits.to(exp.device), predictions.labels.to(exp.device)
    loss = exp.loss(*on_device)
    if isinstance(exp.loss, ByTask):
        losses = [float(value) for value in exp.loss.each(*on_device)]
        return {f"{split}_loss": float(loss)} | tasks.scores(exp.loss.tasks, losses, *predictions, split)
    # three counts per class, not a table of classes by classes: a thousandth of the time of evaluating
    counts = count(predictions.labels.numpy(), predictions.logits.argmax(1).numpy(), predictions.logits.shape[1])
    found = agreement(counts)
    return {f"{split}_loss": float(loss), **{f"{split}_{name}": found[name] for name in ("acc", *PER_EPOCH)}}


def _must_be_finite(value: float, where: str, lr: float) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"the loss is {value} at {where}, with lr {lr:.3g}: try optimizer.lr={lr / 10:.2g}, "
            "trainer.clip_norm=1 or scheduler.warmup=1"
        )
