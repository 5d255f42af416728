"""Copies that the checks work on, so that a run is the same with and without checks (`dlrun check`, C1-C10).

A check gets a copy of the model without dropout, the data loss without label smoothing, and samples without
augmentation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dlrun.data.batches import Batch
from dlrun.data.splits import Split
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment, Objective
from dlrun.training.random_state import rng_state, set_rng_state

__all__ = ["data_loss", "fitted", "in_turn", "named", "no_trace", "replica", "samples", "settle", "training", "uniform"]
__all__ += ["copied_optimizer", "peak_rates", "twin", "wants_log_probabilities"]


@contextmanager
def no_trace() -> Iterator[None]:
    """Restore the random state at the end, also after an error."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


def replica(exp: Experiment) -> nn.Module:
    """Return a copy of the model in training mode with dropout off (regularisation off, C1, C3).

    What is frozen in the first epochs alone trains in it.
    """
    model = copied(exp.model)
    if exp.frozen is not None:
        exp.frozen.released(model, exp.cfg.trainer.epochs)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return model.train()


def data_loss(exp: Experiment) -> nn.Module:
    """Return a copy of the loss with label smoothing off."""
    loss = copy.deepcopy(exp.loss)
    if hasattr(loss, "label_smoothing"):
        loss.label_smoothing = 0.0  # type: ignore[assignment]
    return loss


def wants_log_probabilities(exp: Experiment) -> bool:
    """Whether the loss takes log-probabilities, as torch.nn.NLLLoss does: adding 1 to all of them takes 1 off it.

    A loss of dlrun, which knows its own value at chance, takes logits.
    """
    loss, classes = data_loss(exp), exp.num_classes
    if hasattr(loss, "chance"):
        return False
    scores = torch.linspace(-2.0, 1.0, 4 * classes, device=exp.device).view(4, classes)
    y = torch.arange(4, device=exp.device) % classes
    try:
        return abs(float(loss(scores, y)) - float(loss(scores + 1, y)) - 1) < 1e-4
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False


def fitted(exp: Experiment, logits: Tensor) -> Tensor:
    """Return logits (B, K) as the loss takes them: as they are, or as log-probabilities."""
    return logits.log_softmax(1) if wants_log_probabilities(exp) else logits


def uniform(exp: Experiment, count: int) -> Tensor:
    """Return the outputs (count, K) that give every class the same probability, as the loss takes them."""
    return fitted(exp, torch.zeros(count, exp.num_classes, device=exp.device))


def in_turn(labels: Tensor, classes: int) -> Tensor:
    """Return an order of the samples (N,) in which the classes alternate.

    The samples of a folder are sorted by class, and twenty samples of one class are not enough for a check.
    """
    rank = torch.zeros_like(labels)
    for c in range(classes):
        mine = (labels == c).nonzero().squeeze(1)
        rank[mine] = torch.arange(len(mine))
    return torch.argsort(rank * classes + labels, stable=True)


def _in_turn(exp: Experiment, split: Split) -> Tensor:
    """An order of the samples in which the classes alternate, of several tasks the combinations, in a fixed draw."""
    if exp.data.tasks is None:
        return in_turn(split.labels, exp.num_classes)
    there, number = torch.unique(split.labels, return_inverse=True)
    drawn = torch.randperm(len(there), generator=torch.Generator().manual_seed(0))
    return in_turn(drawn[number], len(there))


def samples(
    exp: Experiment, count: int, split: Split | None = None, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return up to `count` normalised samples (B, C, H, W) of a split (default: train) and their labels (B,).

    The classes alternate, and nothing is augmented. `index` selects the samples instead; it may be shorter.
    """
    split = exp.data.train if split is None else split
    index = _in_turn(exp, split) if index is None else index
    x, y, _ = next(exp.batches(split.subset(index[:count]), batch_size=count).epoch(0))
    return x, y


def training(
    exp: Experiment,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    rate: float,
    loss: nn.Module | None = None,
    objective: Objective | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Take a step of Adam on each batch; yield the loss, with its graph, and the logits (B, K) before the step.

    Ends if nothing can be trained: at once if the model is frozen, after the first batch if the loss has no gradient.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        return
    # one kernel for everything that a step changes in a tensor: a fifth of the time
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trainable)
    optimizer = torch.optim.Adam(trainable, lr=rate, fused=fused)
    loss = data_loss(exp) if loss is None else loss
    objective = copy.deepcopy(exp.objective) if objective is None else objective
    for x, y in batches:
        optimizer.zero_grad()
        with exp.autocast():
            value, logits = objective(model, loss, Batch(x, y))
        if value.requires_grad:
            torch.autograd.backward(value)
            optimizer.step()
        yield value, logits.detach()
        if not value.requires_grad:
            return


def settle(model: nn.Module, x: Tensor) -> None:
    """Set the running statistics of batch norms to those of one batch: after a few steps they lag far behind."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    was_training = model.training
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    model.train(was_training)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def named(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def peak_rates(exp: Experiment) -> list[float]:
    """Return the learning rate of each group at the peak of its schedule; now it may be warming up."""
    present = [float(group["lr"]) for group in exp.optimizer.param_groups]
    base = exp.scheduler.state_dict()["base_lrs"]
    if len(base) != len(present):  # not the optimizer of the schedule
        return present
    return [max(p, b) if p else 0.0 for p, b in zip(present, base, strict=True)]


def twin(exp: Experiment) -> Experiment:
    """Return the experiment with copies of all that a step changes; one memo, so that the copy steps the copy."""
    memo: dict[int, Any] = {}
    model, loss = copied(exp.model, memo), copy.deepcopy(exp.loss, memo)
    objective = copy.deepcopy(exp.objective, memo)
    own = copied_optimizer(exp.optimizer, memo)
    scale = copy.deepcopy(exp.scale)
    return replace(exp, model=model, loss=loss, objective=objective, optimizer=own, scale=scale)


def copied_optimizer(optimizer: torch.optim.Optimizer, memo: dict[int, Any]) -> torch.optim.Optimizer:
    """Return a copy of an optimizer for the tensors that `memo` holds under the ids of its own."""
    own = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        if name not in vars(own) and not callable(value):  # torch leaves out what L-BFGS keeps in attributes
            setattr(own, name, copy.deepcopy(value, memo))
    return own
