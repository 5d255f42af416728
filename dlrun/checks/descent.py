"""O4, C9, R1: what the configured optimizer does with this loss, its clipping, decay and groups; `dlrun check`.

On copies, with real training steps (dlrun.training.loop.step): the first step must point down the gradient; at rate 0
nothing may move; with a zero gradient weight decay must shrink the weights, by about what its number says; and all
planned steps together must be able to move the weights, which a gradient that is clipped to nothing cannot. Detects:
gradient ascent, a rate that the optimizer ignores, decay of the wrong sign or without effect, clipping to nothing, a
rate that is far too small. Cannot detect: a rate that is merely poor (O5), or mistakes that show after many steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dlrun.checks.advice import advice
from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import peak_rates, twin
from dlrun.checks.smaller import small_samples
from dlrun.data.batches import Batch
from dlrun.training import loop
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["descent"]

COUNT = 16
UPHILL = -0.1  # cosine of a step and the descent direction: noise and decay explain no more
REACH = 0.01, 0.03  # of a weight's norm that all planned steps can move it: a failure, and a warning
LATER = 6  # further steps, if the first is short: those of RAdam are not divided by the size of the gradient until then
POINTS = 4  # per epoch, of the planned rates
HARSH = 0.1  # of a weight that decay takes in a single step
ROUNDED = 1e-6  # of a weight: less is lost when float32 is rounded, in a sound optimizer as well
NEAR = 0.01  # of the way to other weights: they were not restored
CLIPPED = 10.0  # times shorter than the gradient: clipping decides the length of every step


@check(order=132, needs_outputs=True, depends_on=(*SETUP, "optimizer", "scheduler", "trainer"))
def descent(exp: Experiment) -> Verdict:
    """Take single steps of copies and compare them with the gradient, the decay and the planned training."""
    expected = "down the gradient, far enough"
    if not any(rate > 0 for rate in peak_rates(exp)):
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: the rate is 0; see `optimizer`")
    x, y = small_samples(exp, min(COUNT, exp.cfg.trainer.batch_size))
    batch = Batch(x, y)
    try:
        step = _Step(exp, batch)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: no gradient; see `parameters`")
    if not math.isfinite(step.cosine):
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: the gradient is 0 or not finite; see `parameters`")
    shown = f"cosine {step.cosine:.2f}, reach {step.reach:.2g} of a weight"
    for found in (_deaf(exp, batch), _uphill(exp, step), _decay(exp), _short(exp, step)):
        if found is not None:
            return Verdict(found[0], shown, expected, found[1])
    return Verdict(Outcome.PASS, shown, expected, "steps point down the gradient, and decay shrinks")


Found = tuple[Outcome, str] | None


class _Step:
    """One step of a copy at the peak rate: its cosine with -gradient, and how far the planned training can go."""

    def __init__(self, exp: Experiment, batch: Batch) -> None:
        trial = _begun(exp, batch)
        rates = peak_rates(exp)
        for group, rate in zip(trial.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        trainable = {n: p for n, p in trial.model.named_parameters() if p.requires_grad}
        before = {n: p.detach().clone() for n, p in trainable.items()}
        slopes = _gradients(trial, batch, trainable)
        self.norm = float(loop.step(trial, batch).grad_norm) / len(batch)
        moves = {n: p.detach() - before[n] for n, p in trainable.items()}
        along = sum(float((moves[n] * slopes[n]).sum()) for n in moves)
        sizes = [math.sqrt(sum(float(t.square().sum()) for t in some.values())) for some in (moves, slopes)]
        self.cosine = -along / (sizes[0] * sizes[1]) if min(sizes) > 0 else math.nan
        planned = exp.scheduler.plan(exp.cfg.trainer.epochs, POINTS)
        steps = len(exp.train) * sum(map(sum, planned)) / POINTS / (max(map(max, planned)) or 1.0)
        momentum = max(float(group.get("momentum") or 0.0) for group in trial.optimizer.param_groups)
        rest = steps / (1 - min(momentum, 0.999))
        self.reach = _farthest(moves, before) * rest
        for _ in range(LATER if self.reach <= REACH[1] else 0):
            before = {n: p.detach().clone() for n, p in trainable.items()}
            loop.step(trial, batch)
            later = {n: p.detach() - before[n] for n, p in trainable.items()}
            self.reach = max(self.reach, _farthest(later, before) * rest)


def _begun(exp: Experiment, batch: Batch) -> Experiment:
    """A copy in training mode that has seen a batch: layers may get their first weights from one."""
    trial = twin(exp)
    with torch.no_grad(), trial.autocast():
        trial.model.train()(batch.x.clone())
    return trial


def _farthest(moves: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> float:
    """The largest move of a weight as a share of its norm."""
    # a layer that starts at zero has moved by more than its whole norm
    found = [float(m.norm() / before[n].norm()) for n, m in moves.items() if m.ndim > 1 and m.any()]
    return max(found, default=math.inf)


def _gradients(trial: Experiment, batch: Batch, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with trial.autocast():
        value, _ = trial.objective(trial.model, trial.loss, batch)
    found = torch.autograd.grad(value, [*trainable.values()], allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(trainable.items(), found, strict=True)}


def _uphill(exp: Experiment, step: _Step) -> Found:
    if step.cosine > UPHILL:
        return None
    flag = any(group.get("maximize") for group in exp.optimizer.param_groups)
    message = "the optimizer climbs: its first step points up the gradient, so the loss rises; "
    return Outcome.FAIL, message + ("type optimizer.maximize=false" if flag else "look for a wrong sign in step()")


def _deaf(exp: Experiment, batch: Batch) -> Found:
    """Whether the weights move although the rate of every group is 0."""
    name = type(exp.optimizer).__name__
    if name == "LBFGS":
        return None
    trial = _begun(exp, batch)
    for group in trial.optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in trial.model.parameters()]
    seen: list[list[Tensor]] = []
    hook = trial.model.register_forward_pre_hook(
        lambda *_: seen.append([p.detach().clone() for p in trial.model.parameters()])
    )
    loop.step(trial, batch)
    hook.remove()
    if _rests(trial, before):
        return None
    if (message := _left_there(name, [p.detach() for p in trial.model.parameters()], before, seen)) is not None:
        return Outcome.FAIL, message
    for group in trial.optimizer.param_groups:
        group["weight_decay"] = 0.0
    again = [p.detach().clone() for p in trial.model.parameters()]
    loop.step(trial, batch)
    if _rests(trial, again):
        message = (
            f"the weight decay of {name} shrinks weights although the rate is 0, so the schedule does not lower it: "
        )
        return Outcome.FAIL, message + "take lr × weight_decay of a weight per step"
    message = f"{name} moves the weights although the rate of its groups is 0: the schedule, and rates per layer, have "
    return Outcome.FAIL, message + "no effect; read the rate from group['lr'] in step(), not from self"


def _rests(trial: Experiment, before: list[Tensor]) -> bool:
    """Whether the weights are where they were, but for rounding: SAM moves them away and back."""
    moves = [p.detach() - old for p, old in zip(trial.model.parameters(), before, strict=True)]
    return _norm(moves) <= ROUNDED * _norm(before)


def _left_there(name: str, after: list[Tensor], before: list[Tensor], seen: list[list[Tensor]]) -> str | None:
    """A sentence if a second pass of a step is computed at other weights, as in SAM, which are not restored."""
    far = _norm([a - b for a, b in zip(after, before, strict=True)])
    places = [_norm([s - b for s, b in zip(one, before, strict=True)]) for one in seen[1:]]
    rest = [_norm([a - s for a, s in zip(after, one, strict=True)]) for one in seen[1:]]
    if not any(place > 0 and left <= NEAR * far for place, left in zip(places, rest, strict=True)):
        return None
    return (
        f"{name} computes the loss again at weights that it has moved by {max(places):.2g}, and leaves them there: "
        "after the second gradient, and before the step, SAM has to move back (p.sub_(self.state[p]['e_w']))"
    )


def _decay(exp: Experiment) -> Found:
    """What weight decay does where the gradient is zero."""
    trial, rates = twin(exp), peak_rates(exp)
    groups = trial.optimizer.param_groups
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    held = [[p for p in group["params"] if p.detach().any()] for group in groups]
    before = [[p.detach().clone() for p in tensors] for tensors in held]

    def closure() -> Tensor:
        for group in groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        return torch.zeros((), device=exp.device)

    if type(trial.optimizer).__name__ == "LBFGS" or any("weight_decay" not in group for group in groups):
        return None
    trial.optimizer.step(closure)  # type: ignore[arg-type]
    for group, tensors, olds, rate in zip(groups, held, before, rates, strict=True):
        decay = float(group["weight_decay"] or 0.0)
        if not tensors or not rate:
            continue
        shrunk = 1 - _norm(tensors) / _norm(olds)
        moved = any(not torch.equal(p, old) for p, old in zip(tensors, olds, strict=True))
        word = f"weight_decay {decay:g} at rate {rate:g}"
        if shrunk < -1e-7 and decay > 0:
            message = (
                f"{word} makes weights grow by {-shrunk:.2g} of their norm per step: the sign is wrong in step(); "
            )
            return Outcome.FAIL, message + "add weight_decay times the weight to the gradient, do not subtract it"
        if decay > 0 and not moved and decay * rate > ROUNDED:
            return Outcome.FAIL, f"{word} does nothing at a zero gradient: step() does not use group['weight_decay']"
        if shrunk > HARSH:
            message = f"{word} takes {shrunk:.0%} of every weight in one step: is it multiplied by the rate?"
            return Outcome.FAIL, message + advice(exp, "optimizer.weight_decay=1e-4")
        if decay == 0 and shrunk > 1e-6:
            return Outcome.WARN, f"weights shrink by {shrunk:.2g} per step at a zero gradient, though weight_decay is 0"
    return None


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(p.detach().cpu().double().square().sum()) for p in tensors))


def _short(exp: Experiment, step: _Step) -> Found:
    """Whether all planned steps together cannot move any weight noticeably."""
    if step.reach > REACH[1]:
        return None
    limit = exp.cfg.trainer.clip_norm
    message = f"all planned steps together move no weight by more than {step.reach:.2g} of its norm"
    if limit and step.norm > CLIPPED * limit:
        message += f": trainer.clip_norm={limit:g} cuts a gradient of norm {step.norm:.2g} to nothing"
        message += advice(exp, f"trainer.clip_norm={max(1.0, float(f'{step.norm:.0e}')):g}")
    elif exp.cfg.trainer.clip_value:
        message += (
            f": trainer.clip_value={exp.cfg.trainer.clip_value:g} may cut it to nothing; try trainer.clip_value=0"
        )
    else:
        rate = max(peak_rates(exp))
        message += f": the rate of {rate:g} is far too small" + advice(
            exp, f"optimizer.lr={rate * 0.3 / max(step.reach, 1e-9):.1g}"
        )
    return Outcome.FAIL if step.reach < REACH[0] else Outcome.WARN, message
