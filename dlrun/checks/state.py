"""M3, M5, R2: a forward pass leaves alone what training, and nothing else, should change; `dlrun check`.

Compares the model before and after forward passes of copies, in both modes. Detects: layers that forward() creates
anew, weights that it overwrites, so that steps of the optimizer are lost, eval() or train() called in forward(), a
train() that does not reach dropout, buffers that change in evaluation, a seed that is set in every pass. Cannot detect:
state outside of the model, or weights that are changed once in many passes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named
from dlrun.checks.smaller import small_samples
from dlrun.checks.tracing import created
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["state"]

COUNT = 4
NUDGE = 1e-3  # of the spread of a weight: a step of the optimizer
UNDONE = 0.01  # of the nudge that is left
NEW = 0.1  # of a weight's size: more than power iterations, projections or moving averages change it by
Found = tuple[str, str]
FINE = ("", "")


@check(order=62, needs_outputs=True, labels=False)
def state(exp: Experiment) -> Verdict:
    """Look for what a forward pass creates, overwrites or switches."""
    x, _ = small_samples(exp, COUNT)
    expected = "weights, modes and seeds that forward() leaves alone"
    for look in (_created, _modes, _switched, _overwritten, _buffers, _seeded):
        with torch.no_grad():
            value, message = look(copied(exp.model), x)
        if message:
            serious = look in (_created, _overwritten, _switched)
            return Verdict(Outcome.FAIL if serious else Outcome.WARN, value, expected, message)
    return Verdict(
        Outcome.PASS, "unchanged", expected, "a forward pass computes, and changes nothing that it should not"
    )


def _created(model: nn.Module, x: Tensor) -> Found:
    model.train()(x.clone())  # layers may get their sizes from the first batch
    with created() as found:
        model(x.clone())
    if not found:
        return FINE
    kind, place = found[0]
    message = (
        f"forward() creates a new {kind}{f' at {place.line}' if place else ''} in every pass: its weights are random "
        "each time, and no optimizer has them; create it once, in __init__, and call it in forward()"
    )
    return f"{kind} created in forward()", message


def _modes(model: nn.Module, x: Tensor) -> Found:
    """Dropout that train() does not turn on, or eval() not off, beside what is frozen on purpose."""
    for mode in (True, False):
        model.train(mode)
        off = [
            name
            for name, m in model.named_modules()
            if isinstance(m, _DropoutNd) and m.p > 0 and m.training != mode and not (mode and _held(model, name))
        ]
        if off:
            does = "drops nothing in training" if mode else "drops units in evaluation"
            message = (
                f"{named(off)} {does}: train() of the model does not set the mode of its parts; end it with "
                "return super().train(mode), and let eval() call train(False)"
            )
            return f"{len(off)} in the wrong mode", message
    return FINE


def _held(model: nn.Module, name: str) -> bool:
    """Whether a part around this module is in evaluation mode with weights that are all frozen."""
    while name:
        name = name.rpartition(".")[0]
        part = model.get_submodule(name)
        weights = [*part.parameters()]
        if weights:
            return bool(name) and not any(p.requires_grad for p in weights)
    return False


def _switched(model: nn.Module, x: Tensor) -> Found:
    for mode, verb in ((True, "eval()"), (False, "train()")):
        model.train(mode)
        before = {name: m.training for name, m in model.named_modules()}
        model(x.clone())
        changed = [n or "the model" for n, m in model.named_modules() if m.training != before.get(n, m.training)]
        # of batch norm alone `batch_norm` tells more
        kinds = [m for n, m in model.named_modules() if m.training != before.get(n, m.training)]
        if changed and any(not isinstance(m, nn.modules.batchnorm._BatchNorm) for m in kinds):
            message = (
                f"forward() switches {named(changed)} to the other mode: remove {verb} from it; the training loop sets "
                "the mode, and dropout and batch norm are wrong from the first batch on"
            )
            return f"{verb} in forward()", message
    return FINE


def _overwritten(model: nn.Module, x: Tensor) -> Found:
    """Weights that are the same after a pass whether or not they were changed before it, or new after each."""
    model.train()(x.clone())
    model(x.clone())
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point() and p.numel() > 1}
    before = {n: p.detach().clone() for n, p in weights.items()}
    nudges = {n: torch.randn_like(p) * NUDGE * (p.std() + 1e-3) for n, p in weights.items()}
    for n, p in weights.items():
        p.data.add_(nudges[n])
    model(x.clone())
    weights = dict(model.named_parameters())
    moved = {n: (weights[n].detach() - before[n]).norm() for n in before if n in weights}
    lost = [n for n, m in moved.items() if m <= UNDONE * nudges[n].norm()]
    lost += [n for n, m in moved.items() if m > NEW * before[n].norm() + 10 * nudges[n].norm()]
    if not lost:
        return FINE
    message = (
        f"forward() overwrites {named(lost)}, so what the optimizer changes is lost: compute from the weight into a "
        "new tensor, as in F.linear(x, self.weight.sign()), and initialise in __init__"
    )
    return f"{len(lost)} weights overwritten", message


def _buffers(model: nn.Module, x: Tensor) -> Found:
    model.train()(x.clone())
    model.eval()
    for _ in range(2):  # the first pass may fill a cache
        model(x.clone())
    before = {n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()}
    model(x.clone())
    changed = [n for n, b in model.named_buffers() if n in before and not _equal(before[n], b)]
    if not changed:
        return FINE
    message = (
        f"{named(changed)} changes in evaluation mode, so validation and test images leak into the model and the order "
        "of images counts: update it under `if self.training:`"
    )
    return f"{len(changed)} buffers change in evaluation", message


def _equal(before: Tensor, now: Tensor) -> bool:
    return before.shape == now.shape and torch.equal(before.nan_to_num(), now.nan_to_num())


def _seeded(model: nn.Module, x: Tensor) -> Found:
    model.train()(x.clone())
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model(x.clone())
        states.append(torch.get_rng_state())
    if not torch.equal(*states):
        return FINE
    message = (
        "forward() sets the random seed, so dropout masks and everything that is drawn after it are the same in every "
        "step: remove manual_seed from it, and set seed= of the run"
    )
    return "a seed in forward()", message
