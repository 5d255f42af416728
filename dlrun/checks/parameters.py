"""C9: every parameter learns, and the optimizer updates it at a reasonable rate.

`parameters` detects: tensors that get no gradient (detached, never used, behind dead units), layers kept in
a plain list, which neither the model nor the optimizer knows, weights that are frozen without model.freeze, and the
reverse, batch norms whose running statistics never change. A tensor whose gradient starts at exactly zero, as behind a
residual branch that starts at zero, has a few steps to get one; that of a bias before a norm may stay zero, but must
exist. `optimizer` takes a few real training steps on a copy with the configured optimizer: it detects tensors that it
lacks or should not have, a rate of zero, a rate that explodes at once, impossible momentum or weight decay. Cannot
detect: a rate that is merely poor (O5 does), or a gradient that exists and is wrong (C4 does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from dlrun.checks.advice import advice
from dlrun.checks.blame import blame
from dlrun.checks.chance import expected_loss
from dlrun.checks.check import SETUP, check
from dlrun.checks.exempt import judged
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import data_loss, named, peak_rates, replica, training, twin
from dlrun.checks.smaller import small_samples
from dlrun.data.batches import Batch
from dlrun.training import loop
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["optimizer", "parameters"]

COUNT, TRIES = 16, 5
MANY = 320  # samples that a tensor without a gradient is given in the end
STEPS = 4
ROSE, EXPLODED = 10.0, 100.0  # times the larger of the first loss and chance, after a few steps
WEAK = "the rate or the gradient is too small"
MOMENTUM = 0.999  # averages over a thousand steps
SANE = 0.01  # a rate at which few optimizers explode


@check(order=120, needs_outputs=True, by_module=True)
def parameters(exp: Experiment) -> Verdict:
    """Look for parameters without a gradient and for tensors that get one but are not parameters."""
    if (found := _frozen(exp)) is not None:
        return found
    model = replica(exp)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    frozen = sum(1 for p in model.parameters() if not p.requires_grad)
    expected = f"a gradient for each of {len(trainable)} tensors"
    before = _statistics(model)
    reached, strangers, finite = _gradients(exp, model, trainable)
    stuck = [n for n, now in _statistics(model).items() if now[0] > before[n][0] and torch.equal(now[1], before[n][1])]
    missed = [n for n, p in trainable.items() if n not in reached and (p.grad is None or not _excused(n, reached))]
    shown = f"{len(reached)} of {len(trainable)} tensors"
    if not finite:
        message = "the gradient is not finite at the start" + advice(exp, "model.init=default", "model.norm=batch")
        return Verdict(Outcome.FAIL, "nan or inf", expected, message)
    if strangers:
        message = (
            f"{len(strangers)} tensors get a gradient but are not parameters of the model "
            f"({named(_places(model, strangers))}), so the optimizer never updates them: "
            "put layers into nn.ModuleList, tensors into nn.Parameter"
        )
        return Verdict(Outcome.FAIL, f"{len(strangers)} unregistered", expected, message)
    chosen = _routed(exp) if missed else ()
    missed = judged(exp, "parameters", (n for n in missed if not chosen or not n.startswith(chosen)))
    if missed:
        message = (
            f"no gradient reaches {named(missed)}: a detach() or no_grad(), a layer that forward() "
            "never uses, or dead units behind it; use the layer, or freeze it with requires_grad_(False)"
        )
        message += blame(exp, replica(exp), *small_samples(exp, COUNT))
        return Verdict(Outcome.FAIL, shown, expected, message)
    if stuck:
        message = (
            f"the running statistics of {named(stuck)} never change in training, so evaluation normalises with their "
            "initial values, 0 and 1: build the norm with momentum=0.1, and remove code that resets them"
        )
        return Verdict(Outcome.FAIL, f"{len(stuck)} norms do not change", "statistics that change", message)
    message = f"every trainable tensor gets a gradient{f'; {frozen} are frozen' if frozen else ''}"
    if exp.frozen is not None and exp.frozen.text:
        message += f" (model.freeze: {exp.frozen.text})"
    return Verdict(Outcome.PASS, shown, expected, message)


def _frozen(exp: Experiment) -> Verdict | None:
    """A verdict if weights are frozen and should not be, or train and should not, else None."""
    parameters = dict(exp.model.named_parameters())
    asked = exp.frozen.starts if exp.frozen is not None else {}
    frozen = [n for n, p in parameters.items() if not p.requires_grad]
    if len(frozen) == len(parameters):
        message = "every parameter is frozen, so nothing can be learned: unfreeze some with requires_grad_(True)"
        return Verdict(Outcome.FAIL, f"{len(frozen)} frozen", "some that train", message)
    expected = "frozen as model.freeze asks"
    if training := [n for n in asked if parameters[n].requires_grad]:
        message = f"model.freeze asks to freeze {named(training)}, which train: code sets requires_grad afterwards"
        return Verdict(Outcome.FAIL, f"{len(training)} train", expected, message)
    mistaken = [n for n in frozen if n not in asked]
    if 2 * sum(parameters[n].numel() for n in mistaken) > sum(p.numel() for p in parameters.values()):
        message = (
            f"{named(mistaken)}, most of the weights, are frozen by the code of the model, not by model.freeze: if they"
            " are meant to be, type model.freeze=backbone, which also holds their batch norms; else call "
            "model.requires_grad_(True)"
        )
        return Verdict(Outcome.FAIL, f"{len(mistaken)} frozen", expected, message)
    return None


def _gradients(
    exp: Experiment, model: nn.Module, trainable: Mapping[str, Tensor]
) -> tuple[set[str], list[Tensor], bool]:
    """Names that got a gradient, leaves of the graph that are not parameters, and whether all was finite."""
    x, y = small_samples(exp, COUNT)
    loss = data_loss(exp)
    known = {id(p) for p in model.parameters()} | {id(p) for p in loss.parameters()}
    reached: set[str] = set()
    strangers: dict[int, Tensor] = {}
    for value, _ in training(exp, model, repeat((x, y), TRIES), 1e-3, loss):
        strangers |= {id(t): t for t in _leaves(value) if id(t) not in known}
        for name, p in trainable.items():
            if p.grad is not None and bool(p.grad.any()):
                reached.add(name)
                if not bool(p.grad.isfinite().all()):
                    return reached, [], False
        if len(reached) == len(trainable):
            break
    _more(exp, model, trainable, reached)
    return reached, list(strangers.values()), True


def _more(exp: Experiment, model: nn.Module, trainable: Mapping[str, Tensor], reached: set[str]) -> None:
    """Add what other samples reach: a few samples need not reach every expert of a mixture of experts."""
    missing = {n: p for n, p in trainable.items() if n not in reached}
    if not missing or not reached or all(_excused(n, reached) for n in missing):
        return
    x, y = small_samples(exp, MANY)
    batches = zip(torch.split(x, COUNT), torch.split(y, COUNT), strict=True)
    for _ in training(exp, model, batches, 1e-3):
        reached |= {n for n, p in missing.items() if p.grad is not None and bool(p.grad.any())}
        if len(reached) == len(trainable):
            return


def _routed(exp: Experiment) -> tuple[str, ...]:
    """The prefixes of parts that some samples run and others do not, as a mixture of experts does."""
    model = replica(exp).eval()
    lists = {name for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))}
    ran: set[str] = set()
    seen: list[frozenset[str]] = []
    hooks = [
        m.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, m in model.named_modules()
        if name.rpartition(".")[0] in lists
    ]
    with torch.no_grad():
        for x in torch.split(small_samples(exp, 2 * COUNT)[0], 1) if hooks else ():
            ran.clear()
            model(x)
            seen.append(frozenset(ran))
    varying = frozenset.union(*seen) - frozenset.intersection(*seen) if seen else ()
    return tuple({f"{name.rpartition('.')[0]}." for name in varying})


def _statistics(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """How many batches each batch norm in training mode has counted, and its running mean and variance (2C,)."""
    return {
        name: (int(m.num_batches_tracked), torch.cat([m.running_mean, m.running_var]))
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None and m.running_var is not None
        if m.num_batches_tracked is not None
    }


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors that a backward pass from `value` ends in."""
    todo: list[Node] = [value.grad_fn] if value.grad_fn is not None else []
    seen = set(todo)
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


def _excused(name: str, reached: set[str]) -> bool:
    """Whether it is a bias that the next operation cancels, so its gradient is zero; lint_bias reports it."""
    return name.endswith("bias") and name[: -len("bias")] + "weight" in reached


def _places(model: nn.Module, strangers: list[Tensor]) -> list[str]:
    """The attributes that hold these tensors, if they are found."""
    wanted = {id(t) for t in strangers}
    found = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and wanted & {id(t) for t in _inside(value)}:
                found.append(".".join(filter(None, (name, attribute))))
    return found or [f"of shape {tuple(t.shape)}" for t in strangers]


def _inside(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (list, tuple, set, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inside(item)


@check(order=130, needs_outputs=True, depends_on=(*SETUP, "optimizer", "scheduler", "trainer"))
def optimizer(exp: Experiment) -> Verdict:
    """Compare the optimizer's tensors with the model's, then take a few training steps of a copy."""
    found = _membership(exp) or _settings(exp)
    if found is not None:
        return found
    trial = twin(exp)
    model, own = trial.model.train(), trial.optimizer
    for group, rate in zip(own.param_groups, peak_rates(exp), strict=True):
        group["lr"] = rate
    x, y = small_samples(exp, min(COUNT, exp.cfg.trainer.batch_size))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses, idle, moved = [], set(before), set[str]()
    for _ in range(STEPS):
        try:
            losses.append(float(loop.step(trial, Batch(x, y)).loss) / len(y))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            return Verdict(
                Outcome.SKIP, "not run", "", "skipped: no gradient; fix the problem reported by `parameters` first"
            )
        idle -= {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        # after every step: two steps up and two down by a sign bring a single weight back to its start
        moved |= {n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}
        if not losses[-1] < float("inf"):
            break
    start = max(abs(losses[0]), expected_loss(exp, y)[0])
    rate = max(float(group["lr"]) for group in own.param_groups)
    steps = len(losses)
    shown = f"loss {losses[0]:.3g} to {losses[-1]:.3g} in {steps} steps", f"under {ROSE:g} × {start:.3g}"
    if not losses[0] < float("inf"):
        message = "the loss is not finite before the first step" + advice(exp, "model.init=default")
        return Verdict(Outcome.FAIL, *shown, message)
    if not losses[-1] <= EXPLODED * start:
        message = f"the loss explodes at lr {rate:g}" + advice(exp, f"optimizer.lr={min(rate / 100, SANE):.2g}")
        return Verdict(Outcome.FAIL, *shown, message)
    still = [n for n in before if n not in moved | idle and not _excused(n, moved)]
    if still:
        message = f"{named(still)} did not change in {steps} steps at lr {rate:g}: {_group(exp, moved) or WEAK}"
        message += advice(exp, "optimizer.lr=1e-3") if rate < 1e-3 else ""
        return Verdict(Outcome.FAIL, f"{len(still)} of {len(before)} did not change", "all change", message)
    if losses[-1] > ROSE * start:
        message = f"the loss rises steeply at lr {rate:g}" + advice(exp, f"optimizer.lr={rate / 10:.2g}")
        return Verdict(Outcome.WARN, *shown, message)
    return Verdict(Outcome.PASS, *shown, "the optimizer has every trainable tensor, and changes it")


def _group(exp: Experiment, moved: set[str]) -> str:
    """A cause if the tensors that do not change make up whole groups of the optimizer, else ""."""
    groups = exp.optimizer.param_groups
    names = {id(p): n for n, p in exp.model.named_parameters()}
    found = [k for k, group in enumerate(groups) if not moved & {names.get(id(p), "") for p in group["params"]}]
    if not found or len(found) == len(groups):
        return ""
    which = f"group{'s' * (len(found) > 1)} {', '.join(map(str, found))} of {len(groups)}"
    if all(not groups[k]["lr"] for k in found):
        return f"they are {which}, whose rate is 0; type model.freeze if they are to stay"
    return f"they are {which}, which step() leaves out: loop over all of self.param_groups, not over the first alone"


def _membership(exp: Experiment) -> Verdict | None:
    """A verdict if the optimizer does not hold each trainable tensor of the model exactly once, else None."""
    held = [id(p) for group in exp.optimizer.param_groups for p in group["params"]]
    trainable = {n: id(p) for n, p in exp.model.named_parameters() if p.requires_grad}
    foreign = set(held) - {id(p) for p in exp.model.parameters()} - {id(p) for p in exp.loss.parameters()}
    missing = [n for n, p in trainable.items() if p not in held]
    shown = f"{len(held)} tensors", f"{len(trainable)}, those of the model"
    if foreign:
        message = (
            f"{len(foreign)} tensors of the optimizer do not belong to the model: the model was replaced or changed "
            "afterwards; build the optimizer last, from model.parameters()"
        )
        return Verdict(Outcome.FAIL, *shown, message)
    if missing:
        message = f"the optimizer lacks {named(missing)}, so they never change: pass it all of model.parameters()"
        return Verdict(Outcome.FAIL, *shown, message)
    if len(set(held)) < len(held):
        message = "the optimizer holds a tensor twice and would update it twice: pass each in one group"
        return Verdict(Outcome.FAIL, *shown, message)
    return None


def _settings(exp: Experiment) -> Verdict | None:
    """A verdict on settings with which no training works, else None."""
    for group, lr in zip(exp.optimizer.param_groups, peak_rates(exp), strict=True):
        momentum = float(group.get("momentum") or 0.0)
        decay = lr * float(group.get("weight_decay") or 0.0)
        if momentum >= 1 or momentum < 0:
            message = f"momentum {momentum:g} accumulates without bound: expected 0 or more and less than 1"
            message += advice(exp, "optimizer.momentum=0.9")
            return Verdict(Outcome.FAIL, f"momentum {momentum:g}", "0 to 0.99", message)
        if momentum > MOMENTUM:
            steps = 1 / (1 - momentum)
            message = f"momentum {momentum:g} averages over {steps:.0f} steps" + advice(exp, "optimizer.momentum=0.9")
            return Verdict(Outcome.WARN, f"momentum {momentum:g}", "0 to 0.99", message)
        if decay >= 1:
            message = "lr × weight_decay of 1 or more removes a weight in one step" + advice(
                exp, "optimizer.weight_decay=1e-4"
            )
            return Verdict(Outcome.FAIL, f"lr × weight_decay {decay:.3g}", "under 1", message)
    if not any(rate > 0 for rate in peak_rates(exp)):
        message = "a learning rate of 0 changes nothing"
        message += advice(exp, "optimizer.lr=1e-3") or "; look at what set it in optimizer.param_groups"
        return Verdict(Outcome.FAIL, "lr 0", "above 0", message)
    return None
